"""YAML as recipes need it: YAML 1.2 scalars, no duplicate keys, no aliases, no tags, and a line for every key.

PyYAML's own `safe_load` reads `2e-5` as text, `no` as False, `010` as 8, and lets the last of two equal keys win.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from data_pipeline.errors import Problem, UserError

KeyPath = tuple[str | int, ...]
COMMAND_LINE = 0  # "line" of a value that was given by `--set`
MOST_LEVELS = 32  # of lists and mappings inside each other
MOST_CHARACTERS = 1 << 18  # of a document; PyYAML takes seconds for so many


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed document: its file, `value`, the line on which each key path begins (1-based), the problems found."""

    name: str
    value: Any
    lines: dict[KeyPath, int]
    problems: list[Problem]

    def place(self, path: KeyPath) -> str:
        """File, line and dotted name of a key path, or `--set` instead of the line; for a message."""
        known = path
        while known and known not in self.lines:  # a key that is missing is reported at the line of its section
            known = known[:-1]
        line = self.lines.get(known, 1)
        origin = "--set" if line == COMMAND_LINE else f"{self.name}:{line}:"
        return f"{origin} {'.'.join(map(str, path)) or 'recipe'}"


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its YAML 1.1 resolvers; the ones of YAML 1.2 are added below."""


_Yaml12Loader.yaml_implicit_resolvers = {}


_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[1-9][0-9]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def parse(text: str, *, name: str) -> Document:
    """Parse YAML text strictly.

    Duplicate keys and non-text keys become entries of `problems`; what cannot be parsed at all, aliases, anchors and
    tags raise UserError, because nothing after them can be trusted. So does a text that is far too long or too deeply
    nested for a recipe: reading it could take hours.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(name, f"more than {MOST_CHARACTERS:,} characters, so not a recipe", "name the recipe's file")
    try:
        levels = 0
        for event in yaml.parse(text, Loader=_Yaml12Loader):
            place = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UserError(place, "aliases and anchors are not allowed", "write the value out")
            if tag := getattr(event, "tag", None):
                raise UserError(place, f"tags ({tag}) are not allowed", "remove it")
            levels += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if levels > MOST_LEVELS:
                raise UserError(place, f"nested too deeply for a recipe (more than {MOST_LEVELS} levels)")
        node = yaml.compose(text, Loader=_Yaml12Loader)
        document = Document(name=name, value={}, lines={}, problems=[])
        value = _construct(node, (), document) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(place, f"not valid YAML: {getattr(error, 'problem', None) or error}") from None
    return replace(document, value=value)


def parse_override(text: str, *, key: str) -> tuple[Any, list[Problem]]:
    """The value of a `--set key=value`, read by the same rules as a recipe's values, and the problems found."""
    if not text.strip():
        return "", []
    try:
        document = parse(text, name=f"--set {key}")
    except UserError as error:
        return None, list(error.problems)
    return document.value, document.problems


def entries(value: Any, place: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Everything inside a document's value, each with its key path."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (*place, key), item
        yield from entries(item, (*place, key))


def _construct(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                document.problems.append(Problem(place=f"{document.name}:{line}", problem="a key must be plain text"))
                continue
            if key in mapping:
                place = ".".join(map(str, (*path, key)))
                first = document.lines[(*path, key)]
                document.problems.append(
                    Problem(
                        place=f"{document.name}:{line}: {place}",
                        problem=f"duplicate key, first on line {first}",
                        remedy="keep one",
                    )
                )
                continue
            document.lines[(*path, key)] = line
            mapping[key] = _construct(value_node, (*path, key), document)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, index), document) for index, item in enumerate(node.value)]
    try:
        return _Yaml12Loader("").construct_object(node, deep=True)
    except ValueError:  # a whole number with thousands of digits
        raise UserError(f"{document.name}:{node.start_mark.line + 1}", "not a number that can be read") from None
