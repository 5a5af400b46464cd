"""The C-RLFT trainer: prepared dataset in, trained Hugging Face checkpoint out.

cli/           the `ochat` command, one file a verb

recipe/        the recipe (YAML), checked as a whole before anything starts
init/          `ochat init`: a first recipe
check/         `ochat check`: what would stop a run
planning/      steps, learning rate, memory and hours of a run, before it starts

model/         transformers model -> hidden states of packs, with attention inside conversations -> weighted loss sums
training/      the run, its loop and its step; DeepSpeed's engine; metrics
distributed/   ranks: how they meet, agree, and notice that one is missing
checkpoint/    the state to resume from, written so that it is complete or not there
evaluation/    held-out conversations, the condition matrix, samples, questions
tracking/      TensorBoard and Weights & Biases

runs/          the run folder and its files
report/        tables, the progress line, HTML pages
export/        checkpoint -> Hugging Face folder with a model card
hub/           Hugging Face folder -> the Hub, also during a run
inference/     answers of an export
ablation/      C-RLFT against its arms
quickstart/    data and score of the quickstart
system/        durable writes, exit codes, messages

tests/test_packages.py has the table of which package may import which.
"""

__version__ = "0.1.0"
