"""What a chat writes: answers to standard output, everything else beside them on a terminal, and to standard error in a
pipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from data_pipeline.errors import UserError
from data_pipeline.text_rules import visible, visible_line
from ochat_train.system.messages import end_pieces, print_marked, print_message, print_piece, print_result

_BOLD, _DIM, _RED, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True, kw_only=True)
class Screen:
    """is_terminal: whether a person sits before it; otherwise lines come from a file or another program."""

    is_terminal: bool
    has_color: bool

    def piece(self, text: str) -> None:
        """A piece of an answer."""
        print_piece(text)

    def end_answer(self, text: str) -> None:
        """The end of an answer. text: all of it."""
        end_pieces(text, ends_line=not (self.is_terminal and text.endswith("\n")))

    def heading(self, text: str) -> None:
        """Whose answer follows."""
        print_marked(self._marked(f"[{visible_line(text)}]", _BOLD))

    def say(self, text: str) -> None:
        """An answer of the program itself."""
        print_result(text)

    def note(self, text: str) -> None:
        """A fact that an answer does not need."""
        if self.is_terminal:
            print_marked(self._marked(visible(text), _DIM))
        else:
            print_message(text)

    def problem(self, text: str) -> None:
        """What did not work. In a pipe it ends the program, since nobody is there to do something about it."""
        if not self.is_terminal:
            raise UserError("chat", text)
        print_marked(self._marked(visible(text), _RED))

    def lines(self, prompt: Iterator[str]) -> Iterator[str]:
        """The lines that a person types, up to Ctrl-D. prompt: what is shown before each."""
        for shown in prompt:
            try:
                line = _typed(self._marked(f"{visible_line(shown)}> ", _BOLD, typed=True))
            except EOFError:
                print_result("")
                return
            except KeyboardInterrupt:
                print_result("")
                self.note("Ctrl-D or /quit leaves")
                continue
            yield line

    def _marked(self, text: str, mark: str, *, typed: bool = False) -> str:
        """A text in a style. typed: before what is typed, where readline must know what takes no place."""
        if not self.has_color:
            return text
        before, after = (f"\x01{mark}\x02", f"\x01{_PLAIN}\x02") if typed else (mark, _PLAIN)
        return f"{before}{text}{after}"


def _typed(prompt: str) -> str:
    """A line; one that ends in `\\` continues with the next."""
    parts = [input(prompt)]
    while parts[-1].endswith("\\"):
        parts[-1] = parts[-1][:-1]
        parts.append(input("... "))
    return "\n".join(parts)


def piped_lines(stream: TextIO) -> Iterator[str]:
    """The lines of a file or another program. Raises UserError for bytes that are not text."""
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise UserError("standard input", f"is not {error.encoding}: {error.reason}") from None
