"""One rank that runs several `ochat` commands one after the other, so that tests pay for start-up once; each may have a
fault.

    python -m tests.support.train_worker '[{"command": ["train", "a.yaml"], "fault": {"rank": 1, "step": 3, "do":
    "kill"}}]'

A fault happens on one rank, either when a step begins (`step`, counted from 1) or at the nth call of a function of
`ochat_train.system.durable` (`call`, `nth`). `do` is one of the functions at the end of this file. `slow`: every step
takes so many seconds more. `hold`: a step of the run, counted from 1, and a file that its ranks wait for before it.
`tracker`, instead of those: one of fake_trackers.py tracks the run.
`folders`: in which folder each rank runs the command. `terminal`: stderr says that it is one, from this command on.
`group_elements`: as in `Hooks`. `count_reads`: files whose openings by the command are counted and printed.
Exit code: that of the last command.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ochat_train.checkpoint.writer import estimated_bytes
from ochat_train.cli.main import main
from ochat_train.distributed.engine import TrainingEngine
from ochat_train.system import durable
from ochat_train.training import run
from ochat_train.training.hooks import Hooks
from ochat_train.training.step import Step
from tests.support.fake_trackers import tracked_by
from tests.support.waiting import wait_for

Undo = Callable[[], None]

# The process group lives until the last command is done. Hosts of a test share a real disk. On a busy machine real
# trackers take longer than the time that a run which failed has for them.
WORKER_HOOKS = Hooks(leave_ranks=torch.distributed.barrier, sight_seconds=0.3, stopped_close_seconds=60.0)
OPENED: Counter[str] = Counter()  # files that this process has opened


def hooks_of(job: dict[str, Any]) -> Hooks:
    """What a job replaces in its training."""
    hooks = WORKER_HOOKS
    if "group_elements" in job:
        hooks = replace(hooks, group_elements=job["group_elements"])
    fault = job.get("fault", {})
    if not is_here(fault):
        return replace(hooks, before_step=StepFault({}))
    if "tracker" in fault:
        hooks = tracked_by(fault["tracker"], hooks)
    return replace(hooks, before_step=StepFault(fault))


def is_here(fault: dict[str, Any]) -> bool:
    """Whether a fault happens on this rank."""
    return fault.get("rank", 0) == int(os.environ["RANK"])


class StepFault:
    """A fault when a step begins. The first step of a command also prints the size that a checkpoint is expected to
    have.
    """

    def __init__(self, fault: dict[str, Any]) -> None:
        self.fault, self.steps = fault, 0

    def __call__(self, engine: TrainingEngine, step: Step) -> Step:
        if self.steps == 0:
            print(f"\nestimated bytes {estimated_bytes(engine, torch.distributed.get_world_size())}", flush=True)
        self.steps += 1
        fault = self.fault
        time.sleep(fault.get("slow", 0.0))
        if "hold" in fault and step.number + 1 == fault["hold"][0]:
            wait_for(Path(fault["hold"][1]).exists, seconds=300)
        if "do" not in fault or "step" not in fault:
            return step
        if not fault["step"] <= self.steps < fault["step"] + fault.get("times", 1):
            return step
        batches = ACTIONS[fault["do"]]({**fault, "engine": engine, "batches": step.micro_batches})
        return step if batches is None else replace(step, micro_batches=batches)


def install_call(fault: dict[str, Any]) -> Undo:
    """Let a fault happen at a call of the disk; returns what takes it out again."""
    if "call" not in fault or not is_here(fault):
        return lambda: None
    name, original, calls = fault["call"], getattr(durable, fault["call"]), 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault["nth"]:
            ACTIONS[fault["do"]](fault)
        return original(*arguments)

    setattr(durable, name, counted)
    return lambda: setattr(durable, name, original)


def count_opened(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook of Python's that counts opened files."""
    if event == "open" and isinstance(arguments[0], str):
        OPENED[os.path.abspath(arguments[0])] += 1


