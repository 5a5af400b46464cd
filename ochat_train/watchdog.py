"""Notices ranks that hang or are gone, says which, and ends this one, instead of waiting with all GPUs held."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ochat_train import exits
from ochat_train.engine import Ranks

_BEAT_SECONDS = 0.5
_SILENT_SECONDS = 3.0  # a rank that has given no sign of life for so long is stopped or gone
_STORE_TIMEOUT = timedelta(seconds=5)


class Watchdog:
    """A thread of each rank that tells the others twice a second what its rank is doing.

    on_beat: called in that thread with every beat.
    """

    def __init__(self, ranks: Ranks, *, timeout_seconds: float, on_beat: Callable[[], None]) -> None:
        self._ranks, self._timeout, self._on_beat = ranks, timeout_seconds, on_beat
        self._doing = (time.monotonic(), 0, "start")
        self._store = _shared_store(ranks)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def progress(self, step: int, doing: str) -> None:
        """Note that this rank has come to another point."""
        self._doing = (time.monotonic(), step, doing)

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def describe(self) -> str:
        """Step and activity of this rank and of each other one, and which of them have fallen silent."""
        _, step, doing = self._doing
        lines = [f"rank {self._ranks.rank} was at step {step}, {doing}"]
        for rank in range(self._ranks.num_ranks):
            if rank != self._ranks.rank:
                lines.append(self._describe(rank))
        return "; ".join(lines)

    def _describe(self, rank: int) -> str:
        try:
            with self._lock:
                beat = json.loads(self._store.get(str(rank)))
        except Exception:  # the store lives in rank 0
            return f"rank {rank} gives no answer" if rank else "rank 0 has ended or is stopped"
        silent = time.time() - beat["at"]
        state = f"has ended or is stopped, last seen {silent:.0f} s ago at" if silent > _SILENT_SECONDS else "is alive at"
        return f"rank {rank} {state} step {beat['step']}, {beat['doing']}"

    def wait_for_silence(self) -> None:
        """Wait until a rank that has just ended is known to be silent."""
        time.sleep(_SILENT_SECONDS + 2 * _BEAT_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(_BEAT_SECONDS):
            since, step, doing = self._doing
            try:
                with self._lock:
                    self._store.set(str(self._ranks.rank), json.dumps({"at": time.time(), "step": step, "doing": doing}))
            except Exception:  # rank 0 has ended: the main thread notices, or the time below runs out
                pass
            self._on_beat()
            if time.monotonic() - since > self._timeout:
                limit = f"nothing has happened for {self._timeout:g} s (train.hang_timeout_seconds)"
                remedy = "start again to go on from the newest checkpoint"
                print(f"ochat train: {limit}: {self.describe()}; {remedy}", file=sys.stderr, flush=True)
                os._exit(exits.LOST_RANKS)  # the main thread is stuck in a collective and cannot be asked


def _shared_store(ranks: Ranks) -> Any:
    """A key-value store of all ranks, beside the one that DeepSpeed uses: a store must not be shared by threads."""
    address: list[Any] = [None]
    store = None
    if ranks.is_main:
        host = os.environ.get("MASTER_ADDR", socket.gethostname())
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_STORE_TIMEOUT)
        address = [(host, store.port)]
    torch.distributed.broadcast_object_list(address, src=0)
    if store is None:
        host, port = address[0]
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)
    return store


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error of torch's says that a collective failed because of another rank or the network."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    names = ("DistBackendError", "DistNetworkError", "DistStoreError")
    words = ("gloo", "connection closed by peer", "connection reset by peer", "nccl", "socket")
    return type(error).__name__ in names or (isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words))
