"""The recipe: one YAML file that says everything about a run.

recipe.py and sections/ declare the keys; load.py reads a file (strict_yaml.py), applies `--set` and reports all
problems at once (problems.py, secrets.py); preparation.py hands the recipe to the data pipeline.
"""
