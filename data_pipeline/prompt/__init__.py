"""From a tagged conversation to token ids and loss weights: template, tokenizer, length rule."""
