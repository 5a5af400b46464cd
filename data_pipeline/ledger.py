"""The ledger of a preparation: what was read, kept, cut and left out, why, and where to look.

A `Tally` counts; the `Ledger` is its result, which the manifest holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

MAX_EXAMPLES_PER_REASON = 5


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Counts of conversations. `read + rows_added == kept + sum(dropped.values())` always holds.

    truncated: kept, cut to `max_length_tokens`. empty_end_cut: kept, without the empty messages at its end.
    tail_trimmed: kept, without the tokens after the last supervised one.
    control_text_kept_plain: kept, with text that spells a control token. condition_left_out: kept, prompted without its
    condition (`data.condition_dropout`). text_not_recovered: held out, but not in the condition matrix, because its
    tokens do not give its exact text. rows_added: rows beyond the first of a conversation that became one row for each
    answer, as its template rewrites what came before (each is counted as kept or dropped). answers_left_out: answers
    with a weight that are not trained on for the same reason (`model.rewritten_history: last_answer`). dropped: reason
    -> conversations. examples: reason -> `place: message` of the first few.

    The names are those of the JSON: `conversations` of `ochat prepare --json`, `ledger` of the manifest.
    """

    read: int
    kept: int
    truncated: int
    tail_trimmed: int
    control_text_kept_plain: int
    condition_left_out: int
    text_not_recovered: int = 0  # older prepared datasets lack it
    rows_added: int = 0  # likewise
    answers_left_out: int = 0  # likewise
    empty_end_cut: int = 0  # as well
    dropped: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]

    @property
    def num_dropped(self) -> int:
        """Conversations that were left out, for whatever reason."""
        return sum(self.dropped.values())


@dataclass(kw_only=True)
class Tally:
    """Counts while rows are read. Whoever reads a row counts it as read; whoever decides about it as kept or dropped.

    bad: the part of `dropped` that could not be read as conversations (a rule of the recipe dropped the rest). The
    other counts: see `Ledger`.
    """

    num_read: int = 0
    num_kept: int = 0
    num_truncated: int = 0
    num_tail_trimmed: int = 0
    num_control_text_kept_plain: int = 0
    num_condition_left_out: int = 0
    num_text_not_recovered: int = 0
    num_rows_added: int = 0
    num_answers_left_out: int = 0
    num_empty_end_cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, place: str, message: str, *, bad: bool) -> None:
        """Count one conversation that is left out."""
        self.dropped[reason] += 1
        if bad:
            self.bad[reason] += 1
        self.note(reason, place, message)

    def note(self, reason: str, place: str, message: str) -> None:
        """Keep an example, if there are not enough of this kind."""
        self._keep(reason, [f"{place}: {message}"])

    def _keep(self, reason: str, examples: Sequence[str]) -> None:
        kept = self.examples.setdefault(reason, [])
        kept += examples[: MAX_EXAMPLES_PER_REASON - len(kept)]

    def add(self, other: Tally) -> None:
        """Add the counts of a later part."""
        for name in self._count_names():
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped += other.dropped
        self.bad += other.bad
        for reason, examples in other.examples.items():
            self._keep(reason, examples)

    def result(self) -> Ledger:
        """The result, with reasons in alphabetical order."""
        num_rows = self.num_read + self.num_rows_added
        assert num_rows == self.num_kept + sum(self.dropped.values()), "a conversation was lost"
        counts = {name.removeprefix("num_"): getattr(self, name) for name in self._count_names()}
        examples = {reason: list(examples) for reason, examples in sorted(self.examples.items())}
        return Ledger(**counts, dropped=dict(sorted(self.dropped.items())), examples=examples)

    def _count_names(self) -> list[str]:
        return [f.name for f in fields(self) if f.name.startswith("num_")]
