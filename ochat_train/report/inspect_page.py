"""`ochat inspect --html`: a prepared dataset and some of its rows as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.look.prepared import Inspection, Selection, ShownRow
from data_pipeline.look.text import MOST_COLUMNS, count_in, length_bins
from data_pipeline.look.tokens import ShownToken, runs
from data_pipeline.text_rules import visible, visible_line
from ochat_train.report.data_sections import HEAVIEST_SHADE, class_section, ledger_section
from ochat_train.report.page import Cell, Passage, Piece, Section, render_page, require_place, write_page
from ochat_train.report.pictures import bar_chart
from ochat_train.report.tables import shown_condition

_LIGHTEST_SHADE = 0.06
_HOW_TO_READ = (
    "Boxed: control tokens. Italic: role prefixes with the condition, written by the template. Underlined: supervised "
    "text, with more colour where its weight is larger; the small number before it is the weight of each of its "
    "tokens. Plain: not supervised. Control characters are written as \\u001b."
)
_HOW_TO_READ_TOKENS = (
    " Every token has a box, with its id below. A character of several tokens is shown in the last of them, and ⋯ in "
    "the others."
)


def write_inspect_page(inspection: Inspection, selection: Selection, out: Path, *, with_tokens: bool) -> None:
    """Write the page. Raises UserError where the selection matches no row, or the page cannot be written."""
    require_place(out, option="--html", prepared_dirs=[inspection.prepared_dir])
    rows = [inspection.row(number) for number in inspection.select(selection)]
    manifest = inspection.manifest
    subtitle = (
        f"{inspection.prepared_dir}: split {inspection.split}, {len(inspection.data):,} rows; template "
        f"{manifest.template}, inference condition {shown_condition(manifest.inference_condition)}"
    )
    sections = [
        class_section(manifest.classes),
        *_lengths(inspection.class_lengths()),
        ledger_section("Ledger", manifest.ledger),
        _rows(rows, heaviest=inspection.heaviest_weight, with_tokens=with_tokens),
    ]
    page = render_page("Prepared dataset", visible(subtitle), sections)
    write_page(out, page, option="--html")


def _lengths(class_lengths: Mapping[str, np.ndarray]) -> Iterator[Section]:
    everything = np.concatenate(list(class_lengths.values()))
    bins = length_bins(everything)
    names = [f"{low:,} to {high:,}" for low, high in bins]
    text = f"Mean {everything.mean():,.0f}, median {np.median(everything):,.0f}, longest {everything.max():,} tokens."
    chart = bar_chart(names, count_in(everything, bins), [None] * len(bins), unit="rows of this many tokens")
    yield Section(heading="Lengths", paragraphs=[text], pictures=[chart])
    if not 1 < len(class_lengths) <= MOST_COLUMNS:
        return
    columns = [_shares(lengths, bins) for lengths in class_lengths.values()]
    rows = [[Cell(text=name), *cells] for name, *cells in zip(names, *columns, strict=True)]
    head = ["tokens", *(visible(name) for name in class_lengths)]
    yield Section(
        heading="Lengths of each class", paragraphs=["Rows, and their share of the class."], head=head, rows=rows
    )


def _shares(lengths: np.ndarray, bins: Sequence[tuple[int, int]]) -> list[Cell]:
    counts = count_in(lengths, bins)
    return [Cell(text=f"{n:,} ({n / len(lengths):.0%})", shade=HEAVIEST_SHADE * n / len(lengths)) for n in counts]


def _rows(rows: Sequence[ShownRow], *, heaviest: float, with_tokens: bool) -> Section:
    pieces = _token_pieces if with_tokens else _run_pieces
    passages = [Passage(heading=_heading(row), pieces=list(pieces(row.tokens, heaviest))) for row in rows]
    how_to_read = _HOW_TO_READ + _HOW_TO_READ_TOKENS if with_tokens else _HOW_TO_READ
    legend = ("Weight of a token", _weight_legend(heaviest))
    return Section(heading="Rows", paragraphs=[how_to_read], legend=legend, passages=passages)


def _weight_legend(heaviest: float) -> list[Cell]:
    """What the colours of supervised text mean."""
    weights = [heaviest * share for share in (0.0, 0.25, 0.5, 1.0)]
    return [Cell(text=f"{weight:.3g}", shade=_shade(weight, heaviest)) for weight in weights]


def _heading(row: ShownRow) -> str:
    return visible_line(
        f"Row {row.number}: {row.class_name}, under {shown_condition(row.condition)}; {len(row.tokens):,} tokens, "
        f"{row.num_supervised:,} supervised, weights add up to {row.weight_sum:.4g}; {row.conversation_id}"
    )


def _run_pieces(tokens: Sequence[ShownToken], heaviest: float) -> Iterator[Piece]:
    last_weight = 0.0
    for run in runs(tokens):
        label = f"{run.weight:.4g}" if run.weight not in (0.0, last_weight) else ""
        last_weight = run.weight
        yield Piece(text=visible(run.text), kind=run.kind, shade=_shade(run.weight, heaviest), label=label)


def _token_pieces(tokens: Sequence[ShownToken], heaviest: float) -> Iterator[Piece]:
    last_weight = 0.0
    for token in tokens:
        label = f"{token.weight:.4g}" if token.weight not in (0.0, last_weight) else ""
        last_weight = token.weight
        text = visible_line(token.text) or "⋯"
        yield Piece(text=text, kind=token.kind, shade=_shade(token.weight, heaviest), label=label, note=str(token.id))


def _shade(weight: float, heaviest: float) -> float | None:
    """Single messages that weigh more than the heaviest conversation on average get that conversation's shade."""
    return _LIGHTEST_SHADE + (HEAVIEST_SHADE - _LIGHTEST_SHADE) * min(1.0, weight / heaviest) if weight else None
