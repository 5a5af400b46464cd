"""What a run will do before it does: steps, learning rate, memory, time."""
