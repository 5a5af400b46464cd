"""The proof of a base: a small copy of it computes packs as `transformers` computes each conversation alone."""
