"""What a launcher tells its ranks does not reach processes that a rank starts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ochat_train.ablation.trainings import arm_environment
from ochat_train.distributed.launch import free_port, is_launched, single_rank, without_launcher
from tests.support.processes import process_environment

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def environment_that_torchrun_gives(folder: Path) -> dict[str, str]:
    """What a rank of the installed torchrun finds in its environment and this process does not."""
    script = folder / "show.py"
    script.write_text(SHOW)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port"]
    environment = process_environment({})
    done = subprocess.run(
        [*command, str(free_port()), str(script)], env=environment, capture_output=True, text=True, check=True
    )
    return {name: value for name, value in json.loads(done.stdout).items() if name not in environment}


def test_an_arm_of_an_ablation_inherits_nothing_of_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TORCHELASTIC_USE_AGENT_STORE, for example, an arm would wait for a store that nobody keeps."""
    given = environment_that_torchrun_gives(tmp_path)
    assert {"RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_USE_AGENT_STORE"} <= given.keys()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "29500")
    left = arm_environment(0, 1).keys() & {*given, "MASTER_PORT"}
    harmless = {name for name in left if name.startswith(("TORCH_NCCL_", "OMP_"))}  # settings of libraries
    assert left == harmless
    assert {"PATH"} <= arm_environment(0, 1).keys()


def test_a_process_without_a_launcher_is_a_run_of_one_rank() -> None:
    environment = {"PATH": "/bin", "WORLD_SIZE": "8", "CROSS_SIZE": "2"}
    assert is_launched(environment)
    assert without_launcher(environment) == {"PATH": "/bin"}
    assert not is_launched(without_launcher(environment))
    alone = {**without_launcher(environment), **single_rank()}
    assert is_launched(alone)
    assert (alone["RANK"], alone["WORLD_SIZE"], alone["LOCAL_WORLD_SIZE"]) == ("0", "1", "1")


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
