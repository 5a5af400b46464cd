"""The sections of a recipe, one file each; `data` is in data_pipeline/settings."""
