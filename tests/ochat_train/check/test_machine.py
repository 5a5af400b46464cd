"""`ochat doctor`: what is found on a machine, and what is said to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils import cpp_extension

from ochat_train.check import machine
from ochat_train.check.findings import Finding
from ochat_train.cli.main import main

MINUTE = 60.0
MEMINFO = "MemTotal:       {total} kB\nMemFree: 1 kB\nMemAvailable:   {available} kB\n"


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def lock_of(name: str, root: Path, *, age_seconds: float, now: float) -> Path:
    lock = root / name / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (now - age_seconds, now - age_seconds))
    return lock


def test_a_lock_that_a_build_left_is_a_problem_that_names_the_file(tmp_path: Path) -> None:
    assert levels(machine.stale_locks(tmp_path / "none", now=0.0)) == []
    old = lock_of("py311_cu130/cpu adam", tmp_path, age_seconds=11 * MINUTE, now=1e9)
    lock_of("utils", tmp_path, age_seconds=9 * MINUTE, now=1e9)
    [found] = machine.stale_locks(tmp_path, now=1e9)
    assert (found.level, found.place) == ("problem", str(old))
    assert found.remedy.endswith(f"rm '{old}'")
    old.unlink()
    assert levels(machine.stale_locks(tmp_path, now=1e9)) == ["warning"], "a build that may be running"


def test_the_folder_of_extensions_is_that_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("HOME", "home"), ("XDG_CACHE_HOME", "cache"), ("TORCH_EXTENSIONS_DIR", "extensions")):
        for name in ("XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, str(tmp_path / value))
        folder = Path(cpp_extension._get_build_directory("some_name", verbose=False))
        assert folder.is_relative_to(machine.extensions_folder(os.environ))
        (folder / "lock").touch()
        assert levels(machine.stale_locks(machine.extensions_folder(os.environ), now=1e12)) == ["problem"]


@pytest.mark.parametrize(
    ("installed", "level", "said"),
    [
        ({"c++", "ninja"}, "ok", "can build"),
        ({"ninja"}, "warning", "a C++ compiler not found"),
        (set(), "warning", "a C++ compiler and ninja not found"),
    ],
)
def test_what_deepspeed_builds_with(installed: set[str], level: str, said: str) -> None:
    [found] = machine.compilers({}, find=lambda name: name if name in installed else None)
    assert found.level == level
    assert said in found.problem


def test_memory_is_that_of_the_container(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text(MEMINFO.format(total=64 * 2**20, available=32 * 2**20))
    [found] = machine.memory(meminfo, limit)
    assert (found.level, found.problem) == ("ok", "32 of 64 GiB free")
    limit.write_text("max\n")
    assert levels(machine.memory(meminfo, limit)) == ["ok"]
    limit.write_text(f"{4 * 2**30}\n")
    [found] = machine.memory(meminfo, limit)
    assert (found.level, found.problem) == ("warning", "4 of 4 GiB free")


def test_little_shared_memory_matters_with_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=64 * 2**20))
    assert levels(machine.shared_memory(Path("/"), num_gpus=1)) == ["ok"]
    assert levels(machine.shared_memory(Path("/"), num_gpus=2)) == ["warning"]


def test_a_slow_disk_is_a_warning_and_one_that_cannot_be_written_a_problem(tmp_path: Path) -> None:
    for seconds, level, speed in ((0.01, "ok", "0.21 GB/s"), (1.0, "warning", "0.00 GB/s")):
        times = iter((0.0, seconds))
        [found] = machine.disk(tmp_path, num_bytes=2 * 2**20, clock=times.__next__)
        assert found.level == level
        assert speed in found.problem
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    [found] = machine.disk(tmp_path / "missing", num_bytes=2**20)
    assert found.level == "problem"
    assert "--folder" in found.remedy


@pytest.fixture
def small_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = machine.disk
    monkeypatch.setattr(machine, "disk", lambda folder: disk(folder, num_bytes=2**20))


@pytest.mark.usefixtures("small_trial")
def test_the_verb_prints_findings_and_ends_with_2_where_one_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"Python: {platform.python_version()}" in shown
    assert f"torch {metadata.version('torch')}" in shown
    assert "hub" not in shown, "only with --online"
    lock_of("cpu_adam", tmp_path / "extensions", age_seconds=1e6, now=1e9)
    assert main(["doctor", "--folder", str(tmp_path), "--json"]) == 2
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["problems"] == 1
    assert [found["area"] for found in document["findings"] if found["level"] == "problem"] == ["compiler"]
    assert printed.err == f"ochat doctor: {platform.node()}: 1 problem\n"


@pytest.mark.usefixtures("small_trial")
def test_online_asks_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    [found] = [found for found in machine.examine(tmp_path, online=True) if found.area == "hub"]
    assert found.level == "problem"
    assert "ConnectionError" in found.problem
