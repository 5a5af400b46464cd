"""Training: set up a run, walk its steps, take one step."""
