"""Attention that never crosses the border of a conversation: one file a kernel."""
