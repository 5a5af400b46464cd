"""Ctrl-C and SIGTERM of verbs that are not a training: real processes, ended in order, without tracebacks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.prepared.dataset import Manifest
from ochat_train.distributed import supervisor
from ochat_train.distributed.stop_request import StopRequest
from ochat_train.export.export import export
from ochat_train.system import exits
from ochat_train.system.stop_signals import stopping_on_signals
from tests.support.exports import prepared_recipe, random_model, write_run
from tests.support.processes import ROOT, process_environment
from tests.support.rank_processes import start_rank
from tests.support.small_recipe import TINY_MODEL, RecipeFactory
from tests.support.waiting import wait_for

# A verb that works for a minute: with processes of a pool, as `ochat prepare`, or alone, as `ochat export`.
WORKER = """
import os, sys, time
from pathlib import Path
from data_pipeline.prepare.workers import over_chunks
from ochat_train.cli import main as cli
from ochat_train.cli.prepare import PREPARE
from dataclasses import replace

folder = Path(sys.argv[1])

def work(chunk):
    (folder / f"started-{chunk}").write_text(str(os.getpid()))
    time.sleep(600)

def make_work():
    return work

def run(options):
    try:
        for _ in over_chunks(make_work, range(4), int(sys.argv[2])):
            pass
    finally:
        (folder / "put away").touch()

if __name__ == "__main__":
    cli.VERBS = (replace(PREPARE, run=run),)
    sys.exit(cli.main(["prepare", "recipe.yaml"]))
"""


@pytest.mark.parametrize(("number", "num_workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGHUP, 1)])
def test_a_signal_ends_a_verb_in_order(number: int, num_workers: int, tmp_path: Path) -> None:
    """To the whole group, as a terminal or a scheduler sends it."""
    (tmp_path / "work.py").write_text(WORKER)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "work.py"), str(tmp_path), str(num_workers)],
        cwd=ROOT,
        env=process_environment({}),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("started-*"))) == num_workers, seconds=60)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)  # the pipe closes when no process of the pool is left
    name = signal.Signals(number).name
    assert process.returncode == exits.STOPPED, errors
    assert errors.splitlines() == ["", "ochat prepare: stopping", f"ochat prepare: stopped by {name}; start it again"]
    assert (tmp_path / "put away").exists()


def test_no_process_of_a_pool_is_left_where_the_first_one_is_killed(tmp_path: Path) -> None:
    """By SIGKILL, of which nobody is told."""
    (tmp_path / "work.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "work.py"), str(tmp_path), "2"]
    process = subprocess.Popen(command, cwd=ROOT, env=process_environment({}), stderr=subprocess.DEVNULL)
    wait_for(lambda: sum(bool(path.read_text()) for path in tmp_path.glob("started-*")) == 2, seconds=120)
    workers = [Path("/proc", path.read_text()) for path in tmp_path.glob("started-*")]
    assert all(worker.is_dir() for worker in workers), "the control: both run"
    process.kill()
    process.wait()
    wait_for(lambda: not any(worker.is_dir() for worker in workers), seconds=60)


def test_what_a_process_was_started_to_ignore_stays_ignored() -> None:
    """`nohup` starts a command so that it outlives its terminal."""
    users = (supervisor._Stop(), stopping_on_signals("prepare"), _listening())
    before = signal.getsignal(signal.SIGHUP)
    try:
        for setting, is_heard in ((signal.SIG_IGN, False), (signal.SIG_DFL, True)):
            for user in users:
                signal.signal(signal.SIGHUP, setting)
                with user:
                    assert (signal.getsignal(signal.SIGHUP) is not setting) == is_heard
            users = (supervisor._Stop(), stopping_on_signals("prepare"), _listening())
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    request = StopRequest()
    request.listen()
    try:
        yield
    finally:
        request.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_stopped_leaves_the_earlier_one(
    number: int, tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    recipe = prepared_recipe(make_recipe())
    manifest = Manifest.load(Path(recipe.data.prepared_dir))
    assert manifest is not None
    run, out = tmp_path / "run", tmp_path / "exports" / "mine"
    write_run(run, recipe, random_model(recipe, manifest.vocab_size, **TINY_MODEL))
    export(run, out)
    earlier = contents(out)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(run), "--out", str(out), "--overwrite"]
    process = start_rank("tests.support.slow_export", arguments, environment, fork=not torch.cuda.is_available())
    wait_for(lambda: len(list(out.parent.iterdir())) == 2, seconds=60)  # the new one, which has another name still
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == exits.STOPPED, said
    assert "ochat export: stopping\n" in said
    assert f"ochat export: stopped by {signal.Signals(number).name}; start it again" in said
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    assert contents(out) == earlier
