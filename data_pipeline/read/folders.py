"""The files of a folder: which are data, which are left out, and why."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.read.file_kinds import DATA_SUFFIXES, PACKED_SUFFIXES, file_form, suffix_of

# Files that come with data and hold none. They are left out silently; docs/data_formats.md lists them.
_COMPANIONS = frozenset(
    (
        *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "croissant.json", "thumbs.db"),
        *("_success", "_metadata", "_common_metadata"),  # of Spark and Dask
    )
)
_COMPANION_STEMS = frozenset(("readme", "license", "licence", "notice", "citation", "changelog"))
_COMPANION_FOLDERS = frozenset(("__pycache__", "__macosx"))
NOT_DATA = "not data"
_EXAMPLES = 5

# Folders that this program writes, by files in them.
_OWN_FOLDERS = (
    (("manifest.json", "dataset_dict.json", "tokenizer"), "a prepared dataset"),
    (("recipe.json", "prepared.json"), "a run folder"),
    (("config.json", "tokenizer_config.json"), "a model"),
    (("config.json", "model.safetensors"), "a model"),
    (("config.json", "model.safetensors.index.json"), "a model"),
)


@dataclass(kw_only=True)
class Walk:
    """What was found in a folder. left_out: reason -> paths, below the folder."""

    root: Path
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    _folders: set[tuple[int, int]] = field(default_factory=set)

    def leave_out(self, path: Path, reason: str) -> None:
        """Note a file or folder that is not read."""
        name = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        self.left_out.setdefault(reason, []).append(name)

    def note(self) -> str | None:
        """What was left out, in one line; None if nothing was."""
        parts = []
        for reason, names in self.left_out.items():
            more = f" and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else ""
            parts.append(f"{', '.join(sorted(names)[:_EXAMPLES])}{more} ({reason})")
        return f"left out {'; '.join(parts)}" if parts else None


def own_folder(folder: Path) -> str | None:
    """What a folder is that this program wrote; None for another one."""
    return next((what for names, what in _OWN_FOLDERS if all((folder / name).exists() for name in names)), None)


def walk(root: Path) -> Walk:
    """The data files below a folder, in the order of their names. Links are followed; no folder is visited twice.

    Raises OSError for a folder that cannot be listed, UserError for a data file that is a link to nothing.
    """
    found = Walk(root=root)
    for path in _below(root, found):
        if _is_data(path, found):
            found.files.append(path)
    found.files.sort()
    return found


def _below(folder: Path, found: Walk) -> Iterator[Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in found._folders:
        found.leave_out(folder, "a link to a folder that is read already")
        return
    found._folders.add((status.st_dev, status.st_ino))
    names = {entry.name: entry for entry in os.scandir(folder)}
    if "_delta_log" in names:
        problem = "is a Delta table, whose files may hold rows that were removed"
        raise UserError(folder, problem, "write the table as Parquet, and name that folder")
    if "state.json" in names and any(name.endswith(".arrow") for name in names):
        names = {name: entry for name, entry in names.items() if name != "state.json"}
    for name in sorted(names):
        path = folder / name
        if name.startswith("."):
            continue
        if names[name].is_dir():
            if (what := own_folder(path)) is not None:
                found.leave_out(path, what)
            elif name.lower() not in _COMPANION_FOLDERS:
                yield from _below(path, found)
        else:
            yield path


def _is_data(path: Path, found: Walk) -> bool:
    name, suffix = path.name.lower(), suffix_of(path)
    if name in _COMPANIONS or name.partition(".")[0] in _COMPANION_STEMS:
        return False
    may_be_data = suffix in DATA_SUFFIXES or not path.suffix or path.suffix.lower() in PACKED_SUFFIXES
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        if not may_be_data:
            found.leave_out(path, "a link to nothing")
            return False
        raise dead_link(path) from None
    if not is_file:
        found.leave_out(path, "not a file")
        return False
    if suffix == ".arrow" and name.startswith("cache-"):
        found.leave_out(path, "a cache of `datasets`")
        return False
    if suffix in DATA_SUFFIXES:
        return True
    if not may_be_data or not _holds_rows(path):
        found.leave_out(path, NOT_DATA)
        return False
    return True


def _holds_rows(path: Path) -> bool:
    """Whether the content of a file whose name says nothing is data for certain."""
    try:
        return file_form(path).kind != "empty"
    except UserError:
        return False


def dead_link(path: Path) -> UserError:
    """A link to a file that is not there."""
    target = os.readlink(path) if path.is_symlink() else ""
    if "annex/objects" in target:
        return UserError(path, "is a git-annex link, and its data is not here", "run `git annex get` in its folder")
    return UserError(path, f"is a link to {target or 'a file'} that is not there", "get the file, or remove the link")
