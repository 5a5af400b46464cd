"""`ochat serve`."""
