"""Prints docs/recipe.md, the reference of the recipe: walks `Recipe.model_fields`, section by section.

python docs/generate_recipe_reference.py > docs/recipe.md
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from ochat_train.recipe.recipe import Recipe

_INTRODUCTION = """\
# Recipe reference

<!-- Printed by docs/generate_recipe_reference.py from the settings classes: change those. -->

A recipe is one YAML file that says everything about a run. `ochat prepare`, `ochat plan` and `ochat train` read it.

A short recipe. All keys that it leaves out have a default:

```yaml
name: my_run
output_dir: runs/my_run
model:
  path: mistralai/Mistral-7B-v0.1
  template: openchat_3.5
  max_length_tokens: 8192
data:
  prepared_dir: data/my_run
  classes:
    expert:     {condition: "GPT4 Correct", reward: 1.0}
    suboptimal: {condition: "GPT3", reward: 0.0}
  beta: 0.4342945
  sources:
    - {path: data/gpt4.jsonl, format: sharegpt, class: expert}
    - {path: data/gpt35.jsonl, format: sharegpt, class: suboptimal}
train:
  epochs: 5
  pack_length_tokens: 8192
  tokens_per_step: 655360
```

The files that `data.sources` may name are described in [Data formats](data_formats.md).

## How a recipe is read

- Problems are reported together, each with its line, its value and the rule, before anything is loaded. Rules over
  several keys are checked once every key of their section is valid, and are reported at the line of that section.
- Unknown keys, missing keys and duplicate keys are errors. So are values of another type: `"5"` is text, not a
  number.
- Values are read as in YAML 1.2: `2e-5` is a number, and only `true` and `false` are true and false (`no` is a text).
- Aliases (`*name`), anchors (`&name`) and tags (`!!int`) are not allowed.
- Relative paths start at the folder in which the command runs.
- In keys that hold a path, `~` and `~USER` at the beginning and `${NAME}` anywhere are replaced by a home and by the
  environment. A name that is not set or empty is an error, and so is `$NAME` without braces (`$$NAME` is a plain `$`).
  Run folders and exports keep the text as you wrote it. In all other keys `~/` and `${NAME}` are errors, except in
  `validation.prompts`, `validation.answer_pattern` and `model.template_variables`.

## Change a value for one run

`--set SECTION.KEY=VALUE` replaces a value of the recipe. It may be given several times, and it is checked like the
recipe; a wrong value is reported under `--set`, with no line.
Numbers reach into lists: `data.sources.0` is the first source.

```bash
./launch.sh recipes/mine.yaml --set train.epochs=1 --set optimizer.learning_rate=2e-5 \\
  --set data.sources.0.path=data/other.jsonl
./launch.sh recipes/mine.yaml --set 'optimizer.betas=[0.9, 0.98]'
```

## Let an editor check a recipe

Editors with a YAML language server (VS Code with the YAML extension, Neovim, JetBrains) complete and check a recipe
whose first line names the JSON schema. `ochat init` writes this line, and the recipes of this project have it:

```yaml
# yaml-language-server: $schema=../ochat_train/recipe/recipe.schema.json
```

A path there is relative to the recipe's own folder. `ochat schema --path` prints where your installation has the
schema, and `ochat init` writes a relative path where recipe and installation are in one project folder, such as a clone
or a folder with its own `.venv`. On another machine, change the line, or copy the schema
([recipe.schema.json](recipe.schema.json), which `ochat schema` prints) beside your recipes; nothing but the editor
reads it. Files of templates have a schema too: `ochat schema --template`.

The schema knows keys, types and limits. Rules over several keys (`tokens_per_step` is a multiple of
`pack_length_tokens`) are checked by `ochat` alone.

