"""Looking at data: raw files before a recipe names them, and prepared datasets token by token."""
