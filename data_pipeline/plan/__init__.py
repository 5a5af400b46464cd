"""Which conversations share a pack, and which packs belong to which optimizer step. Numbers only, no tokens."""
