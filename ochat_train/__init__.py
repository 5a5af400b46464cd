"""The C-RLFT trainer: prepared dataset in, trained Hugging Face checkpoint out.

recipe.py            the recipe (YAML), checked as a whole before anything starts
init/, check/        `ochat init` writes a first recipe, `ochat check` says what would stop one
plan_report.py       what a run would do: steps, memory (memory_plan.py), hours (time_plan.py)
batches.py           plan + prepared dataset        -> packed micro-batches
model.py             transformers model             -> hidden states of a pack (attention.py keeps conversations apart)
loss.py              hidden states                  -> weighted loss sums, without ever holding all logits
engine.py            recipe                         -> DeepSpeed configuration and engine
agreement.py         what all hosts must have in common before the first step
train.py             the training loop and its step
metrics.py           loss sums                      -> metrics.jsonl, console.py the progress line, tracking/ the
trackers
validation.py        held-out conversations, the condition matrix, samples
checkpoint.py        resume state, written so that it is complete or not there
export.py            checkpoint                     -> Hugging Face folder, with model_card.py
push.py              Hugging Face folder            -> the Hub; background_push.py does it beside a run
ablation/            C-RLFT against its arms
run_page.py, inspect_page.py, page.py               HTML pages
cli.py               the `ochat` command
"""

__version__ = "0.1.0"
