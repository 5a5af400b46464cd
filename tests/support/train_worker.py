"""One rank that runs several `ochat` commands one after the other, so that tests pay for start-up once; each may have a
fault.

    python -m tests.support.train_worker '[{"command": ["train", "a.yaml"], "fault": {"rank": 1, "step": 3, "do":
    "kill"}}]'

A fault happens on one rank, either when a step begins (`step`, counted from 1) or at the nth call of a function of
`ochat_train.system.durable` (`call`, `nth`). `do` is one of the functions at the end of this file. `tracker`, in place
of
those: one of fake_trackers.py tracks the run. `folders`: in which folder each rank runs the command. `terminal`: stderr
says that it is one, from this command on. Exit code: that of the last command.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ochat_train.checkpoint import writer
from ochat_train.cli.main import main
from ochat_train.distributed import agreement
from ochat_train.system import durable
from ochat_train.training import engine, loop, run
from tests.support import fake_trackers

Undo = Callable[[], None]


def install(fault: dict[str, Any]) -> Undo:
    """Prepare a fault in this process; returns what takes it out again."""
    if fault.get("rank", 0) != int(os.environ["RANK"]):
        return lambda: None
    if "tracker" in fault:
        return fake_trackers.install(fault["tracker"])
    if "call" in fault:
        return _at_call(fault["call"], fault["nth"], lambda: ACTIONS[fault["do"]](fault))
    return _at_step(fault)


def _at_call(name: str, nth: int, action: Callable[[], None]) -> Undo:
    original, calls = getattr(durable, name), 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            action()
        return original(*arguments)

    setattr(durable, name, counted)
    return lambda: setattr(durable, name, original)


def _at_step(fault: dict[str, Any]) -> Undo:
    original, steps = loop.train_step, 0

    def step(deepspeed_engine: Any, batches: Any, **arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        time.sleep(fault.get("slow", 0.0))
        if fault.get("step", 0) <= steps < fault.get("step", 0) + fault.get("times", 1) and "do" in fault:
            batches = ACTIONS[fault["do"]]({**fault, "engine": deepspeed_engine, "batches": batches}) or batches
        return original(deepspeed_engine, batches, **arguments)

    loop.train_step = step
    return lambda: setattr(loop, "train_step", original)


# ---- what can happen ----


def kill(fault: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(fault: dict[str, Any]) -> None:
    """Stopped, not dead: what a rank that hangs looks like from outside."""
    os.kill(os.getpid(), signal.SIGSTOP)


def terminate(fault: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def leave(fault: dict[str, Any]) -> None:
    os._exit(0)


def fail(fault: dict[str, Any]) -> None:
    raise ZeroDivisionError("a bug on one rank")


def out_of_memory(fault: dict[str, Any]) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def wait(fault: dict[str, Any]) -> None:
    time.sleep(3.0)


def full_disk(fault: dict[str, Any]) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def limit_file_size(fault: dict[str, Any]) -> None:
    """The system's own refusal to write more than 20,000 bytes into a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def no_room(fault: dict[str, Any]) -> None:
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=1000)  # type: ignore[assignment]


def weight(value: float) -> Callable[[dict[str, Any]], Any]:
    """A weight of this value in the last micro-batch."""

    def change(fault: dict[str, Any]) -> Any:
        batches = list(fault["batches"])
        position = int(torch.nonzero(batches[-1].target_weights_T)[0])
        batches[-1].target_weights_T[position] = value
        return batches

    return change


def gradient_times(factor: float) -> Callable[[dict[str, Any]], Any]:
    """The gradient of the embedding is multiplied in the last micro-batch; losses stay as they are."""

    def change(fault: dict[str, Any]) -> Any:
        embedding = fault["engine"].module.causal_lm.get_input_embeddings()

        def batches() -> Any:
            all_batches = list(fault["batches"])
            yield from all_batches[:-1]

            def times(module: Any, arguments: Any, output: torch.Tensor) -> None:
                output.register_hook(lambda gradient: gradient * factor)
                handle.remove()

            handle = embedding.register_forward_hook(times)
            yield all_batches[-1]

        return batches()

    return change


ACTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "kill": kill,
    "stop": stop,
    "terminate": terminate,
    "leave": leave,
    "fail": fail,
    "wait": wait,
    "out_of_memory": out_of_memory,
    "full_disk": full_disk,
    "limit_file_size": limit_file_size,
    "no_room": no_room,
    "nan_weight": weight(float("nan")),
    "infinite_weight": weight(float("inf")),
    "nan_gradient": gradient_times(float("nan")),
    "large_gradient": gradient_times(1e6),
}


if __name__ == "__main__":
    run.stop_ranks = torch.distributed.barrier  # the process group lives until the last command is done
    status = 0
    original_estimate = writer.estimated_bytes

    def printed_estimate(*arguments: Any) -> int:
        print(f"\nestimated bytes {original_estimate(*arguments)}", flush=True)
        return original_estimate(*arguments)

    writer.estimated_bytes = printed_estimate
    agreement.SIGHT_SECONDS = 0.3
    usual_group = engine.GROUP_ELEMENTS
    for job in json.loads(sys.argv[1]):
        engine.GROUP_ELEMENTS = job.get("group_elements", usual_group)
        if "folders" in job:
            os.chdir(job["folders"][int(os.environ["RANK"])])
        if job.get("terminal"):
            sys.stderr.isatty = lambda: True  # type: ignore[method-assign]
        undo = install(job["fault"]) if job.get("fault") else lambda: None
        status = main(job["command"])
        print(f"exit code {status}", flush=True)
        undo()
    torch.distributed.destroy_process_group()
    sys.exit(status)
