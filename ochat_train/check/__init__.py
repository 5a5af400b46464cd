"""`ochat check`: what can be known about a run before it holds a GPU."""