"""


def reference() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION, "## Top level\n\n", _table(Recipe, "")]
    for key, field in Recipe.model_fields.items():
        for section in filter(None, map(_section, (field.annotation, *get_args(field.annotation)))):
            parts += _section_pages(key, section)
    return "".join(parts)


def _section_pages(path: str, section: type[BaseModel]) -> Iterator[str]:
    """Heading, meaning and table of a section, then those of the sections inside it."""
    level = "###" if "." in path else "##"
    yield f"\n{level} `{path}`\n\n{inspect.cleandoc(section.__doc__ or '')}\n\n{_table(section, path)}"
    for key, field in section.model_fields.items():
        for inner in filter(None, map(_section, get_args(field.annotation))):
            yield from _section_pages(_entry_path(path, key, field), inner)


def _entry_path(path: str, key: str, field: FieldInfo) -> str:
    """What the entries of a mapping or list of sections are called (`data.sources.N`), or a section that may be left
    out.
    """
    if type(None) in get_args(field.annotation):
        return f"{path}.{key}".removeprefix(".")
    return f"{path}.{key}.{'NAME' if get_origin(field.annotation) is dict else 'N'}"


def _table(section: type[BaseModel], path: str) -> str:
    rows = [("key", "value", "default", "meaning"), ("---",) * 4]
    for name, field in section.model_fields.items():
        key = field.alias or name
        target = key if _section(field.annotation) else None
        if any(map(_section, get_args(field.annotation))):
            target = _entry_path(path, name, field)
        meaning = field.description or ""
        if target:
            link = f"see [`{target}`](#{target.lower().replace('.', '')})"
            meaning = f"{meaning}; {link}" if meaning else link
        rows.append(
            (f"`{key}`", _type(field.annotation, field.metadata), _default(field), meaning[:1].upper() + meaning[1:])
        )
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def _type(annotation: Any, rules: Sequence[Any] = ()) -> str:
    """A type in words, with its limits."""
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin is Annotated:
        inner = [
            rule for entry in arguments[1:] for rule in (entry.metadata if isinstance(entry, FieldInfo) else [entry])
        ]
        return _type(arguments[0], [*inner, *rules])
    if described := [
        part for rule in rules if isinstance(rule, WithJsonSchema) for part in (rule.json_schema or {})["anyOf"]
    ]:
        return " or ".join(_alternative(part) for part in described if part.get("type") != "null")
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part, rules) for part in arguments if part is not type(None))
    if origin is Literal:
        *others, last = (f"`{value}`" for value in arguments)
        return f"{', '.join(others)} or {last}" if others else last
    if origin is dict:
        return f"mapping of names to {_type(arguments[1])}s" if _section(arguments[1]) else "mapping"
    if origin is list:
        return f"list{_limits(rules)}, each a {_type(arguments[0])}"
    if _section(annotation):
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}[annotation] + _limits(rules)


def _alternative(part: dict[str, Any]) -> str:
    """One of several types that a key may have, from its JSON schema."""
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "description" in part:
        return str(part["description"])
    if part["type"] == "object":
        return " and ".join(f"`{key}: N`" for key in part["properties"])
    return f"{part['type']} > {part['exclusiveMinimum']}" if "exclusiveMinimum" in part else str(part["type"])


def _limits(rules: Sequence[Any]) -> str:
    """Limits in words, such as ` ≥ 0 and < 1`."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = {name: getattr(rule, name) for rule in rules for name in signs if getattr(rule, name, None) is not None}
    lengths = {
        name: getattr(rule, name) for rule in rules for name in ("min_length", "max_length") if hasattr(rule, name)
    }
    if lengths:
        exact = lengths.get("min_length") == lengths.get("max_length")
        assert exact or lengths == {"min_length": 1}, f"no words for {lengths}"
        return f" of {lengths['min_length']}" if exact else ", not empty"
    return "".join(f"{' and' * (n > 0)} {signs[name]} {value:.15g}" for n, (name, value) in enumerate(bounds.items()))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    if isinstance(value, BaseModel):
        return "every key's own"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


if __name__ == "__main__":
    print(reference(), end="")
