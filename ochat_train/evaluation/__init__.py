"""What a model has learnt, on held-out conversations, prompts and questions.

The words: a *score* is a number of one conversation or class; an *evaluation* scores the held-out conversations once
(`evaluate.py`); a *validation* is an evaluation after a step of a run, with answers to a few prompts (`validation.py`);
*right answers* are counted over questions that have one (`questions.py`). Looking at data is an *inspection*:
`data_pipeline.look`.
"""
