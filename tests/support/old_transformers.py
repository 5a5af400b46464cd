"""transformers 4.57 beside the version that is installed, to see that it loads exports.

    python -m tests.support.old_transformers

installs it with pip into a folder of the user (packages that both versions share, such as torch, are not installed
again). The tests that need it find it there; without it they are skipped. With OCHAT_TEST_OLD_TRANSFORMERS=1, as CI
sets it, they install it themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("transformers==4.57.6", "huggingface-hub==0.36.2", "tokenizers==0.22.2")
SWITCH = "OCHAT_TEST_OLD_TRANSFORMERS"
# alone in its folder, which Python puts first on its path: `tests/support` has a file `tokenizers.py`
_LOADER = Path(__file__).parent / "old" / "load.py"


def folder() -> Path:
    """Where it is, or would be."""
    cache = Path.home() / ".cache"  # not XDG_CACHE_HOME: while tests run, that is a folder of theirs
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "ochat-train" / "tests" / f"{PACKAGES[0].replace('==', '-')}-{python}"


def install() -> str | None:
    """Install it. What pip said where it cannot."""
    final, temporary = folder(), folder().with_name(f".{folder().name}-{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(temporary), *PACKAGES], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode == 0 and not final.exists():
        temporary.rename(final)
    shutil.rmtree(temporary, ignore_errors=True)
    return None if final.exists() else (done.stderr.strip() or done.stdout.strip())


def require_old_transformers() -> Path:
    """The folder, installed first where that is switched on; otherwise the test is skipped with the reason."""
    if not folder().is_dir():
        if os.environ.get(SWITCH) != "1":
            pytest.skip("transformers 4.57 is not installed: run `python -m tests.support.old_transformers` once")
        if (problem := install()) is not None:
            pytest.skip(f"transformers 4.57 cannot be installed here: {problem.splitlines()[-1]}")
    return folder()


def load_with_old_transformers(packages: Path, work: Path, questions: dict[str, Any]) -> dict[str, Any]:
    """Answers of old/load.py to `questions`, which explains both; `work`: a folder for its files."""
    asked, answered = work / "questions.json", work / "answers.json"
    asked.write_text(json.dumps(questions))
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(_LOADER), str(asked), str(answered)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads(answered.read_text())
    return answers


if __name__ == "__main__":
    if (failure := install()) is not None:
        sys.exit(failure)
    print(folder())
