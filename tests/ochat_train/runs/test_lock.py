"""One process trains in a run folder, whatever it does with the run that was there before."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from ochat_train.checkpoint.resume import decide, read_earlier_run, set_aside
from ochat_train.runs.lock import RunLock, real_folder

NUM_RUNS, NUM_ROUNDS = 8, 20


def is_locked(folder: Path) -> bool:
    lock = RunLock(folder)
    try:
        lock.acquire()
    except UserError:
        return True
    lock.close()
    return False


def test_a_folder_is_locked_until_the_lock_is_closed(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "runs" / "mine")
    lock.acquire()
    with pytest.raises(UserError, match=r"mine: another process trains there; wait for it, or use another folder"):
        RunLock(tmp_path / "runs" / "mine").acquire()
    assert not is_locked(tmp_path / "runs" / "other")
    lock.close()
    assert not is_locked(tmp_path / "runs" / "mine")
    lock.close()  # also where it never got it
    RunLock(tmp_path / "runs" / "other").close()


def test_a_run_is_moved_and_its_folder_stays_locked(tmp_path: Path) -> None:
    run, target = tmp_path / "mine", tmp_path / "mine.previous-1"
    lock = RunLock(run)
    lock.acquire()
    (run / "metrics.jsonl").write_text("{}\n")
    lock.move_run_to(target)
    assert is_locked(run)
    assert not is_locked(target)
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert (target / "metrics.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.previous-1"]
    lock.close()
    assert not is_locked(run)


def test_a_run_that_cannot_be_moved_stays_and_stays_locked(tmp_path: Path) -> None:
    run, taken = tmp_path / "mine", tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    lock = RunLock(run)
    lock.acquire()
    with pytest.raises(UserError, match=r"cannot be moved to .*taken: .*not empty"):
        lock.move_run_to(taken)
    assert is_locked(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "taken"]


def test_of_many_runs_that_start_over_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    """Each locks the folder, moves the earlier run away and trains; the others try again and again meanwhile."""
    for number in range(NUM_ROUNDS):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "metrics.jsonl").write_text("earlier\n")
        together, locks = threading.Barrier(NUM_RUNS), []

        def start(run: Path = run, together: threading.Barrier = together, locks: list[RunLock] = locks) -> None:
            lock = RunLock(run)
            together.wait()
            for _ in range(5):
                try:
                    lock.acquire()
                    if (run / "metrics.jsonl").exists():
                        lock.move_run_to(run.with_name(f"{run.name}.previous-1"))
                except (UserError, OSError):  # a run ends with either
                    continue
                locks.append(lock)
                return

        threads = [threading.Thread(target=start) for _ in range(NUM_RUNS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(locks) == 1
        assert is_locked(run)
        assert (tmp_path / f"{number}.previous-1" / "metrics.jsonl").read_text() == "earlier\n"
        locks[0].close()


# ---- a folder that is taken away ----


def test_a_lock_notices_that_its_folder_is_not_the_runs_any_more(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    lock = RunLock(run)
    lock.acquire()
    lock.require_held()  # the control
    run.rename(tmp_path / "renamed")
    with pytest.raises(UserError, match=r"mine: the run folder was changed .*: it is no longer there"):
        lock.require_held()
    run.mkdir()
    with pytest.raises(UserError, match=r"its lock was removed or replaced"):
        lock.require_held()
    other = RunLock(run)
    other.acquire()  # another run begins there
    with pytest.raises(UserError, match=r"its lock was removed or replaced"):
        lock.require_held()
    other.require_held()
    other.close()
    shutil.rmtree(run)
    (tmp_path / "renamed").rename(run)
    lock.require_held()  # named back
    (run / ".lock").unlink()
    (run / ".lock").touch()
    with pytest.raises(UserError, match=r"its lock was removed or replaced"):
        lock.require_held()
    lock.close()


def linked_run(folder: Path, *, exists: bool = True) -> tuple[Path, Path]:
    """A run folder that is a link to another disk: the link, and where it leads."""
    (folder / "home").mkdir()
    (folder / "disk").mkdir()
    link, real = folder / "home" / "mine", folder / "disk" / "runs"
    if exists:
        real.mkdir()
    link.symlink_to(real)
    return link, real


def test_a_linked_run_is_moved_on_its_own_disk_and_the_link_stays(tmp_path: Path) -> None:
    link, real = linked_run(tmp_path)
    lock = RunLock(link)
    lock.acquire()
    (link / "metrics.jsonl").write_text("earlier\n")
    earlier = read_earlier_run(real_folder(link), "never")
    decision = decide(earlier, "never", num_ranks=1, recipe=None, data_fingerprint="", accept_changes=False)  # type: ignore[arg-type]
    set_aside(decision, lock)
    assert decision.run_moves_to == tmp_path / "disk" / "runs.previous-1"
    assert (link.is_symlink(), link.readlink()) == (True, real)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["mine"]
    assert (tmp_path / "disk" / "runs.previous-1" / "metrics.jsonl").read_text() == "earlier\n"
    assert [path.name for path in real.iterdir()] == [".lock"]
    lock.require_held()
    assert is_locked(link)
    assert is_locked(real)
    link.unlink()
    link.symlink_to(tmp_path / "disk" / "runs.previous-1")
    with pytest.raises(UserError, match=r"its lock was removed or replaced"):
        lock.require_held()  # the run would write elsewhere
    lock.close()


def test_a_link_to_a_folder_that_is_not_there_yet_makes_it(tmp_path: Path) -> None:
    link, real = linked_run(tmp_path, exists=False)
    lock = RunLock(link)
    lock.acquire()
    assert is_locked(real)
    lock.close()
    assert real_folder(tmp_path / "disk") == tmp_path / "disk"