def run_job(job: dict[str, Any]) -> int:
    """Run one command; its exit code."""
    if "folders" in job:
        os.chdir(job["folders"][int(os.environ["RANK"])])
    if job.get("terminal"):
        sys.stderr.isatty = lambda: True
    original = run.train
    run.train = functools.partial(original, hooks=hooks_of(job))
    undo = install_call(job.get("fault", {}))
    OPENED.clear()
    try:
        status = main(job["command"])
    finally:
        run.train = original
        undo()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(f"exit code {status}", flush=True)
    for path in job.get("count_reads", []):
        print(f"opened {OPENED[os.path.abspath(path)]} times: {path}", flush=True)
    return status


# ---- what can happen ----


def kill(fault: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(fault: dict[str, Any]) -> None:
    """Stopped, not dead: what a rank that hangs looks like from outside."""
    os.kill(os.getpid(), signal.SIGSTOP)


def terminate(fault: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail(fault: dict[str, Any]) -> None:
    raise ZeroDivisionError("a bug on one rank")


def note_weights(fault: dict[str, Any]) -> None:
    """Write a line into a file (`file`): digests of this rank's frozen and of its trained weights."""
    digests = {True: hashlib.sha256(), False: hashlib.sha256()}
    for name, parameter in fault["engine"].module.named_parameters():
        own = getattr(parameter, "ds_tensor", parameter).detach().contiguous()
        digests[parameter.requires_grad].update(name.encode() + own.view(-1).view(torch.uint8).numpy().tobytes())
    with open(fault["file"], "a", encoding="utf-8") as file:
        file.write(f"{digests[False].hexdigest()} {digests[True].hexdigest()}\n")


def out_of_memory(fault: dict[str, Any]) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def wait(fault: dict[str, Any]) -> None:
    time.sleep(3.0)


def full_disk(fault: dict[str, Any]) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def limit_file_size(fault: dict[str, Any]) -> None:
    """The system's own refusal to write more than 20,000 bytes into a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def limit_lines(fault: dict[str, Any]) -> None:
    """The same for a file (`file`) that may grow by 40 bytes more: its next line is written in part, and refused.

    The next call takes the limit away again: what this process prints may go to a file too.
    """
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        return resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    size = os.path.getsize(fault["file"]) if os.path.exists(fault["file"]) else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, resource.RLIM_INFINITY))


def remove(fault: dict[str, Any]) -> None:
    """Delete a file or folder (`path`)."""
    shutil.rmtree(fault["path"]) if os.path.isdir(fault["path"]) else os.unlink(fault["path"])


def empty(fault: dict[str, Any]) -> None:
    """Put an empty folder in the place of a folder (`path`)."""
    remove(fault)
    os.mkdir(fault["path"])


def no_room(fault: dict[str, Any]) -> None:
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=1000)


def weight(value: float) -> Callable[[dict[str, Any]], Any]:
    """A weight of this value in the last micro-batch."""

    def change(fault: dict[str, Any]) -> Any:
        batches = list(fault["batches"])
        position = int(torch.nonzero(batches[-1].target_weights_T)[0])
        batches[-1].target_weights_T[position] = value
        return iter(batches)

    return change


def gradient_times(factor: float) -> Callable[[dict[str, Any]], Any]:
    """The gradient of the embedding is multiplied in the last micro-batch; losses do not change."""

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
    "fail": fail,
    "wait": wait,
    "note_weights": note_weights,
    "out_of_memory": out_of_memory,
    "full_disk": full_disk,
    "limit_file_size": limit_file_size,
    "limit_lines": limit_lines,
    "remove": remove,
    "empty": empty,
    "no_room": no_room,
    "nan_weight": weight(float("nan")),
    "infinite_weight": weight(float("inf")),
    "nan_gradient": gradient_times(float("nan")),
    "large_gradient": gradient_times(1e6),
}


if __name__ == "__main__":
    sys.addaudithook(count_opened)
    status = 0
    for job in json.loads(sys.argv[1]):
        status = run_job(job)
    torch.distributed.destroy_process_group()
    sys.exit(status)
