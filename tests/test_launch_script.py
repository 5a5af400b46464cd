"""`launch.sh` takes the Pythons that pyproject.toml allows, up to the newest with pinned packages, and names others."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.support.processes import ROOT

NEWEST = "3.13"  # the first minor version that launch.sh refuses
MADE_VENV = 7  # the exit code of the fake python when it is asked for a virtual environment

FAKE = f"""#!{sys.executable}
import sys
version = (VERSION)
if sys.argv[1:] == ["--version"]:
    print("Python", ".".join(map(str, version)))
elif sys.argv[1] == "-c":
    sys.version_info = (*version, "final", 0)
    exec(sys.argv[2])
else:
    assert sys.argv[1:3] == ["-m", "venv"]
    sys.exit({MADE_VENV})
"""


@pytest.mark.parametrize("version", ["3.9.20", "3.10.0", "3.11.0", "3.11.2", "3.11.3", "3.11.4", "3.12.9", "3.13.0"])
def test_launch_script_and_package_agree_about_a_python(version: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "launch.sh", tmp_path)
    python = tmp_path / "python"
    python.write_text(FAKE.replace("VERSION", version.replace(".", ", ")))
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "OCHAT_PYTHON": str(python)}
    done = subprocess.run([tmp_path / "launch.sh"], env=environment, capture_output=True, text=True, check=False)
    required = re.search(r'^requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert required is not None
    if SpecifierSet(f"{required[1]},<{NEWEST}").contains(version):
        assert done.returncode == MADE_VENV, done.stderr
    else:
        assert done.returncode == 2
        expected = "cannot be used; set OCHAT_PYTHON to Python 3.10, 3.11 (from 3.11.4) or 3.12"
        assert done.stderr == f"launch.sh: Python {version} {expected}\n"
