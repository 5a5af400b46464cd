"""Splits and subsets of datasets in a folder, as the Hub names them: by file names, folders, or the card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import nesting

_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout", "holdout"), "test"),
}
_LONGEST_CARD = 1 << 20  # characters


@dataclass(frozen=True, kw_only=True)
class SplitNames:
    """What the split of a file may be called. group: files of one group are of one split; None where none is named."""

    names: frozenset[str]
    group: str | None


def split_names(parts: Sequence[str]) -> SplitNames:
    """The split of a file. parts: its folders below the source and its name without ending.

    A shard (`NAME-00000-of-00002`) is of split NAME. Otherwise a folder called like a split, or a split's word at the
    beginning or end of the file's name, says it.
    """
    *folders, stem = parts
    if (shard := _SHARD.fullmatch(stem)) is not None:
        return SplitNames(names=frozenset((shard["split"],)), group=shard["split"])
    for folder in reversed(folders):
        if folder.lower() in _WORDS:
            return SplitNames(names=frozenset((folder, _WORDS[folder.lower()])), group=_WORDS[folder.lower()])
    words = re.split(r"[^A-Za-z]+", stem.lower())
    group = _WORDS.get(words[0]) or _WORDS.get(words[-1])
    return SplitNames(names=frozenset((stem, group or stem)), group=group)


def several_splits(groups: Iterable[str | None]) -> list[str]:
    """The splits that files are of, where reading all of them would mix training with held-out data; else nothing.

    groups: of each file.
    """
    found = sorted({group for group in groups if group is not None})
    is_held_out = [
        any(_WORDS.get(word) not in (None, "train") for word in re.split(r"[^a-z]+", name.lower())) for name in found
    ]
    return found if len(found) > 1 and any(is_held_out) else []


# ---- the card of a dataset (README.md) ----


@dataclass(frozen=True, kw_only=True)
class CardFiles:
    """Files that the card gives to a subset. split: None where it names none. pattern: below the folder of the card."""

    split: str | None
    pattern: str


def card_subsets(folder: Path) -> Mapping[str, Sequence[CardFiles]]:
    """The subsets that the card of a dataset declares, with their files. Nothing where there is no such card."""
    try:
        with (folder / "README.md").open(encoding="utf-8") as file:
            text = file.read(_LONGEST_CARD)
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith("---\n"):
        return {}
    try:
        header = nesting.load_yaml(text[4:].partition("\n---")[0])
    except (yaml.YAMLError, ValueError):
        return {}
    configs = header.get("configs") if isinstance(header, dict) else None
    subsets = {}
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict) and isinstance(config.get("config_name"), str):
            subsets[config["config_name"]] = _files_of(config.get("data_files"), config.get("data_dir"))
    return subsets


def _files_of(value: Any, data_dir: Any) -> list[CardFiles]:
    """data_files of a subset: a pattern, a list of them, or a list of splits with their patterns."""
    if value is None:
        return [CardFiles(split=None, pattern=f"{data_dir}/**")] if isinstance(data_dir, str) else []
    found: list[CardFiles] = []
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, str):
            found.append(CardFiles(split=None, pattern=entry))
        elif isinstance(entry, dict):
            paths = entry.get("path")
            for pattern in paths if isinstance(paths, list) else [paths]:
                if isinstance(pattern, str):
                    found.append(
                        CardFiles(split=str(entry.get("split")) if entry.get("split") else None, pattern=pattern)
                    )
    return found
