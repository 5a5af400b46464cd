"""Packed files (gzip, bzip2, xz, zstd), known by their first bytes and unpacked as a stream.

A file that unpacks to much more than it holds is not data: reading stops at LARGEST_RATIO times its size (ALWAYS_BYTES
are allowed to any file), so a few bytes cannot fill memory or keep a machine busy for hours.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from data_pipeline.errors import UserError

LARGEST_RATIO = (
    200  # text of conversations packs to a third or a tenth, of rows made from a few templates to a fiftieth
)
ALWAYS_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Packing:
    """A way to pack a file. suffixes: of its files, only used to find the suffix in front of them."""

    name: str
    magic: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    open: Callable[[Path], BinaryIO]


def _open_gzip(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(path))


def _open_bzip2(path: Path) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(path))


def _open_xz(path: Path) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(path))


def _open_zstd(path: Path) -> BinaryIO:
    return cast(BinaryIO, pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


_SKIPPABLE = tuple(bytes((0x50 + number,)) + b"\x2a\x4d\x18" for number in range(16))  # frames without content
PACKINGS = (
    Packing(name="gzip", magic=(b"\x1f\x8b",), suffixes=(".gz",), open=_open_gzip),
    Packing(name="bzip2", magic=(b"BZh",), suffixes=(".bz2",), open=_open_bzip2),
    Packing(
        name="xz",
        magic=(b"\xfd7zXZ\x00",),
        suffixes=(".xz",),
        open=_open_xz,
    ),
    Packing(name="zstd", magic=(b"\x28\xb5\x2f\xfd", *_SKIPPABLE), suffixes=(".zst", ".zstd"), open=_open_zstd),
)


def packing_of(head: bytes) -> Packing | None:
    """How a file that begins with `head` is packed, None if it is not."""
    return next((packing for packing in PACKINGS if head.startswith(packing.magic)), None)


class Unpacked:
    """The content of a packed file as a stream. Raises UserError where it is damaged or beyond the limit."""

    def __init__(self, path: Path, packing: Packing) -> None:
        self._path, self._packing, self._num_read = path, packing, 0
        self._limit = max(ALWAYS_BYTES, LARGEST_RATIO * path.stat().st_size)
        self._stream = packing.open(path)

    def read(self, num_bytes: int) -> bytes:
        """The next bytes: at most `num_bytes`, none at the end."""
        try:
            block = self._stream.read(num_bytes)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            problem = f"damaged {self._packing.name} file, after {self._num_read:,} unpacked bytes ({error})"
            raise UserError(self._path, problem, "get the file again") from None
        self._num_read += len(block)
        if self._num_read > self._limit:
            raise UserError(
                self._path,
                f"unpacks to more than {self._limit:,} bytes, {LARGEST_RATIO} times its size: no conversations do",
                "get the file again, or unpack it yourself if it is right",
            )
        return block

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
