"""Class table and ledger of a prepared dataset as sections of a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.ledger import Ledger
from data_pipeline.look.tables import (
    CLASS_HEAD,
    CLASS_NOTE,
    class_rows,
    ledger_reasons,
    ledger_summary,
)
from data_pipeline.prepared.dataset import PreparedClass
from data_pipeline.text_rules import visible_line
from ochat_train.report.page import Cell, Section, text_cells
from ochat_train.report.tables import shown_condition

HEAVIEST_SHADE = 0.4  # of a weight or a share


def class_section(
    classes: Sequence[PreparedClass],
    *,
    more_head: Sequence[str] = (),
    more: Callable[[PreparedClass], Sequence[str]] = lambda row: (),
) -> Section:
    """The class table. more: further cells of a class, under `more_head`."""
    rows = []
    for row, texts in zip(classes, class_rows(classes, condition=shown_condition), strict=True):
        share = Cell(text=texts[-1], shade=HEAVIEST_SHADE * row.weight_share)
        rows.append([*text_cells(texts[:-1]), share, *text_cells(more(row))])
    return Section(heading="Classes", paragraphs=[CLASS_NOTE], head=[*CLASS_HEAD, *more_head], rows=rows)


def ledger_section(heading: str, ledger: Ledger) -> Section:
    """What was read, kept, dropped and cut, with the first examples."""
    rows = []
    for row in ledger_reasons(ledger):
        examples = "\n".join(map(visible_line, row.examples)) or "no example was kept"
        rows.append(text_cells([visible_line(row.reason), row.effect, f"{row.num_conversations:,}", examples]))
    summary = f"{ledger_summary(ledger)}."
    head = ["reason", "what", "conversations", "first examples"]
    return Section(heading=heading, paragraphs=[summary[0].upper() + summary[1:]], head=head, rows=rows)
