"""Roll call before the process group is made: which ranks have not come, instead of half an hour of silence."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch

from data_pipeline.errors import UserError
from ochat_train.exits import OneRankError

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
            address, port, is_master=rank == 0 and not launcher_keeps_store, timeout=patience,
            wait_for_workers=False, multi_tenant=True,  # the process group's own store shares the port later
        )  # fmt: skip
        store.set(_key(rank), socket.gethostname())
    except (torch.distributed.DistError, RuntimeError, ValueError, OSError) as error:
        raise _problem(
            f"rank {rank} ({socket.gethostname()}) cannot reach rank 0 at {meeting_point} "
            f"({str(error).splitlines()[0][:200]}); is it started, is its name known on every host, is the port open?"
        ) from error
    try:
        store.wait([_key(other) for other in range(num_ranks)], patience)
    except (torch.distributed.DistError, RuntimeError) as error:
        try:
            missing = [other for other in range(num_ranks) if not store.check([_key(other)])]
        except (torch.distributed.DistError, RuntimeError):
            raise _problem(f"rank {rank} ({socket.gethostname()}) has lost rank 0 at {meeting_point}") from error
        shown = ", ".join(map(str, missing[:_SHOWN_RANKS])) + (", ..." if len(missing) > _SHOWN_RANKS else "")
        raise _problem(
            f"{len(missing)} of {num_ranks} ranks have not come within {MEETING_SECONDS:g} s: {shown}; look at what their "
            "hosts say, and whether every host was started with the same number of hosts and processes"
        ) from error
    return store


def _key(rank: int) -> str:
    return f"ochat/attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/here/{rank}"


def _problem(text: str) -> UserError:
    """An error that one rank of each host prints."""
    return OneRankError(text) if os.environ.get("LOCAL_RANK", "0") == "0" else UserError(text)
