"""Checkpoints: written by all ranks or by none, verified, and resumed from, also on another number of GPUs.

state.py is the format, and loads it; writer.py writes it; resume.py decides where a run starts and says what it takes
over; changes.py compares a run with a checkpoint; reshard.py converts one for another number of GPUs; room.py is how
large one is.
"""
