"""Notices ranks that hang or are gone, names them, and ends this one, so that no GPU is held by a dead run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data_pipeline import nesting
from data_pipeline.files import explained_writes
from ochat_train.distributed.launch import leave_exit_code
from ochat_train.distributed.ranks import Ranks
from ochat_train.system import exits

_BEAT_SECONDS = 1.0
_SILENT_SECONDS = 4.0  # a rank without a sign of life for this long is stopped or gone
REMEDY = "restart to resume from the newest checkpoint"


class Watchdog:
    """A thread on each rank that writes every second what the rank is doing, into a file of OUTPUT_DIR/.ranks.

    Files instead of messages, because files outlive the rank that wrote them, rank 0 included.
    timeout_seconds: the process ends if `progress` is not called for this long. on_beat: called in that thread every
    second.
    """

    def __init__(self, output_dir: Path, ranks: Ranks, *, timeout_seconds: float, on_beat: Callable[[], None]) -> None:
        self._ranks, self._timeout, self._on_beat = ranks, timeout_seconds, on_beat
        self._folder = output_dir / ".ranks"
        with explained_writes(self._folder):
            self._folder.mkdir(exist_ok=True)  # the run folder is there, or was taken away
        self._doing = (time.monotonic(), 0, "start")
        self._beat()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def progress(self, step: int, doing: str) -> None:
        """Note that this rank has begun something: step (from 1) and what it does in it."""
        self._doing = (time.monotonic(), step, doing)

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def wait_for_silence(self) -> None:
        """Wait until `describe` can tell that a rank has just ended."""
        time.sleep(_SILENT_SECONDS + _BEAT_SECONDS)

    def describe(self) -> str:
        """Step and activity of this rank and of all others, and which of them have ended or are stopped."""
        _, step, doing = self._doing
        others = [self._describe(rank) for rank in range(self._ranks.num_ranks) if rank != self._ranks.rank]
        return "; ".join([f"rank {self._ranks.rank} is at step {step}, {doing}", *others])

    def _file(self, rank: int) -> Path:
        return self._folder / f"{rank:05d}.json"

    def _describe(self, rank: int) -> str:
        try:
            # times of the files, all from the disk's own clock
            silent = self._file(self._ranks.rank).stat().st_mtime - self._file(rank).stat().st_mtime
            beat = nesting.loads(self._file(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"rank {rank} has not reported anything yet"
        state = f"has ended or is stopped, last seen {silent:.0f} s ago" if silent > _SILENT_SECONDS else "is alive"
        return f"rank {rank} {state} at step {beat['step']}, {beat['doing']}"

    def _beat(self) -> None:
        _, step, doing = self._doing
        with contextlib.suppress(OSError):  # rank 0 reports a full disk, and a folder that was taken away
            self._file(self._ranks.rank).write_text(json.dumps({"step": step, "doing": doing}), encoding="utf-8")

    def _run(self) -> None:
        while not self._ended.wait(min(_BEAT_SECONDS, self._timeout / 4)):
            self._beat()
            self._on_beat()
            if time.monotonic() - self._doing[0] > self._timeout:
                limit = f"no progress for {self._timeout:g} s (train.hang_timeout_seconds)"
                print(f"ochat train: {limit}: {self.describe()}; {REMEDY}", file=sys.stderr, flush=True)
                leave_exit_code(exits.LOST_RANKS, os.environ)
                os._exit(exits.LOST_RANKS)  # the main thread is stuck in a collective and cannot be asked


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error of torch says that a collective failed because of another rank or the network."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    names = ("DistBackendError", "DistNetworkError", "DistStoreError")
    words = ("gloo", "connection closed by peer", "connection reset by peer", "nccl", "socket")
    return type(error).__name__ in names or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )
