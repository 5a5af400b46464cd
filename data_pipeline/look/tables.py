"""The class table and the ledger of a prepared dataset as rows of text: terminals, pages and model cards show these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipeline.ledger import Ledger
from data_pipeline.prepared.dataset import PreparedClass
from data_pipeline.text_rules import quoted, visible_line

CLASS_HEAD = ("class", "condition", "weight", "conversations", "effective", "tokens", "supervised", "weight share")
CLASS_NOTE = (
    "All splits together. Weight share: the class's part of the loss. Effective: (sum of weights)² / sum of squares."
)


def class_rows(
    classes: Sequence[PreparedClass],
    *,
    name: Callable[[str], str] = visible_line,
    condition: Callable[[str], str] = quoted,
) -> list[tuple[str, ...]]:
    """A row for each class, under CLASS_HEAD. name, condition: how those two are written."""
    return [
        (
            name(row.name),
            condition(row.condition),
            weight_text(row),
            f"{row.conversations:,}",
            f"{row.effective_conversations:,.0f}",
            f"{row.tokens:,}",
            f"{row.supervised_tokens:,}",
            f"{row.weight_share:.1%}",
        )
        for row in classes
    ]


def weight_text(row: PreparedClass) -> str:
    """A class's weight, or the range of its conversations' weights."""
    if row.weight is not None:
        return f"{row.weight:.4g}"
    if row.smallest_weight is None or row.largest_weight is None:
        return "in rows"
    same = math.isclose(row.smallest_weight, row.largest_weight, rel_tol=1e-6)
    return f"{row.smallest_weight:.4g}" + ("" if same else f" to {row.largest_weight:.4g}")


@dataclass(frozen=True, kw_only=True)
class LedgerReason:
    """Why conversations were left out, or lost a part. examples: `place: message` of the first few."""

    reason: str
    is_dropped: bool
    num_conversations: int
    examples: Sequence[str]

    @property
    def effect(self) -> str:
        """What happened to the conversations, in a word."""
        return "dropped" if self.is_dropped else "kept, cut"


_ROWS_ADDED = "rows added"


def ledger_summary(ledger: Ledger) -> str:
    """The account in one line: what was read, kept and dropped, and what was changed of the kept ones."""
    read, kept, dropped = ledger_totals(ledger)
    counts = ", ".join(f"{what} {count:,}" for what, count in ledger_counts(ledger) if what != _ROWS_ADDED)
    added = f" + {ledger.rows_added:,} rows added" if ledger.rows_added else ""
    return f"read {read:,}{added} = kept {kept:,} + dropped {dropped:,}; {counts}"


def ledger_totals(ledger: Ledger) -> tuple[int, int, int]:
    """Conversations that were read, kept and dropped; the first, with `rows_added`, is the sum of the others."""
    return ledger.read, ledger.kept, ledger.num_dropped


def ledger_counts(ledger: Ledger) -> list[tuple[str, int]]:
    """What was changed of the conversations that were kept, and how many of them."""
    return [
        ("truncated", ledger.truncated),
        ("unsupervised tail trimmed", ledger.tail_trimmed),
        *([("empty end cut", ledger.empty_end_cut)] if ledger.empty_end_cut else []),
        ("control strings kept as text", ledger.control_text_kept_plain),
        ("condition left out", ledger.condition_left_out),
        *(((_ROWS_ADDED, ledger.rows_added),) if ledger.rows_added else ()),
        *((("answers left out", ledger.answers_left_out),) if ledger.answers_left_out else ()),
    ]


def ledger_reasons(ledger: Ledger) -> list[LedgerReason]:
    """Reasons with at least one conversation: dropped ones first, then those that were kept with a part missing."""
    noted = {
        "truncated": ledger.truncated,
        "tail_trimmed": ledger.tail_trimmed,
        "empty_end_cut": ledger.empty_end_cut,
        "text_not_recovered": ledger.text_not_recovered,
        "row_per_answer": ledger.rows_added,
        "answers_left_out": ledger.answers_left_out,
    }
    counts = [(reason, count, True) for reason, count in ledger.dropped.items()]
    counts += [(reason, count, False) for reason, count in noted.items() if count]
    return [
        LedgerReason(
            reason=reason,
            is_dropped=is_dropped,
            num_conversations=count,
            examples=ledger.examples.get(reason, []),
        )
        for reason, count, is_dropped in counts
    ]
