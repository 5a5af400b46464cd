"""Row formats, one file each. `table.py` lists them."""
