"""Roll call before the process group is made: which ranks have not come, instead of half an hour of silence."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from datetime import timedelta
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.system.exits import OneRankError

MEETING_SECONDS = 600.0  # hosts may start minutes apart, and read their libraries from a slow disk
_SHOWN_RANKS = 8


def meet() -> object:
    """Wait until all ranks of the launcher are there (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set).

    Keep what is returned until the process group is made: rank 0 answers the others as long as it lives.
    Raises UserError where some do not come, or the first rank cannot be reached; one rank of each host prints it.
    """
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    patience = timedelta(seconds=MEETING_SECONDS)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    meeting_point = f"{address}:{port}"
    launcher_keeps_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun
    try:
        store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            is_master=rank == 0 and not launcher_keeps_store,
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=True,  # the process group's own store shares the port later
        )
        store.set(_key(rank), socket.gethostname())
    except (torch.distributed.DistError, RuntimeError, ValueError, OSError) as error:
        raise _problem(
            f"rank {rank} ({socket.gethostname()}) cannot reach rank 0 at {meeting_point} "
            f"({str(error).splitlines()[0][:200]}); is it started, is its name known on every host, is the port open?"
        ) from error
    try:
        missing = _missing_ranks(store, num_ranks)
    except (torch.distributed.DistError, RuntimeError) as error:
        raise _problem(f"rank {rank} ({socket.gethostname()}) has lost rank 0 at {meeting_point}") from error
    if missing:
        if rank == 0:
            time.sleep(
                2 * _look_seconds()
            )  # until the others have read it: they may have come later, and lose the store
        shown = ", ".join(map(str, missing[:_SHOWN_RANKS])) + (", ..." if len(missing) > _SHOWN_RANKS else "")
        raise _problem(
            f"{len(missing)} of {num_ranks} ranks have not come within {MEETING_SECONDS:g} s: {shown}; look at what "
            "their hosts say, and whether every host was started with the same number of hosts and processes"
        )
    return store


def _missing_ranks(store: Any, num_ranks: int) -> list[int]:
    """Wait for all ranks; those that did not come, in time for the first rank that has waited long enough.

    Raises RuntimeError or DistError where the store is gone.
    """
    everybody, given_up = [_key(other) for other in range(num_ranks)], _key("given-up")
    end = time.monotonic() + MEETING_SECONDS
    while True:
        with contextlib.suppress(torch.distributed.DistError, RuntimeError):
            store.wait(everybody, timedelta(seconds=_look_seconds()))
            return []
        if store.check([given_up]):
            found: list[int] = json.loads(store.get(given_up))
            return found
        if time.monotonic() > end:
            missing = [other for other in range(num_ranks) if not store.check([_key(other)])]
            store.set(given_up, json.dumps(missing))
            return missing


def _look_seconds() -> float:
    """How often a rank looks whether another one has given up."""
    return min(5.0, MEETING_SECONDS / 4)


def _key(name: int | str) -> str:
    return f"ochat/attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _problem(text: str) -> UserError:
    """An error that one rank of each host prints."""
    return OneRankError(text) if os.environ.get("LOCAL_RANK", "0") == "0" else UserError(text)
