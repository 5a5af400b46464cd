"""Roll call before the process group is made, so that missing ranks are named instead of waited for in silence."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.text_rules import some_names
from ochat_train.distributed.launch import free_port
from ochat_train.system.exits import OneRankError

MEETING_SECONDS = 600.0  # hosts may start minutes apart, and read their libraries from a slow disk
_POLL_SECONDS = 5.0
_SHOWN_RANKS = 8
_GIVEN_UP = "given-up"


def meet(*, seconds: float = MEETING_SECONDS) -> object:
    """Wait until all ranks of the launcher are there (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set).

    Keep what is returned until the process group is made: rank 0 answers the others as long as it lives.
    Raises UserError where some ranks do not join within `seconds`, or rank 0 cannot be reached; one rank of each host
    prints it.
    """
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rank_0 = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    poll_seconds = min(_POLL_SECONDS, seconds / 4)
    try:
        store = _store(rank, seconds=seconds)
        join(store, rank)
    except (torch.distributed.DistError, RuntimeError, ValueError, OSError) as error:
        raise _error(
            f"rank {rank} ({socket.gethostname()})",
            f"cannot reach rank 0 at {rank_0} ({str(error).splitlines()[0][:200]})",
            "check that rank 0 was started, that its name is known on every host, and that the port is open; if "
            f"another run uses it, start with `--master_port {free_port()}`, or with `ochat launch`, which finds one",
        ) from error
    try:
        missing = missing_ranks(store, num_ranks, seconds=seconds, poll_seconds=poll_seconds)
    except (torch.distributed.DistError, RuntimeError) as error:
        raise _error(
            f"rank {rank} ({socket.gethostname()})",
            f"lost contact with rank 0 at {rank_0} before all ranks had joined",
            "look at the output of rank 0",
        ) from error
    if missing:
        if rank == 0:
            time.sleep(2 * poll_seconds)  # the others may have come later; they lose the store when this rank ends
        raise _missing_error(missing, num_ranks, seconds=seconds)
    return store


def _store(rank: int, *, seconds: float) -> Any:
    launcher_keeps_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun
    return torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not launcher_keeps_store,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,  # the process group's own store shares the port later
    )


def join(store: Any, rank: int) -> None:
    """Tell the other ranks of a store (torch.distributed.Store) that this one is there."""
    store.set(_key(rank), socket.gethostname())


def missing_ranks(store: Any, num_ranks: int, *, seconds: float, poll_seconds: float) -> list[int]:
    """Wait for all ranks to join; the ranks that have not. All ranks get the same list.

    The first rank that has waited for `seconds` gives up for all; the others look every `poll_seconds`.
    Raises RuntimeError or DistError where the store is gone.
    """
    everybody = [_key(rank) for rank in range(num_ranks)]
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(torch.distributed.DistError, RuntimeError):
            store.wait(everybody, timedelta(seconds=poll_seconds))
            return []
        if store.check([_key(_GIVEN_UP)]):
            found: list[int] = json.loads(store.get(_key(_GIVEN_UP)))
            return found
        if time.monotonic() > end:
            missing = [rank for rank in range(num_ranks) if not store.check([_key(rank)])]
            store.set(_key(_GIVEN_UP), json.dumps(missing))
            return missing


def _key(name: int | str) -> str:
    return f"ochat/attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _missing_error(missing: Sequence[int], num_ranks: int, *, seconds: float) -> UserError:
    return _error(
        f"{len(missing)} of {num_ranks} ranks did not join within {seconds:g} s",
        some_names(missing, most=_SHOWN_RANKS),
        "look at the output of their hosts, and check that every host was started with the same number of hosts and "
        "processes",
    )


def _error(place: str, problem: str, remedy: str) -> UserError:
    """An error that one rank of each host prints."""
    kind = OneRankError if os.environ.get("LOCAL_RANK", "0") == "0" else UserError
    return kind(place, problem, remedy)
