"""The commands that a finished run prints can be copied into a shell, whatever its folder is called."""

from __future__ import annotations

import shlex
from pathlib import Path

from ochat_train.training.run import next_steps


def test_paths_are_quoted() -> None:
    for folder in (Path("runs/mine"), Path("my runs/it's $HOME; rm")):
        _, report, export = next_steps(folder).splitlines()
        assert shlex.split(report) == ["ochat", "report", str(folder)]
        assert shlex.split(export) == ["ochat", "export", str(folder), "--out", str(folder / "export")]
