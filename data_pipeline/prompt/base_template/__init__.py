"""The Jinja chat template of a base: prompts of training, and of exports, with the ids that it gives at inference."""
