"""One self-contained HTML page of sections: text, tables, pictures. Everything that comes from data is
escaped, and goes through `text_rules.visible`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import cannot_write
from data_pipeline.text_rules import visible
from ochat_train.report.pictures import Picture
from ochat_train.system.durable import replace_text

_MOST_PHONE_COLUMNS = 5  # of a table
_MOST_PHONE_CHARACTERS = 60  # of a cell
_PHONE_LINE_CHARACTERS = 42  # side by side on 400 pixels


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table. shade: 0 to 1, colour of a heat map. outlined: with a frame."""

    text: str
    shade: float | None = None
    outlined: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of a marked text.

    kind: `control`, `prefix` or `content`. shade: 0 to 1, None for a piece that is not marked. label: small text before
    it. note: small text below it; a piece with a note gets its own box.
    """

    text: str
    kind: str
    shade: float | None = None
    label: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text with marked pieces, under its own heading; a long one scrolls in a window."""

    heading: str
    pieces: Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text and what was made of it. parts: (name, text), one under the other; a long text scrolls in a window."""

    heading: str
    parts: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page, in this order: text, pictures, legend, table, examples, passages, columns, preformatted text.

    pictures: made by pictures.py, the only markup that is not escaped. legend: its meaning, and a cell for each colour
    of the table or of passages. columns: tables side by side, each with its heading. folded: preformatted text is shown
    on a click.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    legend: tuple[str, Sequence[Cell]] | None = None
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = field(default_factory=tuple)
    examples: Sequence[Example] = ()
    passages: Sequence[Passage] = ()
    columns: Sequence[Section] = ()
    preformatted: str = ""
    folded: bool = False

    @property
    def has_big_table(self) -> bool:
        """Whether the table is too wide for a phone, which shows its rows one under the other then."""
        texts = [list(self.head), *([cell.text for cell in row] for row in self.rows)]
        longest = max((len(text) for row in texts[1:] for text in row), default=0)
        columns = zip_longest(*texts, fillvalue="")
        words = (max((len(word) for text in column for word in text.split()), default=0) for column in columns)
        narrowest = sum(length + 1 for length in words)  # a column is at least as wide as its longest word
        return (
            len(self.head) > _MOST_PHONE_COLUMNS
            or longest > _MOST_PHONE_CHARACTERS
            or narrowest > _PHONE_LINE_CHARACTERS
        )


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, subtitle=subtitle, sections=sections) + "\n"


def _shown(value: object) -> object:
    """What a page shows of a value: text without characters that people could not see. Pictures are markup of ours."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def require_place(out: Path, *, option: str, prepared_dirs: Sequence[Path]) -> None:
    """Raise UserError where a page could not be written, or would be inside a prepared dataset: before it is made.

    option: what the command line calls `out`. `ochat prepare` does not replace a prepared dataset that holds other
    files.
    """
    try:
        if out.is_dir() or not out.parent.is_dir():
            raise UserError(f"{option} {out}", "is a folder, or its parent folder does not exist", "name a file")
        if any(out.parent.resolve().is_relative_to(prepared_dir.resolve()) for prepared_dir in prepared_dirs):
            raise UserError(
                f"{option} {out}",
                "is inside the prepared dataset, which may hold no other file",
                "name a file elsewhere",
            )
    except OSError as error:
        raise cannot_write(out, error, option=option) from None


def write_page(out: Path, page: str, *, option: str) -> None:
    """Write a page into a place that `require_place` allows. Raises UserError where it cannot be written."""
    try:
        replace_text(out, page)
    except OSError as error:
        raise cannot_write(out, error, option=option) from None


def text_cells(values: Sequence[str]) -> list[Cell]:
    """Plain cells."""
    return [Cell(text=value) for value in values]
