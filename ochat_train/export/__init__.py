"""From a checkpoint to a Hugging Face folder: weights, tokenizer, model card, and where the base came from."""
