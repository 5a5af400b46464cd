"""Ranks that act as one: they meet, agree, notice who is missing, and stop together."""
