"""`ochat launch`: everything is waited for, a crash is retried and resumes, Ctrl-C and errors of the user are not."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ochat_train.distributed import supervisor
from ochat_train.distributed.launch import free_port
from ochat_train.distributed.supervisor import exit_code
from ochat_train.system import exits
from tests.support.processes import ROOT, process_environment
from tests.support.waiting import wait_for

LAUNCH = [sys.executable, "-m", "tests.support.ochat_command", "launch", "--pause", "0.1"]


def launch(retries: int, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LAUNCH, "--retries", str(retries), "--", *command],
        cwd=ROOT,
        env=process_environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counting(file: Path, then: str) -> list[str]:
    """A command that leaves a line in a file each time, and goes on in bash."""
    return ["bash", "-c", f"echo >> {file}; {then}"]


ENDS = {
    "done": ("exit 0", 0, 1),
    "error of the user": ("exit 2", 2, 1),
    "not pushed": ("exit 77", 77, 1),
    "bug": ("exit 1", 1, 3),
    "killed rank": ("exit 247", 247, 3),
    "killed launcher": ("kill -9 $$", 137, 3),
    "lost ranks": ("exit 76", 76, 3),
    # DeepSpeed's command ends with 0 where its launcher was killed, while the ranks go on
    "ranks outlive the launcher": ("(sleep 0.3; exit 76) & exit 0", 76, 3),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_is_started_again(name: str, tmp_path: Path) -> None:
    script, code, num_starts = ENDS[name]
    process = launch(2, *counting(tmp_path / "starts", script))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert len((tmp_path / "starts").read_text().splitlines()) == num_starts
    assert errors.count("starting again") == num_starts - 1
    if name == "killed rank":
        assert "(a process was killed by SIGKILL)" in errors


RANK = """
import os, signal, sys, time
from ochat_train.distributed.launch import leave_exit_code
def save(*_):
    time.sleep(0.5)  # another signal, or an early end of `ochat launch`, would be seen
    open(sys.argv[1], "a").write("saved\\n")
    if "--tells" in sys.argv:
        leave_exit_code(75, os.environ)
    sys.exit(75)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
open(sys.argv[2], "w").close()
time.sleep(600)
"""
LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]]).wait()
"""
WAITING_LAUNCHER = """
import signal, subprocess, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
rank = subprocess.Popen([sys.executable, *sys.argv[1:]])
while rank.poll() is None:
    time.sleep(0.02)
sys.exit(1 if asked else rank.returncode)
"""


@pytest.mark.parametrize(
    ("name", "number"), [("deepspeed", signal.SIGINT), ("other", signal.SIGINT), ("other", signal.SIGTERM)]
)
def test_a_stop_is_passed_on_once_and_never_retried(name: str, number: int, tmp_path: Path) -> None:
    """The launcher dies of it, as DeepSpeed's does; its rank ends later, and is waited for. DeepSpeed's prints no
    traceback; the control is another one.
    """
    saved, ready, launcher = tmp_path / "saved", tmp_path / "ready", tmp_path / name
    (tmp_path / "rank.py").write_text(RANK)
    launcher.write_text(f"#!{sys.executable}{LAUNCHER}")
    launcher.chmod(0o755)
    process = launch(5, str(launcher), str(tmp_path / "rank.py"), str(saved), str(ready), "--master_port=1")
    wait_for(ready.exists, seconds=60)
    ready.unlink()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exits.STOPPED, errors
    assert "stopping" in errors
    assert ("Traceback" in errors) == (name == "other" and number == signal.SIGINT)
    assert saved.read_text().splitlines() == ["saved"]
    assert not ready.exists()  # nothing was started again


@pytest.mark.parametrize(("more", "code"), [(["--tells"], exits.STOPPED), ([], 1)])
def test_a_launcher_that_waits_for_its_ranks_hides_no_code(more: list[str], code: int, tmp_path: Path) -> None:
    """As DeepSpeed's does, which then ends with 1. The control is a rank that does not tell its code."""
    ready = tmp_path / "ready"
    for name, text in (("rank.py", RANK), ("launcher.py", WAITING_LAUNCHER)):
        (tmp_path / name).write_text(text)
    words = [sys.executable, str(tmp_path / "launcher.py"), str(tmp_path / "rank.py"), str(tmp_path / "saved")]
    process = launch(0, *words, str(ready), *more)
    wait_for(ready.exists, seconds=60)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors


def test_a_bug_of_one_rank_counts_and_not_what_it_did_to_the_others() -> None:
    """The launcher ends with the code of the first rank that ended."""
    tell = "from ochat_train.distributed.launch import leave_exit_code as tell; import os, sys; "
    ranks = "".join(f"os.environ['RANK'] = '{rank}'; tell({code}, os.environ); " for rank, code in ((0, 76), (1, 1)))
    process = launch(0, sys.executable, "-c", f"{tell}{ranks}sys.exit(1)")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exits.BUG, errors


@pytest.mark.parametrize(
    ("launcher", "ranks", "code"),
    [
        (0, [], 0),
        (0, [0, 0], 0),
        (0, [0, 75], 75),
        (1, [75, 76], 75),
        (1, [], 1),
        (1, [-9, 76], 76),
        (2, [75], 2),
        (247, [76], 247),
        (-2, [75], 75),
        (-9, [], 137),
        (0, [-9], 137),
    ],
)
def test_the_exit_code_of_all(launcher: int, ranks: list[int], code: int) -> None:
    assert exit_code(launcher, ranks) == code


def test_a_second_run_on_one_host_takes_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["deepspeed", "--num_gpus", "2", "--module", "ochat_train", "a.yaml"]
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setattr(supervisor, "DEEPSPEED_PORT", taken.getsockname()[1])
        changed = supervisor._with_free_port(command)
        assert changed[:2] == ["deepspeed", "--master_port"]
        assert int(changed[2]) not in (0, taken.getsockname()[1])
        assert changed[3:] == command[1:]
        for same in ([*command[:1], "--master_port=1", *command[1:]], ["deepspeed", "--hostfile", "x"], ["torchrun"]):
            assert supervisor._with_free_port(same) == same
    monkeypatch.setattr(supervisor, "DEEPSPEED_PORT", free_port())
    assert supervisor._with_free_port(command) == command  # the control
