"""From raw sources to a prepared dataset, in parallel over cores, with an account of every row."""
