"""The JSON schemas of recipes and template files, which editors read: as text, and as files of the package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UserError
from data_pipeline.prompt.template import Template
from ochat_train.recipe.recipe import Recipe

SchemaName = Literal["recipe", "template"]


def schema_text(name: SchemaName) -> str:
    """The JSON document, without a newline at its end."""
    document = Recipe if name == "recipe" else Template
    return json.dumps(document.model_json_schema(by_alias=True), indent=1)


def schema_file(name: SchemaName) -> Path:
    """The same as a file of this installation. Raises UserError where the installation lacks it."""
    path = Path(__file__).with_name(f"{name}.schema.json")
    if not path.is_file():
        raise UserError(
            path,
            "the file of the schema is missing",
            f"install ochat-train again, or write one: "
            f"ochat schema{' --template' if name == 'template' else ''} > {name}.schema.json",
        )
    return path


def schema_line(file: Path, *, project: Path | None = None) -> str:
    """The comment by which an editor finds the schema of a recipe; it must be the first line.

    Editors take the path relative to the file's own folder. So it is relative where the file and the schema are both
    in the project's folder (a clone, or a `.venv` in it), which may be moved, and absolute elsewhere.

    file: the recipe, which need not exist. project: default: the current folder.
    """
    schema, file, root = schema_file("recipe"), file.absolute(), (project or Path.cwd()).absolute()
    is_inside = file.is_relative_to(root) and schema.is_relative_to(root)
    where = os.path.relpath(schema, file.parent) if is_inside else str(schema)
    return f"# yaml-language-server: $schema={where}"
