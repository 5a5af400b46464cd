"""`launch.sh` takes the Pythons that pyproject.toml allows, up to the newest that was tested.

Where an installation fails, the last words are not those of pip.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.support.processes import ROOT

NEWEST = "3.14"  # the first minor version that launch.sh refuses
MADE_VENV = 7  # the exit code of the fake python when it is asked for a virtual environment

FAKE = f"""#!{sys.executable}
import sys
version = (VERSION)
if sys.argv[1:] == ["--version"]:
    print("Python", ".".join(map(str, version)))
elif sys.argv[1] == "-c":
    sys.version_info = (*version, "final", 0)
    exec(sys.argv[2])
elif sys.argv[1:3] == ["-m", "pip"]:
    print(PIP_SAYS, file=sys.stderr)
    sys.exit(1)
else:
    assert sys.argv[1:3] == ["-m", "venv"]
    sys.exit({MADE_VENV})
"""
PYTHONS = "Python 3.11 (from 3.11.4), 3.12 or 3.13"


def make_python(path: Path, version: str, *, pip_says: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.replace("VERSION", version.replace(".", ", ")).replace("PIP_SAYS", repr(pip_says)))
    path.chmod(0o755)
    return path


def launch(folder: Path, *, python: Path | None = None) -> subprocess.CompletedProcess[str]:
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    environment = {"PATH": "/usr/bin:/bin"} | ({} if python is None else {"OCHAT_PYTHON": str(python)})
    return subprocess.run([folder / "launch.sh"], env=environment, capture_output=True, text=True, check=False)


def make_venv(folder: Path, version: str, *, pip_says: str = "") -> None:
    make_python(folder / ".venv" / "bin" / "python", version, pip_says=pip_says)
    (folder / ".venv" / "bin" / "activate").write_text(f"PATH='{folder}/.venv/bin':$PATH\n")


@pytest.mark.parametrize("version", ["3.9.20", "3.10.9", "3.11.0", "3.11.3", "3.11.4", "3.12.9", "3.13.0", "3.14.0"])
def test_launch_script_and_package_agree_about_a_python(version: str, tmp_path: Path) -> None:
    done = launch(tmp_path, python=make_python(tmp_path / "python", version))
    required = re.search(r'^requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert required is not None
    if SpecifierSet(f"{required[1]},<{NEWEST}").contains(version):
        assert done.returncode == MADE_VENV, done.stderr
    else:
        assert done.returncode == 2
        assert done.stderr == f"launch.sh: Python {version} cannot be used; set OCHAT_PYTHON to {PYTHONS}\n"


def test_an_environment_of_another_python_is_not_used(tmp_path: Path) -> None:
    make_venv(tmp_path, "3.12.1", pip_says="pip was asked")
    other = make_python(tmp_path / "python", "3.13.0")
    done = launch(tmp_path, python=other)
    assert done.returncode == 2
    assert done.stderr == (
        "launch.sh: .venv has Python 3.12, OCHAT_PYTHON is Python 3.13; remove .venv to make it again, "
        "or unset OCHAT_PYTHON\n"
    )
    for python in (None, make_python(tmp_path / "same", "3.12.9")):  # the control: these use it
        assert "pip was asked" in launch(tmp_path, python=python).stderr
    make_venv(tmp_path, "3.10.9")
    done = launch(tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"launch.sh: Python 3.10.9 cannot be used; remove .venv, and set OCHAT_PYTHON to {PYTHONS}\n"


@pytest.mark.parametrize("has_venv", [False, True])
def test_a_python_that_is_not_there_is_named(has_venv: bool, tmp_path: Path) -> None:
    if has_venv:
        make_venv(tmp_path, "3.12.1")
    done = launch(tmp_path, python=Path("python3.99"))
    assert done.returncode == 2
    assert done.stderr == f"launch.sh: python3.99: there is no such program; set OCHAT_PYTHON to {PYTHONS}\n"


PIP = {
    "no version": (
        "ERROR: Could not find a version that satisfies the requirement matplotlib==3.11.2 (from versions: 3.9)\n"
        "ERROR: No matching distribution found for matplotlib==3.11.2",
        "failed at matplotlib==3.11.2; pip says why, above.",
    ),
    "conflict": (
        "ERROR: Cannot install ochat-train because these package versions have conflicting dependencies.\n"
        "    ochat-train 0.1.0 depends on matplotlib>=3.9\n"
        "ERROR: ResolutionImpossible: for help visit a page",
        "failed at matplotlib>=3.9; pip says why, above.",
    ),
    "build": ("ERROR: Failed building wheel for sentencepiece", "failed at sentencepiece; pip says why, above."),
    "disk": ("ERROR: Could not install packages: [Errno 28] No space left on device", "failed: the disk is full"),
    "network": (
        "WARNING: Retrying after NewConnectionError('Temporary failure in name resolution')\n"
        "ERROR: No matching distribution found for setuptools>=77",
        "failed: no package index can be reached",
    ),
    "unknown": ("ERROR: something new", "failed; pip says why, above."),
}


@pytest.mark.parametrize("name", PIP)
def test_the_last_words_of_a_failed_installation_are_not_those_of_pip(name: str, tmp_path: Path) -> None:
    pip_says, expected = PIP[name]
    make_venv(tmp_path, "3.12.1", pip_says=pip_says)
    done = launch(tmp_path)
    assert done.returncode == 2
    assert pip_says in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("launch.sh: the installation failed")
    assert expected in last
    assert not list((tmp_path / ".venv").glob("installed-*"))


def make_installed(folder: Path) -> Path:
    """A project in which everything is installed, with an `ochat` that says where it runs. Returns its launch.sh."""
    make_venv(folder, "3.12.1")
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    stamp = "".join((ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt"))
    (folder / ".venv" / "installed-cpu-adapters-serve-tracking").write_text(stamp)
    command = folder / ".venv" / "bin" / "ochat"
    command.write_text('#!/bin/sh\necho "$PWD: ochat $*"\n')
    command.chmod(0o755)
    return folder / "launch.sh"


def test_a_recipe_is_looked_for_where_launch_sh_is_started_and_then_beside_it(tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "the project", tmp_path / "else where"
    project.mkdir()
    elsewhere.mkdir()
    script = make_installed(project)
    (project / "both.yaml").touch()
    (project / "project.yaml").touch()
    (elsewhere / "both.yaml").touch()
    for name, folder, says in (
        ("both.yaml", elsewhere, False),
        ("project.yaml", project, True),
        ("nowhere.yaml", elsewhere, False),  # `ochat prepare` says that there is none
    ):
        done = subprocess.run(
            [script, name, "--set", "train.epochs=2", "--resume", "never", "--retries", "3", "--", "--num_gpus", "4"],
            env={"PATH": "/usr/bin:/bin"},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines() == [
            f"{folder}: ochat prepare {name} --set train.epochs=2",
            f"{folder}: ochat launch --retries 3 -- deepspeed --log_level warning --num_gpus 4 --module ochat_train "
            f"{name} --set train.epochs=2 --resume never",
        ]
        assert (f"{name} is not in {elsewhere}, but in {project}: it is started there" in done.stderr) == says
