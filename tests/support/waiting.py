"""Waiting for what another process or thread does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


def wait_for(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait until a condition holds; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds} s"
        time.sleep(0.01)


async def eventually(condition: Callable[[], Awaitable[object]], *, seconds: float = 60.0) -> None:
    """The same in a coroutine, for a condition that is one itself."""
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds} s"
        await asyncio.sleep(0.01)
