"""What a launcher tells its ranks does not reach processes that a rank starts."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch

from ochat_train.ablation.trainings import arm_environment
from ochat_train.distributed import launch
from ochat_train.distributed.launch import free_port, is_launched, single_rank, without_launcher
from tests.support.processes import finish, process_environment
from tests.support.rank_processes import start_rank

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def environment_that_torchrun_gives(folder: Path) -> dict[str, str]:
    """What a rank of the installed torchrun finds in its environment and this process does not."""
    script = folder / "show.py"
    script.write_text(SHOW)
    arguments, environment = ["--nproc-per-node", "1", "--master-port", str(free_port())], process_environment({})
    fork = not torch.cuda.is_available()
    launcher = start_rank("torch.distributed.run", [*arguments, str(script)], environment, fork=fork)
    [output], codes = finish([launcher])
    assert codes == [0], output
    return {name: value for name, value in json.loads(output.splitlines()[-1]).items() if name not in environment}


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


def test_a_free_port_can_be_listened_on_and_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while an earlier one is not in use yet, and by the process that was started next."""
    ports = [free_port() for _ in range(20)]
    next_pid = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: next_pid)
    ports += [free_port() for _ in range(20)]
    assert len({*ports}) == len(ports)
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(launch, "_PORTS", range(port, port + 1))
        assert free_port() != port
    assert free_port() == port  # the control
