"""`ochat inspect` as text for a terminal, a pipe or a file. Text from data goes through `text_rules.visible`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tqdm.utils import disp_len

from data_pipeline.ledger import Ledger
from data_pipeline.look.prepared import Inspection, Selection, ShownRow
from data_pipeline.look.tables import CLASS_HEAD, class_rows, ledger_reasons, ledger_summary
from data_pipeline.look.tokens import ShownToken, runs
from data_pipeline.prepared.dataset import PreparedClass
from data_pipeline.text_rules import quoted, visible, visible_line

_RESET, _PLAIN, _CONTROL, _PREFIX = "\033[0m", "\033[2m", "\033[35m", "\033[36m"
_SUPERVISED_CONTROL = "\033[1;4;35m"
_GREENS = (22, 28, 34, 40, 46)  # darker to brighter: lighter to heavier weight
_BAR = 40  # characters of the longest bar of a histogram
MOST_COLUMNS = 6  # classes that lengths are shown for side by side


def report(inspection: Inspection, selection: Selection, *, color: bool, with_tokens: bool) -> Iterator[str]:
    """Lines of the whole report: class table, lengths, ledger, and the selected rows with their tokens."""
    rows = inspection.select(selection)
    manifest = inspection.manifest
    condition = quoted(manifest.inference_condition)
    yield visible_line(f"{inspection.prepared_dir}: template {manifest.template}, inference condition {condition}")
    yield ""
    yield class_table(manifest.classes)
    yield ""
    yield lengths_text(inspection.class_lengths(), split=inspection.split)
    yield ""
    yield ledger_text(manifest.ledger)
    yield ""
    yield _token_table_legend() if with_tokens else _legend(color)
    for number in rows:
        row = inspection.row(number)
        yield ""
        yield _row_head(row)
        if with_tokens:
            yield from _token_table(row.tokens)
        else:
            yield _marked(row.tokens, heaviest=inspection.heaviest_weight, color=color)


def class_table(classes: Sequence[PreparedClass]) -> str:
    """The classes of a prepared dataset as a table; `effective`: PreparedClass.effective_conversations."""
    return "\n".join(aligned((CLASS_HEAD, *class_rows(classes))))


def ledger_text(ledger: Ledger) -> str:
    """What a preparation read, kept, cut and left out, with the first examples of each."""
    lines = [ledger_summary(ledger)]
    for row in ledger_reasons(ledger):
        lines.append(
            f"  {'dropped' if row.is_dropped else 'kept'}, {visible_line(row.reason)}: {row.num_conversations:,}"
        )
        lines += [f"    {visible_line(example)}" for example in row.examples]
    return "\n".join(lines)


def length_bins(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of lengths (both ends included) that double, from the shortest to the longest that holds a row."""
    edges = [0] + [2**i for i in range(4, max(4, int(lengths.max()).bit_length()) + 1)]
    counts, _ = np.histogram(lengths, bins=edges)
    holding = np.flatnonzero(counts)
    bins = list(zip(edges, (edge - 1 for edge in edges[1:]), strict=False))
    return bins[int(holding[0]) : int(holding[-1]) + 1]


def count_in(lengths: np.ndarray, bins: Sequence[tuple[int, int]]) -> list[int]:
    """How many lengths fall into each range."""
    return [int(np.count_nonzero((lengths >= low) & (lengths <= high))) for low, high in bins]


