"""The measured constants behind the memory plan: how much memory can be used, and what each setting costs in time.

Times are shares of a step in bfloat16 that recomputes, reduces and adds up nothing. Behind each constant is the page of
docs/ that has the measurement; `log` is development/performance-log.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from ochat_train.system.sizes import GIB

COSTS: Mapping[str, float] = {
    # of the free GPU memory; the rest is lost between blocks of the allocator (performance.md, What is chosen)
    "usable_ratio": 0.97,
    # bytes of the communication library's buffers, outside the allocator: an allowance, with which the peaks of two
    # GPUs fit (tests/ochat_train/planning/test_memory_plan.py)
    "nccl_bytes": 1.0 * GIB,
    # tokens of a micro-batch; larger ones are not faster (log, two packs per micro-batch)
    "most_tokens": 16_384,
    # recomputing one layer, as a share of that layer's time (log, 24 and 32 layers on two H100s)
    "full": 0.22,
    # keeping everything in a compiled layer: writing and reading it takes as long as recomputing it (log, `matmuls`
    # instead of `none`)
    "none": 0.01,
    # ZeRO-0 and ZeRO-1 only add up gradients, which `float32` and `bfloat16` count
    "stage_0": 0.0,
    "stage_1": 0.0,
    # ZeRO-2 reduces and adds up gradients in every micro-batch, ZeRO-3 also gathers the weights (log, as `full`)
    "stage_2": 0.12,
    "stage_3": 0.19,
    # adding up gradients of this dtype once takes as long as computing so many tokens, whatever the model
    # (performance.md, 5 % and 2.6 % with packs of 8,192 tokens)
    "float32": 430,
    "bfloat16": 215,
    # factor of all these shares in float8, where a step takes three quarters of the time (performance.md, whole steps)
    "float8": 1.33,
    # the same with an adapter, where weights of the base need no gradient: a step takes two thirds of the time
    # (adapters.md, Speed: a step with every layer recomputed takes 1.32 times as long)
    "frozen": 1.47,
    # `matmuls` with an adapter: products with B and the MLP's product are computed again, as a share of a step; not
    # multiplied by `frozen` (adapters.md, Speed)
    "adapter_matmuls": 0.046,
    # copies of the largest module's weights that are in the model's dtype at a time, with a base in 4 bits: each is
    # made for one product (adapter/nf4.py); peaks are 0.5 to 0.7 GiB below the plan
    "dequantised": 1.0,
}
