"""Folders that are written under a hidden name: what failures, signals and killed processes leave of them."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.unfinished_folders import remove_abandoned, replaced_folder, unfinished_folders


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ending", ["{process}", f"{platform.node()}-{{process}}"], ids=["earlier version", "host"])
def test_only_what_a_dead_process_left_is_removed(ending: str, other: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The controls: that of a process that runs, of another folder and of another host, and a file."""
    left = tmp_path / f".final.tmp-{ending.format(process=other.pid)}"
    left.mkdir()
    (left / "half").write_text("half")
    kept = [".final.tmp-node-7-123", ".final2.tmp-99999999", ".final.tmp-notes"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".final.tmp-99999998").write_text("a file")
    with replaced_folder(tmp_path / "final", owned=False):
        assert left.is_dir(), "its process runs"
    other.kill()
    other.wait()
    [mine] = [folder for folder in unfinished_folders(tmp_path) if folder.path == left]
    assert mine.is_abandoned
    remove_abandoned(tmp_path / "final")
    assert names(tmp_path) == sorted([*kept, ".final.tmp-99999998", "final"])


def test_a_signal_right_after_the_folder_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises it when `mkdir` returns, before anything else is done."""
    make = Path.mkdir

    def interrupted(path: Path, *arguments: bool, **options: bool) -> None:
        make(path, *arguments, **options)
        if ".tmp-" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), replaced_folder(tmp_path / "final", owned=False):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("has_new", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_killed_between_the_two_renames_of_a_replacement(has_new: bool, fails: bool, tmp_path: Path) -> None:
    """What was replaced is removed when there is a new folder; where there is none it gets its name back until there
    is.
    """
    old = tmp_path / f".final.old-{os.getpid()}"
    old.mkdir()
    (old / "content").write_text("old")
    if has_new:
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "content").write_text("new")
    with contextlib.suppress(ZeroDivisionError), replaced_folder(tmp_path / "final", owned=has_new) as folder:
        (folder / "content").write_text("newest")
        if fails:
            raise ZeroDivisionError
    assert names(tmp_path) == ["final"]
    kept = "new" if has_new else "old"
    assert (tmp_path / "final" / "content").read_text() == (kept if fails else "newest")


def test_a_replacement_that_fails_between_its_two_renames_is_undone(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "content").write_text("old")
    with pytest.raises(FileNotFoundError), replaced_folder(final, owned=True) as folder:
        folder.rmdir()  # so the second rename finds nothing
    assert names(tmp_path) == ["final"]
    assert (final / "content").read_text() == "old"
