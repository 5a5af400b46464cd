"""Marks that say how much is learned from a message, under the names that trainers give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.errors import RowError
from data_pipeline.formats.values import weight_of
from data_pipeline.text_rules import shown

Mark = tuple[str, float | None]  # its name, and the weight that it gives
# name -> whether a true (or larger) value means more learning. docs/data_formats.md says which trainer uses which.
MARKS: Mapping[str, bool] = {
    "weight": True,
    "loss": True,
    "loss_weight": True,
    "loss_scale": True,
    "loss_mask": True,
    "output_with_loss": True,
    "train": True,
    "training": True,
    "trainable": True,
    "train_on": True,
    "train_on_turn": True,
    "is_trainable": True,
    "compute_loss": True,
    "masked": False,
    "is_masked": False,
    "ignore": False,
    "ignore_loss": False,
    "no_loss": False,
    "skip_loss": False,
}
UNCLEAR_MARKS = frozenset(("mask", "masks"))  # 1 is "hidden" for some and "learned from" for others
ROW_MARKS = frozenset(("loss_mask", "loss_masks", "weights", "loss_weights", "train_mask"))  # a list, one per message


def mark_weight(name: str, value: Any, where: str, *, more_is_more: bool | None) -> float | None:
    """The weight that a mark gives, None where it is null.

    more_is_more: the meaning of a name that is not in MARKS. Raises RowError for a value that cannot be a weight.
    """
    if value is None:
        return None
    if name in UNCLEAR_MARKS and more_is_more is None:
        raise RowError(
            "invalid_weight",
            f"{where}.{name}: {shown(value)} may mean `hidden` or `learned from`; say which with "
            f"`fields: {{masked: {name}}}` or `fields: {{weight: {name}}}`",
        )
    if more_is_more is None:
        more_is_more = MARKS[name]
    if isinstance(value, bool) and name != "weight":
        return float(value == more_is_more)
    if more_is_more:
        return weight_of(value, where, name)
    if value in (0, 1) and not isinstance(value, bool | str):
        return 1.0 - float(value)
    raise RowError("invalid_weight", f"{where}.{name}: expected true or false, found {shown(value)}; write one")


def joined_marks(found: Iterable[Mark], where: str) -> float | None:
    """The one weight of a message that may have several marks. Raises RowError where they say different things."""
    weight, first = None, ""
    for name, value in found:
        if value is None:
            continue
        if weight is not None and value != weight:
            raise RowError(
                "invalid_weight", f"{where}: `{first}` says weight {weight:g} and `{name}` {value:g}; keep one of them"
            )
        weight, first = value, name
    return weight
