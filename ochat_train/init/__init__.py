"""`ochat init`: a first recipe for a base and data files, written after a look at both."""