def lengths_text(class_lengths: Mapping[str, np.ndarray], *, split: str) -> str:
    """Lengths of a split's rows: their middle and ends, and a histogram, of all and of each class."""
    everything = np.concatenate(list(class_lengths.values()))
    shown = {visible_line(name): lengths for name, lengths in class_lengths.items()}
    facts: list[tuple[str, ...]] = [(f"lengths in {split}", "rows", "mean", "median", "longest")]
    for name, lengths in {"all classes": everything, **(shown if len(shown) > 1 else {})}.items():
        numbers = (len(lengths), lengths.mean(), np.median(lengths), lengths.max())
        facts.append((name, *(f"{number:,.0f}" for number in numbers)))
    bins = length_bins(everything)
    columns = {"all": count_in(everything, bins)}
    if 1 < len(shown) <= MOST_COLUMNS:
        columns |= {name: count_in(lengths, bins) for name, lengths in shown.items()}
    most = max(columns["all"])
    histogram: list[tuple[str, ...]] = [("length in tokens", "", *columns)]
    for index, (low, high) in enumerate(bins):
        counts = [column[index] for column in columns.values()]
        bar = "#" * math.ceil(_BAR * counts[0] / most)
        histogram.append((f"{low:,} to {high:,}", bar, *(f"{count:,}" for count in counts)))
    return "\n".join([*aligned(facts), "", *aligned(histogram)])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells with every column as wide as its widest cell on a terminal, where a Chinese character takes two
    places.
    """
    widths = [max(map(disp_len, column)) for column in zip(*lines, strict=True)]
    filled = (
        (cell + " " * (width - disp_len(cell)) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return ["  ".join(cells).rstrip() for cells in filled]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, columns aligned. Cells may hold names of users' data: what is not visible is escaped."""
    return "\n".join(aligned([[visible_line(cell) for cell in line] for line in (head, *rows)]))


def _row_head(row: ShownRow) -> str:
    return (
        f"row {row.number}  class {visible_line(row.class_name)}  condition {quoted(row.condition)}  "
        f"{len(row.tokens):,} tokens, {row.num_supervised:,} supervised, weights add up to {row.weight_sum:.4g}  "
        f"id {visible_line(row.conversation_id)}"
    )


def _legend(color: bool) -> str:
    if not color:
        return "tokens: {role prefix}, «control token», [weight|supervised text], the rest is not supervised"
    names = ("light", ".", ".", ".", "heavy")
    scale = "".join(f"\033[38;5;{green}m{name}{_RESET} " for green, name in zip(_GREENS, names, strict=True))
    return (
        f"tokens: {_PREFIX}role prefix{_RESET}, {_CONTROL}control token{_RESET} "
        f"({_SUPERVISED_CONTROL}supervised{_RESET}), {_PLAIN}not supervised{_RESET}, supervised: {scale}"
    )


def _marked(tokens: Sequence[ShownToken], *, heaviest: float, color: bool) -> str:
    """A row's text with its kinds of tokens marked; the plain form shows every weight as a number."""
    if color:
        return "".join(_style(run.kind, run.weight / heaviest) + visible(run.text) + _RESET for run in runs(tokens))
    pieces = []
    open_weight = 0.0
    for run in runs(tokens):
        if run.weight != open_weight:
            pieces.append(("]" if open_weight else "") + (f"[{run.weight:.4g}|" if run.weight else ""))
            open_weight = run.weight
        text = visible(run.text)
        pieces.append({"control": f"«{text}»", "prefix": f"{{{text}}}", "content": text}[run.kind])
    return "".join(pieces) + ("]" if open_weight else "")


def _style(kind: str, share: float) -> str:
    if kind == "control":
        return _SUPERVISED_CONTROL if share else _CONTROL
    if not share:
        return _PREFIX if kind == "prefix" else _PLAIN
    return f"\033[38;5;{_GREENS[min(len(_GREENS) - 1, int(share * len(_GREENS)))]}m"


def _token_table_legend() -> str:
    return 'tokens: one a line; `""`: the beginning of a character of several tokens, which is shown with its last one'


def _token_table(tokens: Sequence[ShownToken]) -> Iterator[str]:
    yield f"{'place':>6} {'id':>7} {'weight':>7}  kind     text"
    for place, token in enumerate(tokens):
        yield f'{place:>6} {token.id:>7} {token.weight:>7.4g}  {token.kind:<7}  "{visible_line(token.text)}"'
