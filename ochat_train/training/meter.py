"""Speed of training steps, in tokens and as a share of the GPUs' peak (model FLOPs utilization)."""

from __future__ import annotations

import time

import torch

from ochat_train.planning.work import Work, peak_flops
from ochat_train.runs.metrics import Speed
from ochat_train.system.sizes import GIB


class Meter:
    """Speed of steps: tokens per second, share of the GPUs' peak, memory, and the share of time spent waiting for
    data.
    """

    def __init__(self, work: Work, device: torch.device, *, num_ranks: int) -> None:
        self._work = work
        self._device = device
        self._num_ranks = num_ranks
        self._peak = peak_flops(device)
        self._start = (0.0, 0.0)

    def start(self, *, waited_seconds: float) -> None:
        """A step begins. waited_seconds: how long this rank has waited for data so far."""
        self._start = time.monotonic(), waited_seconds

    def stop(self, *, num_tokens: int, squared_lengths: float, waited_seconds: float) -> Speed:
        """The speed of a step that has just ended.

        num_tokens, squared_lengths: of the step, over all ranks. waited_seconds: how long this rank has waited for data
        so far. `memory_gib` is the most that this rank's GPU has held.
        """
        seconds = time.monotonic() - self._start[0]
        flops = self._work.flops(num_tokens=num_tokens, squared_lengths=squared_lengths)
        is_gpu = self._device.type == "cuda"
        return Speed(
            tokens_per_second=num_tokens / seconds,
            mfu=flops / seconds / self._num_ranks / self._peak if self._peak else None,
            memory_gib=torch.cuda.max_memory_allocated(self._device) / GIB if is_gpu else None,
            data_wait_ratio=(waited_seconds - self._start[1]) / seconds,
        )
