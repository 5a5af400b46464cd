"""Ctrl-C, SIGTERM and SIGHUP of verbs that are not a training: said at once, then everything is put away, then the end.

A training has its own way (distributed/stop_request.py): it finishes its step first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether a signal asked this command to stop. signal_name: which, None where none did."""

    signal_name: str | None = None


class Terminated(BaseException):
    """A signal ends a program whose KeyboardInterrupt means something else; `except Exception` passes both on."""


def stop_signals() -> tuple[int, ...]:
    """The signals that ask a program to stop: SIGINT, SIGTERM, and SIGHUP, the end of its terminal, unless it was
    started to outlive that (`nohup`). A shell without job control starts programs in the background with SIGINT
    ignored; whoever sends that by hand is heard nevertheless.
    """
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM) if outlives else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stopping_on_signals(
    verb: str,
    *,
    numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    error: type[BaseException] = KeyboardInterrupt,
) -> Iterator[Stop]:
    """While the block runs, the first of these signals prints a line and raises `error` in the main thread.

    What the block has open is closed on the way; a second signal ends the process at once. In another thread than the
    main one nothing is changed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = [number for number in stop_signals() if number in numbers]

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal_name = signal.Signals(number).name
        for each in heard:  # a terminal that ends may send SIGHUP twice: its shell and the system do
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.write(2, f"\nochat {verb}: stopping\n".encode())  # print may be what was interrupted
        raise error

    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """While the block runs, Ctrl-C ends the process as SIGTERM does: Python's own handler waits while a rank waits for
    others inside a collective. A training installs its handlers when it can write a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
