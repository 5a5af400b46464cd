"""The data of a benchmark, which the user brings: a file, a folder, or a tar archive. Nothing is unpacked."""

from __future__ import annotations

import functools
import gzip
import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.text_rules import shown

_LARGEST_FILE = 1 << 30
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file that questions were read from. name: inside the data, with `/`."""

    name: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a file. place: file and line, for messages. number: of the line, from 1."""

    place: str
    number: int
    values: Mapping[str, Any]


class SuiteData:
    """Files by name. Of a single file, the name is the file's own."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError(path, "is not there", "name the file, folder or tar archive of the benchmark with `--data`")
        self.path = path
        self.is_file = path.is_file() and not path.name.endswith(_ARCHIVES)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """All files, sorted; a folder's own name is the first part, so that `--data .../agieval` is known too."""
        if self.is_file:
            return (self.path.name,)
        if self.path.is_dir():
            root = self.path.resolve()
            found = (file.relative_to(root.parent) for file in root.rglob("*") if file.is_file())
            return tuple(sorted(file.as_posix() for file in found))
        return tuple(sorted(self._members))

    def in_folder(self, *folder: str, suffix: str = ".jsonl") -> list[str]:
        """Names of files whose folder ends in these parts, such as `zs`, `agieval`."""
        return [
            name
            for name in self.names
            if name.endswith(suffix) and PurePosixPath(name).parts[:-1][-len(folder) :] == folder
        ]

    def read(self, name: str) -> tuple[bytes, DataFile]:
        """The bytes of a file as it is, and its record. Raises UserError where it cannot be read."""
        try:
            data = self._bytes(name)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise UserError(self.path, f"{name}: cannot be read: {error}", "fetch the data again") from None
        return data, DataFile(name=name, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))

    def text(self, name: str) -> tuple[str, DataFile]:
        """The text of a file, `.gz` unpacked. Raises UserError where it is not UTF-8."""
        data, record = self.read(name)
        try:
            content = gzip.decompress(data) if name.endswith(".gz") else data
            return content.decode("utf-8-sig"), record
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(self.path, f"{name}: is damaged: {error}", "fetch the data again") from None

    def rows(self, name: str) -> tuple[list[Row], DataFile]:
        """The objects of a JSONL file. Raises UserError for a line that is none."""
        text, record = self.text(name)
        return list(_rows(text, place=f"{self.path}" if self.is_file else f"{self.path}: {name}")), record

    @functools.cached_property
    def _members(self) -> dict[str, tarfile.TarInfo]:
        try:
            return {_clean(member.name): member for member in self._archive.getmembers() if member.isfile()}
        except (OSError, tarfile.TarError, EOFError) as error:
            raise UserError(self.path, f"is damaged, not a tar archive: {error}", "fetch the data again") from None

    @functools.cached_property
    def _archive(self) -> tarfile.TarFile:
        try:
            return tarfile.open(self.path)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise UserError(self.path, f"cannot be read as a tar archive: {error}", "fetch the data again") from None

    def _bytes(self, name: str) -> bytes:
        if self.is_file:
            return self.path.read_bytes()
        if self.path.is_dir():
            return (self.path.resolve().parent / name).read_bytes()
        member = self._members[name]
        if member.size > _LARGEST_FILE:
            raise UserError(self.path, f"{name}: has {member.size:,} bytes, more than {_LARGEST_FILE:,}")
        stream = self._archive.extractfile(member)
        assert stream is not None, "only files are members"
        return stream.read()


def _clean(name: str) -> str:
    """The name of an archive's member without `./` at its start."""
    return PurePosixPath(name).as_posix()


def _rows(text: str, *, place: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = nesting.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}:{number}", f"is not JSON: {error}", "fetch the data again") from None
        if not isinstance(values, dict):
            raise UserError(f"{place}:{number}", f"expected a JSON object, found {shown(values)}")
        yield Row(place=f"{place}:{number}", number=number, values=values)


def text_of(row: Row, key: str) -> str:
    """A text of a row that may not be missing or empty. Raises UserError."""
    value = row.values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(row.place, f"expected a text `{key}`, found {shown(value)}")
    return value
