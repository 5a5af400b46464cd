"""Weights of a base: what its files hold, whether that is what its configuration says, and how they are loaded."""
