"""The measured constants behind the memory plan: how much memory can be used, and what each setting costs in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ochat_train.system.sizes import GIB


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A measured constant. what: its meaning and unit. source: where the number comes from."""

    value: float
    what: str
    source: str


_TWO_H100S = "docs/development/performance-log.md, 24 and 32 layers on two H100s"

# Times are shares of a step in bfloat16 that recomputes, reduces and adds up nothing.
COSTS: Mapping[str, Cost] = {
    "usable_ratio": Cost(
        value=0.97,
        what="of the free GPU memory; the rest is lost between blocks of the allocator",
        source="docs/performance.md, What is chosen",
    ),
    "nccl_bytes": Cost(
        value=1.0 * GIB,
        what="bytes of the communication library's buffers, outside the allocator",
        source="an allowance; with it the peaks of two GPUs fit (tests/ochat_train/planning/test_memory_plan.py)",
    ),
    "most_tokens": Cost(
        value=16_384,
        what="tokens of a micro-batch; larger ones are not faster",
        source="docs/development/performance-log.md, two packs per micro-batch",
    ),
    "full": Cost(
        value=0.22,
        what="recomputing one layer, as a share of that layer's time",
        source=_TWO_H100S,
    ),
    "none": Cost(
        value=0.01,
        what="keeping everything in a compiled layer: writing and reading it takes as long as recomputing it",
        source="docs/development/performance-log.md, `matmuls` instead of `none`",
    ),
    "stage_0": Cost(value=0.0, what="ZeRO-0: only adds up gradients", source="counted by `float32`, `bfloat16`"),
    "stage_1": Cost(value=0.0, what="ZeRO-1: only adds up gradients", source="counted by `float32`, `bfloat16`"),
    "stage_2": Cost(value=0.12, what="ZeRO-2: reduces and adds up gradients in every micro-batch", source=_TWO_H100S),
    "stage_3": Cost(value=0.19, what="ZeRO-3: also gathers the weights in every micro-batch", source=_TWO_H100S),
    "float32": Cost(
        value=430,
        what="adding up float32 gradients once takes as long as computing so many tokens, whatever the model",
        source="docs/performance.md, 5 % with packs of 8,192 tokens",
    ),
    "bfloat16": Cost(
        value=215,
        what="adding up bfloat16 gradients once takes as long as computing so many tokens, whatever the model",
        source="docs/performance.md, 2.6 % with packs of 8,192 tokens",
    ),
    "float8": Cost(
        value=1.33,
        what="factor of all these shares in float8, where a step takes three quarters of the time",
        source="docs/performance.md, whole steps",
    ),
    "frozen": Cost(
        value=1.47,
        what="factor of all these shares with an adapter, where weights of the base need no gradient: a step takes two "
        "thirds of the time",
        source="docs/adapters.md, speed: a step with every layer recomputed takes 1.32 times as long",
    ),
    "adapter_matmuls": Cost(
        value=0.046,
        what="`matmuls` with an adapter: products with B and the MLP's product are computed again, as a share of a "
        "step; not multiplied by `frozen`",
        source="docs/adapters.md, speed",
    ),
    "dequantised": Cost(
        value=1.0,
        what="copies of the largest module's weights that are in the model's dtype at a time, with a base in 4 bits",
        source="counted: each is made for one product (adapter/nf4.py); peaks are 0.5 to 0.7 GiB below the plan",
    ),
}
