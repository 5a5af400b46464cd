"""What is installed: every file of the packages that is not Python is declared as package data."""

from __future__ import annotations

import fnmatch
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from tests.support.processes import ROOT


def declared() -> dict[str, list[str]]:
    """Package -> patterns of its data files."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data: dict[str, list[str]] = settings["tool"]["setuptools"]["package-data"]
    return data


def is_match(path: PurePosixPath, pattern: PurePosixPath) -> bool:
    """Whether each part of a path fits its part of a pattern, as setuptools reads patterns."""
    pairs = zip(path.parts, pattern.parts, strict=False)
    return len(path.parts) == len(pattern.parts) and all(fnmatch.fnmatchcase(*pair) for pair in pairs)


def left_out(files: Sequence[str], data: Mapping[str, Sequence[str]]) -> list[str]:
    """Files that no pattern takes."""
    patterns = [PurePosixPath(name.replace(".", "/")) / row for name, rows in data.items() for row in rows]
    return [file for file in files if not any(is_match(PurePosixPath(file), pattern) for pattern in patterns)]


def data_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "ochat_train", "data_pipeline"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\n") if name and not name.endswith(".py")]


def test_every_data_file_of_the_packages_is_installed() -> None:
    files = data_files()
    assert {Path(file).suffix for file in files} >= {".jinja", ".json", ".yaml", ".html"}
    assert left_out(files, declared()) == []


def test_a_file_that_is_not_declared_is_found() -> None:
    """The control, also for a folder below a declared one."""
    files = ["a/b/x.yaml", "a/b/parts/x.js", "a/b/x.json", "a/c/x.yaml", "a/b/other/x.yaml"]
    assert left_out(files, {"a.b": ["*.yaml", "parts/*"]}) == files[2:]


def test_every_pattern_takes_a_file() -> None:
    files = data_files()
    for package, patterns in declared().items():
        for pattern in patterns:
            assert len(left_out(files, {package: [pattern]})) < len(files), f"{package}: {pattern}"
