"""Where the time of a proof goes: seconds by part, from clocks that are read anyway around work that waits anyway."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

import torch

Part = Literal[
    "imports",
    "small_copy",
    "device",
    "needs",
    "mixers",
    "alone",
    "packs",
    "comparison",
    "kernel_first_calls",
    "kernel_comparison",
]
"""imports: loading the code of `transformers` for the family, which every run does. small_copy: making the config of
the copy. device: waiting for the GPU to be ready. needs: what attention asks for. mixers: trying the kernels of
sequence mixers (borders.py). alone: `transformers` on each conversation. packs: this package on packs. comparison: of
both. kernel_first_calls: of an attention kernel that takes bfloat16 only, in which it is compiled. kernel_comparison:
all else that is asked of that kernel.
"""


class Stopwatch:
    """Adds up the seconds of each part. A GPU works while Python goes on, so a part must end by reading a result."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Time inside counts for this part. Parts do not hold parts."""
        start = self._clock()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + self._clock() - start

    @property
    def seconds(self) -> float:
        """Since the stopwatch was made."""
        return self._clock() - self._start

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the parts that there were, in the order of `Part`."""
        return {name: self._parts[name] for name in get_args(Part) if name in self._parts}


def parts_text(parts: Mapping[str, float]) -> str:
    """For a log, the longest first: `small copy 2.1 s, packs 0.3 s`."""
    longest = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in longest)


@contextlib.contextmanager
def device_made_ready(device: torch.device) -> Iterator[Callable[[], None]]:
    """Start a GPU (its context, its library of products) in a thread while the CPU has other work inside.

    Yields what waits for it; leaving waits as well. Nothing is done for a CPU. Errors are left to whoever uses the GPU.
    """
    if device.type != "cuda":
        yield lambda: None
        return
    thread = threading.Thread(target=_start, args=(device,), name="start of the GPU")
    thread.start()
    try:
        yield thread.join
    finally:
        thread.join()


def _start(device: torch.device) -> None:
    with contextlib.suppress(Exception):
        ones = torch.ones((16, 16), device=device, requires_grad=True)
        (ones @ ones).softmax(dim=-1).sum().backward()
        torch.cuda.synchronize(device)
