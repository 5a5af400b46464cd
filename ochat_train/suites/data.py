"""The data of a benchmark, which the user brings: a file, a folder, or a tar archive. Nothing is unpacked."""

from __future__ import annotations

import functools
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.text_rules import shown

_MOST_BYTES = 1 << 30  # of an archive, which is held in memory
_SUFFIXES = (".json", ".jsonl", ".jsonl.gz")
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
    """Files by name. Of a single file, the name is the file's own. suite: that it was named for, None for all."""

    def __init__(self, path: Path, *, suite: str | None = None) -> None:
        if not path.exists():
            raise UserError(path, "is not there", "name the file, folder or tar archive of the benchmark with `--data`")
        self.path, self.suite = path, suite
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

    def in_folder(self, *folder: str) -> list[str]:
        """Names of JSONL files whose folder ends in these parts, such as `zs`, `agieval`."""
        return [
            name
            for name in self.names
            if name.endswith(".jsonl") and PurePosixPath(name).parts[:-1][-len(folder) :] == folder
        ]

    def read(self, name: str) -> tuple[bytes, DataFile]:
        """The bytes of a file as it is, and its record. Raises UserError where it cannot be read."""
        try:
            data = self._bytes(name)
        except OSError as error:
            raise UserError(self.path, f"{name}: cannot be read: {error}", "fetch the data again") from None
        return data, DataFile(name=name, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))

    def text(self, name: str) -> tuple[str, DataFile]:
        """The text of a file, `.gz` unpacked. Raises UserError where it is not UTF-8."""
        data, record = self.read(name)
        try:
            content = gzip.decompress(data) if name.endswith(".gz") else data
            return content.decode("utf-8-sig"), record
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise UserError(self.path, f"{name}: is damaged: {error}", "fetch the data again") from None

    def rows(self, name: str) -> tuple[list[Row], DataFile]:
        """The objects of a JSONL file. Raises UserError for a line that is none."""
        text, record = self.text(name)
        return list(_rows(text, place=f"{self.path}" if self.is_file else f"{self.path}: {name}")), record

    @functools.cached_property
    def _members(self) -> dict[str, bytes]:
        """The files of an archive with questions, read once from its start to its end: it cannot be jumped in."""
        members: dict[str, bytes] = {}
        total = 0
        try:
            with tarfile.open(self.path) as archive:
                for member in archive:
                    if not member.isfile() or not member.name.endswith(_SUFFIXES):
                        continue
                    total += member.size
                    if total > _MOST_BYTES:
                        problem = f"holds more than {_MOST_BYTES:,} bytes of questions"
                        raise UserError(self.path, problem, "unpack it, and name its folder")
                    stream = archive.extractfile(member)
                    assert stream is not None, "only files are read"
                    members[PurePosixPath(member.name).as_posix()] = stream.read()
        except (OSError, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise UserError(self.path, f"is damaged, not a tar archive: {error}", "fetch the data again") from None
        return members

    def _bytes(self, name: str) -> bytes:
        if self.is_file:
            return self.path.read_bytes()
        if self.path.is_dir():
            return (self.path.resolve().parent / name).read_bytes()
        return self._members[name]


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
