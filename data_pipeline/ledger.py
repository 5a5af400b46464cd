"""The account of a preparation: what was read, kept, cut and left out, why, and where to look."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_EXAMPLES_PER_REASON = 5


@dataclass(kw_only=True)
class Ledger:
    """Counts of conversations. `num_read == num_kept + sum(dropped.values())` always holds.

    truncated: kept, cut to `max_length_tokens`. tail_trimmed: kept, without the tokens after the last supervised one.
    condition_left_out: kept, prompted without its condition (`data.condition_dropout`).
    text_not_recovered: held out, but not in the condition matrix: of its tokens alone the text cannot be had back
    exactly.
    bad: the part of `dropped` that could not be read as conversations (the rest was dropped by a rule of the recipe).
    examples: reason -> `place: message` of the first few.
    """

    num_read: int = 0
    num_kept: int = 0
    num_truncated: int = 0
    num_tail_trimmed: int = 0
    num_control_text_kept_plain: int = 0
    num_condition_left_out: int = 0
    num_text_not_recovered: int = 0
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
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES_PER_REASON:
            examples.append(f"{place}: {message}")

    def add(self, other: Ledger) -> None:
        """Add the counts of a later part."""
        self.num_read += other.num_read
        self.num_kept += other.num_kept
        self.num_truncated += other.num_truncated
        self.num_tail_trimmed += other.num_tail_trimmed
        self.num_control_text_kept_plain += other.num_control_text_kept_plain
        self.num_condition_left_out += other.num_condition_left_out
        self.num_text_not_recovered += other.num_text_not_recovered
        self.dropped += other.dropped
        self.bad += other.bad
        for reason, examples in other.examples.items():
            for example in examples:
                place, _, message = example.partition(": ")
                self.note(reason, place, message)

    def as_json(self) -> dict[str, Any]:
        """The `conversations` object of `ochat prepare --json`."""
        assert self.num_read == self.num_kept + sum(self.dropped.values()), "a conversation was lost"
        return {
            "read": self.num_read,
            "kept": self.num_kept,
            "truncated": self.num_truncated,
            "tail_trimmed": self.num_tail_trimmed,
            "control_text_kept_plain": self.num_control_text_kept_plain,
            "condition_left_out": self.num_condition_left_out,
            "text_not_recovered": self.num_text_not_recovered,
            "dropped": dict(sorted(self.dropped.items())),
            "examples": {reason: list(examples) for reason, examples in sorted(self.examples.items())},
        }
