"""The ranks of a run: who they are, how they start and stop, and what rank 0 does for all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from data_pipeline.errors import UserError
from data_pipeline.files import cannot_use, cannot_write, is_out_of_room, is_unusable
from ochat_train.distributed.launch import is_launched, single_rank
from ochat_train.distributed.rendezvous import meet
from ochat_train.system.exits import OneRankError
from ochat_train.system.library_output import quiet_libraries

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Who this process is."""

    rank: int
    num_ranks: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes shared files."""
        return self.rank == 0


def start_ranks(*, timeout_seconds: float = 1800.0) -> Ranks:
    """Join the process group of the launcher (`deepspeed`, `torchrun`), or make one of a single process.

    timeout_seconds: how long a collective may wait for the other ranks.
    """
    quiet_libraries()
    # Without segments that grow, a tenth of a full GPU is lost between blocks of different sizes.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # Otherwise it would try a compiler on every rank, and on a CPU compile collectives that only inference uses.
    deepspeed.ops.__compatible_ops__ = {}
    if not is_launched(os.environ):
        os.environ |= single_rank()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise OneRankError(
                f"rank {local_rank} of this host has no GPU",
                f"{torch.cuda.device_count()} GPUs are visible",
                "start at most one rank for each GPU",
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    meeting = None if torch.distributed.is_initialized() else meet()
    deepspeed.init_distributed(verbose=False, auto_mpi_discovery=False, timeout=timedelta(seconds=timeout_seconds))
    del meeting
    return Ranks(rank=torch.distributed.get_rank(), num_ranks=torch.distributed.get_world_size(), device=device)


def on_main_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something on rank 0 only; the others wait, and all get its result.

    A UserError or OSError of rank 0 is raised as a UserError on all ranks.
    """
    message: list[Any] = [None, None]
    if ranks.is_main:
        try:
            message[0] = work()
        except (UserError, OSError) as error:
            message[1] = as_user_error(error)
    torch.distributed.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise message[1]
    result: T = message[0]
    return result


def on_any_rank(ranks: Ranks, value: bool) -> bool:
    """Whether it is so on at least one rank. All ranks call it."""
    if ranks.num_ranks == 1:
        return value
    flag = torch.tensor([value], dtype=torch.int32, device=ranks.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def gathered(ranks: Ranks, value: T) -> list[T]:
    """A value of every rank, by rank. All ranks call it."""
    found: list[Any] = [None] * ranks.num_ranks
    torch.distributed.all_gather_object(found, value)
    return found


def as_user_error(error: UserError | OSError) -> UserError:
    """An error as it is sent to other ranks and raised there."""
    if isinstance(error, UserError):
        return error
    if is_out_of_room(error):
        return cannot_write(error.filename, error)
    if error.filename is not None and is_unusable(error):
        return cannot_use(str(error.filename), error)
    if error.filename is not None and error.strerror:
        return UserError(str(error.filename), error.strerror)
    return UserError(type(error).__name__, str(error))


def stop_ranks() -> None:
    """Leave the process group, together with all ranks; otherwise NCCL warns of leaked resources at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
