"""The files that a source names: its folder, pattern or file, narrowed to its subset and split."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import Problem, UserError
from data_pipeline.file_hashes import hash_files
from data_pipeline.read.file_kinds import bare_name, file_form
from data_pipeline.read.folders import Walk, dead_link, own_folder, walk
from data_pipeline.read.splits import CardFiles, SplitNames, card_subsets, several_splits, split_names
from data_pipeline.settings.sources import SourceSettings

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """files: sorted by name. note: what is left out, or None. is_named: the source names one file. split_inside: the
    key of a JSON document whose list is the split.
    """

    files: Sequence[Path]
    note: str | None = None
    is_named: bool = False
    split_inside: str | None = None


def find_files(source: SourceSettings, *, where: str) -> FoundFiles:
    """The files of a local source. Raises UserError where there is none or one cannot be read."""
    try:
        found = _find(source, where=where)
        for file in found.files:
            file.open("rb").close()
    except OSError as error:
        raise UserError(where, f"{error.filename or source.path}: cannot be read: {error.strerror}") from None
    return found


def _find(source: SourceSettings, *, where: str) -> FoundFiles:
    path = Path(source.path)
    if path.is_dir():
        return _in_folder(path, source, where=where)
    if path.is_file():
        return _one_file(path, source, where=where)
    if path.is_symlink():
        raise dead_link(path)
    if source.subset is not None:
        raise UserError(where, f"{path}: `subset` needs a folder", "remove `subset`")
    if _ADDRESS.match(source.path):
        raise UserError(where, f"{source.path}: is an address, not a file here", "get the file, and name it")
    if path.exists():
        raise UserError(where, f"{path}: is neither a file nor a folder", "write what it gives into a file")
    if glob.has_magic(source.path):
        return _matching(source, where=where)
    raise _nothing(source, "no such file or folder", where=where)


def _nothing(source: SourceSettings, rule: str, *, where: str) -> UserError:
    here = f"relative paths start at the current folder ({Path.cwd().name}/)"
    return UserError(where, f"{source.path}: {rule}", here)


# ---- one file ----


def _one_file(path: Path, source: SourceSettings, *, where: str) -> FoundFiles:
    if source.subset is not None:
        raise UserError(where, f"{path}: a file has no subset", "remove `subset`")
    if source.split is None or source.split in _names_of([path], path.parent)[0].names:
        return FoundFiles(files=[path], is_named=True)
    if file_form(path).kind == "document":
        return FoundFiles(files=[path], is_named=True, split_inside=source.split)
    raise UserError(where, f"{path}: a file has no split `{source.split}`", "remove `split`")


# ---- a folder ----


def _in_folder(root: Path, source: SourceSettings, *, where: str) -> FoundFiles:
    if (what := own_folder(root)) is not None:
        raise UserError(where, f"{root}: is {what}, not raw conversations", "name the files it was made from")
    declared = card_subsets(root)
    folder, card = root, None
    if source.subset is not None:
        folder, card = _subset(root, source.subset, declared, where=where)
    elif len(declared) > 1:
        names = ", ".join(declared)
        raise UserError(where, f"{root}: its card names several subsets ({names})", "name one as `subset`")
    elif declared:
        card = next(iter(declared.values())) or None
    found = walk(folder)
    if not found.files:
        note = found.note()
        rule = f"the folder holds no data file{f' ({note})' if note else ''}"
        raise _nothing(source, rule, where=where)
    if card:
        _only_files_of(card, root, found)
    _only_split(found, source, card or (), root, where=where)
    return FoundFiles(files=_without_twins(found), note=found.note())


def _subset(
    root: Path, name: str, declared: Mapping[str, Sequence[CardFiles]], *, where: str
) -> tuple[Path, Sequence[CardFiles] | None]:
    """The folder of a subset, and the files that the card gives to it."""
    if declared.get(name):
        return root, declared[name]
    is_inside = not os.path.isabs(name) and ".." not in Path(name).parts
    if is_inside and (root / name).is_dir():
        return root / name, None
    known = sorted({*declared, *(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")})
    remedy = f"subsets: {', '.join(known)}" if known else "remove `subset`"
    raise UserError(where, f"{root}: has no subset `{name}`", remedy)


def _only_files_of(card: Sequence[CardFiles], root: Path, found: Walk) -> None:
    """Leave out what the card does not give to the subset."""
    named = set().union(*(_matches(root, entry.pattern) for entry in card))
    for file in [file for file in found.files if file not in named]:
        found.leave_out(file, "of no subset that is read, by the card")
    found.files = [file for file in found.files if file in named]


def _matches(root: Path, pattern: str) -> set[Path]:
    return {Path(path) for path in glob.glob(f"{glob.escape(str(root))}/{pattern}", recursive=True)}


def _only_split(found: Walk, source: SourceSettings, card: Sequence[CardFiles], root: Path, *, where: str) -> None:
    """Leave out the files of other splits. Raises UserError where it is not clear which are meant."""
    named = dict(zip(found.files, _names_of(found.files, found.root), strict=True))
    for entry in card:
        if entry.split is not None:
            names = SplitNames(names=frozenset((entry.split,)), group=entry.split)
            named |= dict.fromkeys(_matches(root, entry.pattern) & named.keys(), names)
    groups = {names.group for names in named.values()} - {None}
    if source.split is None:
        if (splits := several_splits(groups)) and not glob.has_magic(source.path):
            raise UserError(where, f"{source.path}: holds several splits ({', '.join(splits)})", "name one as `split`")
        return
    wanted = [file for file in found.files if source.split in named[file].names]
    if not wanted and not groups and source.split == found.root.name:
        return
    if not wanted:
        splits = sorted(group for group in groups if group is not None)
        remedy = f"splits: {', '.join(splits)}" if splits else "remove `split`, or name the files"
        raise UserError(where, f"{source.path}: no file is of split `{source.split}`", remedy)
    for file in found.files:
        if file not in wanted:
            found.leave_out(file, f"not of split {source.split}")
    found.files = wanted


def _names_of(files: Iterable[Path], root: Path) -> list[SplitNames]:
    return [split_names(_parts(file.relative_to(root))) for file in files]


def _parts(path: Path) -> list[str]:
    return [*path.parts[:-1], path.name.partition(".")[0] or path.name]


def _without_twins(found: Walk) -> list[Path]:
    """The files of a walk without those that are another one of them under a second name."""
    first: dict[tuple[int, int], Path] = {}
    for file in found.files:
        status = file.stat()
        other = first.setdefault((status.st_dev, status.st_ino), file)
        if other != file:
            found.leave_out(file, f"the same file as {other.relative_to(found.root)}")
    return list(first.values())


# ---- a pattern ----


def _matching(source: SourceSettings, *, where: str) -> FoundFiles:
    root, pattern = _literal_beginning(source.path)
    found = Walk(root=root)
    for path in sorted(map(Path, glob.glob(f"{glob.escape(str(root))}/{pattern}", recursive=True))):
        if path.is_file():
            found.files.append(path)
        elif path.is_symlink() and not path.exists():
            raise dead_link(path)
        elif path.is_dir() and "**" not in pattern:
            found.leave_out(path, "a folder; `**` includes folders")
    if not found.files:
        raise _nothing(source, "no file matches the pattern", where=where)
    splits = several_splits(names.group for names in _names_of(found.files, root))
    _only_split(found, source, (), root, where=where)
    files = _without_twins(found)
    notes = [found.note(), f"reads the splits {' and '.join(splits)} together" if splits and not source.split else None]
    return FoundFiles(files=files, note="; ".join(filter(None, notes)) or None)


def _literal_beginning(pattern: str) -> tuple[Path, str]:
    """The folder that a pattern begins with, and the rest. A part that exists under its own name is not a pattern."""
    parts = Path(pattern).parts
    root = Path()
    while parts and (not glob.has_magic(parts[0]) or (root / parts[0]).exists()):
        root, parts = root / parts[0], parts[1:]
    return root, str(Path(*parts))


# ---- files that are read twice ----


def alike_names(groups: Sequence[tuple[str, Sequence[Path]]]) -> list[Problem]:
    """One for each file that has the name of another one but for its ending, as a packed or converted copy has.

    groups: as `same_files`.
    """
    first: dict[Path, Path] = {}
    alike = []
    for where, files in groups:
        for file in files:
            other = first.setdefault(file.with_name(bare_name(file)), file)
            if other.name != file.name:
                problem = f"{file} is called like {other}: if both hold the same rows, these are read twice"
                alike.append(Problem(place=where, problem=problem, remedy="remove one, if that is not meant"))
    return alike


def same_files(groups: Sequence[tuple[str, Sequence[Path]]]) -> list[Problem]:
    """One for each file that is read twice: under two names, in two sources, or as a copy with the same content.

    groups: files of each source, with its place in the recipe. Reads files of the same size.
    """
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for where, files in groups:
        for file in files:
            by_size.setdefault(file.stat().st_size, []).append((where, file))
    twice = []
    for size, alike in by_size.items():
        if size and len(alike) > 1:
            hashes = hash_files([file for _, file in alike], group=None).files
            first: dict[str, tuple[str, Path]] = {}
            for where, file in alike:
                other_where, other = first.setdefault(hashes[file].sha256, (where, file))
                if (other_where, other) != (where, file):
                    beside = "" if other_where == where else f" of {other_where}"
                    problem = f"{file} holds the same as {other}{beside}: its rows are read twice"
                    twice.append(Problem(place=where, problem=problem, remedy="remove one, if that is not meant"))
    return twice
