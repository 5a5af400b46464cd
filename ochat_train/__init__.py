"""The C-RLFT trainer: prepared dataset in, trained Hugging Face checkpoint out.

recipe.py            the recipe (YAML), checked as a whole before anything starts
batches.py           plan + prepared dataset        -> packed micro-batches
model.py             transformers model             -> hidden states of a pack (attention.py keeps conversations apart)
loss.py              hidden states                  -> weighted loss sums, without ever holding all logits
engine.py            recipe                         -> DeepSpeed configuration and engine
train.py             the training loop and its step
metrics.py           loss sums                      -> metrics.jsonl and the progress bar
checkpoint.py        resume state, written so that it is complete or not there
export.py            checkpoint                     -> Hugging Face folder
cli.py               the `ochat` command
"""

__version__ = "0.1.0"
