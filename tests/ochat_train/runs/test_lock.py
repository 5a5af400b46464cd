"""One process trains in a run folder, whatever it does with the run that was there before."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from ochat_train.runs.lock import RunLock

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
