"""How much disk a checkpoint takes."""

from __future__ import annotations

import math

from ochat_train.optimizer.size import STATE_SIZES

_MARGIN_BYTES = 1 << 20  # of every rank: names, settings and random number states beside the tensors


def checkpoint_bytes(
    num_parameters: int, *, zero_stage: int, bfloat16: bool, num_ranks: int, states: str = "float32"
) -> int:
    """Size of a checkpoint: AdamW's two moments and what is kept of master weights, the tensors that ZeRO updates, and
    the weights. states: `optimizer.states`.
    """
    width, size = (2 if bfloat16 else 4), STATE_SIZES[states]
    per_parameter = size.moments
    if zero_stage or bfloat16:
        masters = size.masters if bfloat16 else 0.0
        per_parameter += masters + width if size.shares_weights else 4.0
    if zero_stage < 3:  # stage 3 has the weights only once
        per_parameter += width
    return math.ceil(num_parameters * per_parameter) + num_ranks * _MARGIN_BYTES
