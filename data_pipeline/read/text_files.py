"""Text of a file as UTF-8, whatever it is packed with and encoded in."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import UserError
from data_pipeline.read.packed import Packing, Unpacked, packing_of

HEAD_BYTES = 1 << 16
LONGEST_LINE = 256 << 20  # bytes; a row that long is no conversation, and a process has to hold it
UTF_8 = "utf-8"
_BLOCK_BYTES = 1 << 20
# The marks of UTF-32 before those of UTF-16, which they begin with.
_MARKS = (
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Stream(Protocol):
    """Bytes in order."""

    def read(self, num_bytes: int, /) -> bytes:
        """The next bytes: at most `num_bytes`, none at the end."""


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """How text is stored. num_mark_bytes: of the byte order mark in front of it, after unpacking."""

    packing: Packing | None
    encoding: str
    num_mark_bytes: int

    @property
    def is_plain(self) -> bool:
        """Whether the bytes of the file are UTF-8 text."""
        return self.packing is None and self.encoding == UTF_8


def form_of(path: Path) -> tuple[TextForm, bytes]:
    """How a file stores its content if that is text, and the first bytes of the content as they are, unpacked."""
    with path.open("rb") as stream:
        packing = packing_of(stream.read(8))
    with _unpacked(path, packing) as content:
        head = content.read(HEAD_BYTES)
    encoding, num_mark_bytes = _encoding_of(head)
    return TextForm(packing=packing, encoding=encoding, num_mark_bytes=num_mark_bytes), head


def _encoding_of(head: bytes) -> tuple[str, int]:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    return _encoding_without_mark(head), 0


def _encoding_without_mark(head: bytes) -> str:
    """The encoding of text that begins with ASCII characters: the zero bytes among the first 16 say it."""
    start = head[: 16 if len(head) >= 16 else len(head) // 4 * 4]
    for encoding, width, place in (("utf-32-le", 4, 0), ("utf-32-be", 4, 3), ("utf-16-le", 2, 0), ("utf-16-be", 2, 1)):
        used = start[place::width]
        is_ascii = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in used)
        if len(used) > 1 and is_ascii and start.count(0) == len(start) - len(used):
            return encoding
    return UTF_8


@contextmanager
def _unpacked(path: Path, packing: Packing | None) -> Iterator[Stream]:
    stream = path.open("rb") if packing is None else Unpacked(path, packing)
    try:
        yield stream
    finally:
        stream.close()


def utf8_blocks(path: Path, form: TextForm, num_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """The text of a file as blocks of about `num_bytes` of UTF-8, without its byte order mark.

    Bytes of a UTF-8 file are not checked. Raises UserError where text in another encoding is damaged, with the place
    of the byte.
    """
    with _unpacked(path, form.packing) as stream:
        _ = stream.read(form.num_mark_bytes)
        if form.encoding == UTF_8:
            while block := stream.read(num_bytes):
                yield block
            return
        decoder, num_read = codecs.getincrementaldecoder(form.encoding)(), form.num_mark_bytes
        while True:
            block = stream.read(num_bytes)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
                yield text.encode(UTF_8)
            except UnicodeDecodeError as error:
                at = num_read - waiting + error.start
                problem = f"byte {at:,} is not valid {form.encoding.upper()} ({error.reason})"
                raise UserError(path, problem, "save the file as UTF-8") from None
            if not block:
                return
            num_read += len(block)


def lines_of(path: Path, form: TextForm, num_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines as UTF-8, in blocks of about `num_bytes`, each with the number of its first line."""
    kept: list[bytes] = []
    size, open_bytes, line, has_end = 0, 0, 1, False  # open_bytes: after the last end of a line
    for block in utf8_blocks(path, form, min(num_bytes, _BLOCK_BYTES)):
        end = block.rfind(b"\n") + 1
        has_end = has_end or end > 0
        open_bytes = len(block) - end if end else open_bytes + len(block)
        kept.append(block)
        size += len(block)
        if open_bytes > LONGEST_LINE:
            raise too_long(path, line + sum(part.count(b"\n") for part in kept))
        if has_end and size >= num_bytes:
            whole = b"".join(kept)
            lines, rest = whole[: size - open_bytes], whole[size - open_bytes :]
            yield lines, line
            line += lines.count(b"\n")
            kept, size, has_end = [rest], len(rest), False
    if rest := b"".join(kept):
        yield rest, line


def too_long(path: Path, line: int) -> UserError:
    """A line that cannot be held in memory."""
    return UserError(path, f"line {line} is longer than {LONGEST_LINE:,} bytes", "is this a file of JSON lines?")


def read_text(path: Path, form: TextForm) -> str:
    """All text of a file. Raises UserError where it is not valid, with the place of the byte."""
    data = b"".join(utf8_blocks(path, form))
    try:
        return data.decode(UTF_8)
    except UnicodeDecodeError as error:
        raise not_utf8(path, data, error, offset=form.num_mark_bytes) from None


def not_utf8(path: Path, data: bytes, error: UnicodeDecodeError, *, offset: int = 0) -> UserError:
    """What to say of text that is not UTF-8: which byte, on which line."""
    line = data.count(b"\n", 0, error.start) + 1
    problem = f"byte {offset + error.start:,} ({data[error.start]:#04x}, line {line:,}) is not valid UTF-8"
    return UserError(path, problem, "save the file as UTF-8")
