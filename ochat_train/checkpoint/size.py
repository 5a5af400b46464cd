"""How much disk a checkpoint takes."""

from __future__ import annotations

_MARGIN_BYTES = 1 << 20  # of every rank: names, settings and random number states beside the tensors


def checkpoint_bytes(num_parameters: int, *, zero_stage: int, bfloat16: bool, num_ranks: int) -> int:
    """Size of a checkpoint: AdamW's two float32 moments, a float32 master copy under ZeRO or bfloat16, and the
    weights.
    """
    per_parameter = 12 if zero_stage or bfloat16 else 8
    if zero_stage < 3:  # stage 3 has the weights as master copies only
        per_parameter += 2 if bfloat16 else 4
    return num_parameters * per_parameter + num_ranks * _MARGIN_BYTES
