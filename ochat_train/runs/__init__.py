"""The run folder: who may write to it, what is in it, and how it is read back."""
