"""The `data` section of a recipe: sources, classes, and what becomes of rows that do not fit."""
