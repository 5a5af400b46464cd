"""Reads a recipe strictly: all problems at once, each with its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.errors import Problem, UserError, UserErrors
from data_pipeline.text_rules import did_you_mean
from ochat_train.recipe.paths import misplaced_paths, misplaced_problem
from ochat_train.recipe.problems import describe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.secrets import secret_places, secret_problem
from ochat_train.recipe.strict_yaml import (
    COMMAND_LINE,
    MOST_CHARACTERS,
    MOST_LEVELS,
    Document,
    KeyPath,
    parse,
    parse_override,
)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. `overrides` are `section.key=value` texts (`--set`), checked in the same way.

    Raises UserError with every problem found, each with its place, value, rule and the nearest valid key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(4 * MOST_CHARACTERS + 1)  # `parse` refuses a longer one
        text = data.decode("utf-8", errors="strict" if len(data) <= 4 * MOST_CHARACTERS else "ignore")
    except OSError as error:
        near = [other.name for other in path.parent.glob("*.yaml") if did_you_mean(path.stem, [other.stem])]
        remedy = did_you_mean(path.name, near) or "`ochat init` writes a recipe for your files"
        raise UserError(path, f"cannot be read: {error.strerror or error}", remedy) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"is not UTF-8 text: byte {error.start} ({error.object[error.start]:#04x}), line {line}"
        raise UserError(path, problem, "save the file as UTF-8") from None
    document = parse(text, name=str(path))
    if not isinstance(document.value, dict):
        raise UserError(path, "a recipe is a mapping of sections (name, model, data, train, ...)")
    problems = list(document.problems)
    for override in overrides:
        problems += _apply_override(document, override)
    problems += [secret_problem(place, document) for place in secret_places(document.value)]
    problems += [misplaced_problem(place, document) for place in misplaced_paths(document.value)]
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        problems += [describe(problem, document) for problem in error.errors()]
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserErrors(path, count, problems)
    return recipe


def _apply_override(document: Document, override: str) -> list[Problem]:
    """Put the value of a `--set` into the document, with the command line as its place; returns the problems."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        return [Problem(place=f"--set {override}", problem="expected section.key=value")]
    *sections, last = key.split(".")
    if len(sections) > MOST_LEVELS:
        problem = f"nested too deeply for a recipe (more than {MOST_LEVELS} levels)"
        return [Problem(place=f"--set {key[:40]}...", problem=problem)]
    path: KeyPath = ()
    target: Any = document.value
    for part in sections:
        if (index := _index(target, part)) is None:
            return [Problem(place=f"--set {override}", problem=f"`{key}` is not inside a section")]
        path = (*path, index)
        if isinstance(target, dict) and index not in target:
            target[index] = {}
            document.lines[path] = COMMAND_LINE
        target = target[index]
    if (index := _index(target, last)) is None:
        return [Problem(place=f"--set {override}", problem=f"`{key}` is not inside a section")]
    value, problems = parse_override(text, key=key)
    if problems:
        return problems
    target[index] = value
    path = (*path, index)
    for inner in [known for known in document.lines if known[: len(path)] == path]:
        del document.lines[inner]  # lines of the value that was replaced
    document.lines[path] = COMMAND_LINE
    return []


def _index(target: Any, part: str) -> int | str | None:
    """One part of a dotted key: the number of a list's entry, or a mapping's key. None if target has no such place."""
    if isinstance(target, dict):
        return part
    is_entry = isinstance(target, list) and part.isascii() and part.isdigit() and int(part) < len(target)
    return int(part) if is_entry else None
