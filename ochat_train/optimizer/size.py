"""Bytes of optimizer states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ochat_train.optimizer.codes import BLOCK


@dataclass(frozen=True, kw_only=True)
class StateSize:
    """Bytes of each parameter beside its weight and gradient. text: what they are, for people.

    masters: what a bfloat16 weight lacks of the number that is updated; a float32 weight lacks nothing.
    moments: both of AdamW. shares_weights: the weights themselves are updated, not a copy.
    """

    masters: float
    moments: float
    shares_weights: bool
    text: str

    def per_parameter(self, *, bfloat16: bool) -> float:
        """Bytes of each parameter. bfloat16: whether the weights are."""
        return self.moments + (self.masters if bfloat16 else 0.0)


STATE_SIZES: Mapping[str, StateSize] = {
    "float32": StateSize(masters=4.0, moments=8.0, shares_weights=False, text="float32 masters and moments"),
    "bfloat16": StateSize(
        masters=1.0,
        moments=4.0,
        shares_weights=True,
        text="masters of 24 bits (bfloat16 weight and 8 bits), bfloat16 moments",
    ),
    "8bit": StateSize(
        masters=1.0,
        moments=2.0 + 2 * 4.0 / BLOCK,
        shares_weights=True,
        text="masters of 24 bits (bfloat16 weight and 8 bits), 8-bit moments",
    ),
}
"""By `optimizer.states`."""
