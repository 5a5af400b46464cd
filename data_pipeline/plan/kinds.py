"""How the packs of steps are chosen: the values of `train.plan`. Without numpy, for recipes."""

from __future__ import annotations

from typing import Literal

# first: of runs that were begun before there was a choice. varied: other packs in each epoch, also with few
# conversations. balanced: that, and packs of like cost in each step.
PlanKind = Literal["first", "varied", "balanced"]
FIRST_PLAN: PlanKind = "first"
