"""What the classes of a dataset hold: conversations, tokens and weights, added up chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_pipeline.classes.tagging import ConversationClass
from data_pipeline.errors import UserError
from data_pipeline.prepare.chunk_result import ChunkResult
from data_pipeline.prepared.dataset import PreparedClass
from data_pipeline.text_rules import quoted


@dataclass(kw_only=True)
class WeightSums:
    """Weights of conversations: their range, and how many equally weighted ones would count as much."""

    smallest: float | None = None
    largest: float | None = None
    total: float = 0.0
    squares: float = 0.0

    def add(self, weights: np.ndarray) -> None:
        """Add float64[conversations]."""
        if len(weights):
            self.smallest = float(min(weights.min(), np.inf if self.smallest is None else self.smallest))
            self.largest = float(max(weights.max(), -np.inf if self.largest is None else self.largest))
            self.total, self.squares = self.total + float(weights.sum()), self.squares + float((weights**2).sum())

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2."""
        return self.total**2 / self.squares if self.squares else 0.0


@dataclass(kw_only=True)
class ClassCounts:
    """Ids of classes and of conditions in order of appearance (the recipe's first), and what each class holds."""

    table: dict[str, ConversationClass]
    ids: dict[str, int] = field(default_factory=dict)
    condition_ids: dict[str, int] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # conversations, tokens, supervised tokens, weight
    weights: dict[str, WeightSums] = field(default_factory=dict)  # of conversations

    def __post_init__(self) -> None:
        for name in self.table:
            self._register(name)

    def _register(self, name: str) -> None:
        self.ids[name] = len(self.ids)
        self.counts[name] = np.zeros(4)
        self.weights[name] = WeightSums()
        self.condition_id(self.table[name].condition)

    def condition_id(self, condition: str) -> int:
        """The id of a condition; a new condition gets the next one."""
        return self.condition_ids.setdefault(condition, len(self.condition_ids))

    def add(self, result: ChunkResult, kept: np.ndarray) -> pa.RecordBatch:
        """Count the kept rows (bool[rows]); returns all rows with their class and condition ids."""
        for name, condition in result.conditions.items():
            known = self.table.setdefault(name, ConversationClass(name=name, condition=condition, weight=None))
            if known.condition != condition:
                raise UserError(
                    f"data.classes.{name}",
                    f"the class has condition {quoted(known.condition)}, but OpenChat rows whose condition is "
                    f"{quoted(condition)} have no `class`: rename the class or give that source a `class`",
                )
            if name not in self.ids:
                self._register(name)
        class_ids = np.array([self.ids[row.class_name] for row in result.rows], dtype=np.int32)
        numbers = [result.columns.column(c).to_numpy() for c in ("num_tokens", "num_supervised_tokens", "weight_sum")]
        for name in {row.class_name for row in result.rows}:
            mask = (class_ids == self.ids[name]) & kept
            self.counts[name] += [np.count_nonzero(mask), *(column[mask].sum() for column in numbers)]
            self.weights[name].add(numbers[2][mask] / numbers[1][mask])
        condition_ids = [self.condition_id(row.condition) for row in result.rows]
        rows = result.columns.add_column(1, "class_id", pa.array(class_ids))
        return rows.add_column(2, "condition_id", pa.array(condition_ids, pa.int32()))

    def prepared(self) -> list[PreparedClass]:
        """The class table with counts. Classes without a conversation stay in it, so that a user notices them."""
        total_weight = sum(counts[3] for counts in self.counts.values())
        return [
            PreparedClass(
                name=name,
                condition=self.table[name].condition,
                weight=self.table[name].weight,
                conversations=int(counts[0]),
                tokens=int(counts[1]),
                supervised_tokens=int(counts[2]),
                weight_share=float(counts[3] / total_weight) if total_weight else 0.0,
                smallest_weight=self.weights[name].smallest,
                largest_weight=self.weights[name].largest,
                effective_conversations=self.weights[name].effective,
            )
            for name, counts in self.counts.items()
        ]
