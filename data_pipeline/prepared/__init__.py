"""The prepared dataset on disk: written once, then memory-mapped."""
