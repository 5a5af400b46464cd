"""The quickstart's data, tokenizer and score: what users replace with their own."""
