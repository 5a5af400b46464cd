"""All that is printed: results on standard output, messages on standard error.

Everything may hold text of users' data, of file names or of a model's answers. So everything goes through
`text_rules.visible`: nothing can move the cursor, colour the terminal, turn the direction of the text, or hide. A test
looks for other calls of `print`.

`output_of` is what `--quiet` and `--log-file` set for one command.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm

from data_pipeline.text_rules import visible
from ochat_train.system.log_file import LogFile

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class _Output:
    quiet: bool = False
    log: LogFile | None = None
    has_said_that_the_log_failed: bool = False


_output = _Output()


@contextlib.contextmanager
def output_of(command: str, *, quiet: bool, log: LogFile | None) -> Iterator[None]:
    """Print without notices and progress, and also into a log file, while the block runs. command: logged first.

    The log also gets the traceback of a bug.
    """
    before = (_output.quiet, _output.log, _output.has_said_that_the_log_failed)
    _output.quiet, _output.log, _output.has_said_that_the_log_failed = quiet, log, False
    try:
        _add_to_log(visible(command))
        yield
    except Exception:
        _add_to_log(visible(traceback.format_exc()))
        raise
    finally:
        _output.quiet, _output.log, _output.has_said_that_the_log_failed = before


def shows_progress() -> bool:
    """Whether progress bars are shown: on a terminal, without `--quiet`."""
    return sys.stderr.isatty() and not _output.quiet


def _add_to_log(text: str) -> None:
    log = _output.log
    if log is None:
        return
    log.add(_COLOUR.sub("", text))
    if log.problem is not None and not _output.has_said_that_the_log_failed:
        _output.has_said_that_the_log_failed = True
        with contextlib.suppress(OSError):
            tqdm.write(f"warning: {visible(log.problem)}; what follows is not in it", file=sys.stderr)


def print_result(text: object) -> None:
    """Print a result to stdout. A JSON document stays the same document."""
    print_marked(visible(str(text)))


def print_marked(line: str) -> None:
    """Print a line with colours to stdout, whose pieces have been through `visible` one by one."""
    _add_to_log(line)
    print(_encodable(line, sys.stdout))


def print_piece(text: str) -> None:
    """Print a piece of an answer that is still being written to stdout, at once."""
    if sys.stdout is not None:
        sys.stdout.write(_encodable(visible(text), sys.stdout))
        sys.stdout.flush()


def end_pieces(text: str, *, ends_line: bool) -> None:
    """End what `print_piece` has printed. text: all of it, for the log. ends_line: whether the line is not over yet."""
    _add_to_log(visible(text))
    if ends_line:
        print_piece("\n")


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Printing to a program that reads no further (`ochat inspect ... | head`) ends the block and is not a failure."""
    try:
        yield
        flush_results()
    except BrokenPipeError:
        sys.stdout = None  # so that Python does not complain when it ends


def flush_results() -> None:
    """Write what is still in the buffer of stdout: a full disk behind it is an error before Python ends."""
    if sys.stdout is not None:  # closed by whoever started the command, or because its reader has left
        sys.stdout.flush()


def give_up_results() -> None:
    """Close stdout where it cannot be written: Python would try again when it ends, complain, and end with 120."""
    try:
        flush_results()
    except OSError:
        sys.stdout = None


def print_error(text: object) -> None:
    """Print the error that ends a command to stderr."""
    _add_to_log(visible(str(text)))
    print(_encodable(visible(str(text)), sys.stderr), file=sys.stderr)


def print_message(text: str) -> None:
    """Print lines that a person has to see to stderr, above the progress line if there is one. Any thread may call it.

    The text may contain users' data or a model's answers, so control characters, which a terminal would obey, are
    escaped. Lines that cannot be written (a full disk behind a log file) are lost, and end nothing.
    """
    _add_to_log(visible(text))
    with contextlib.suppress(OSError):
        tqdm.write(_encodable(visible(text), sys.stderr), file=sys.stderr)


def print_notice(text: str) -> None:
    """The same for lines that are only good to know, such as progress: `--quiet` leaves them out."""
    if _output.quiet:
        log_notice(text)
    else:
        print_message(text)


def log_notice(text: str) -> None:
    """Add lines to the log file alone: progress that a terminal shows in its own way."""
    _add_to_log(visible(text))


def _encodable(text: str, stream: TextIO) -> str:
    """The text with numbers in the place of characters that a terminal's encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)
