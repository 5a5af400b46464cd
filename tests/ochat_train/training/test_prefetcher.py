"""Micro-batches made ahead in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ochat_train.training.prefetch import Prefetcher
from tests.support.waiting import wait_for


def test_order_end_and_waiting() -> None:
    def slow() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.02)
            yield number

    items = Prefetcher(slow(), depth=2)
    assert list(items) == [0, 1, 2, 3, 4]
    assert 0.02 < items.waited_seconds < 300
    with pytest.raises(StopIteration):
        next(items)
    items.close()


def test_an_error_reaches_whoever_asks() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = Prefetcher(broken(), depth=4)
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)
    items.close()


def test_it_stops_though_nobody_takes_the_items() -> None:
    made = []

    def endless() -> Iterator[int]:
        while True:
            made.append(1)
            yield 1

    before = set(threading.enumerate())
    items = Prefetcher(endless(), depth=3)
    wait_for(lambda: len(made) >= 4)
    time.sleep(0.02)  # time to make too many
    assert len(made) == 4, "three wait, one is in hand"
    items.close()
    assert not set(threading.enumerate()) - before
