"""Prepared data that has changed stops a training before anything is written; whole data is read once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from ochat_train.distributed.background import Background, wait_for_all
from ochat_train.distributed.ranks import Ranks
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.system import exits
from tests.support.data import without_hashes
from tests.support.prepared_faults import PREPARED_FAULTS, Fault, change_sources, train_on_copies
from tests.support.small_recipe import write_small_recipe

ALONE = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))


@pytest.fixture
def recipe(tmp_path: Path, small_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared recipe in a folder that can be copied: its paths are relative."""
    folder = tmp_path / "main"
    folder.mkdir()
    sources = [{"path": f"{name}.jsonl", "format": "messages", "class": name} for name in ("expert", "suboptimal")]
    changes = {"data__prepared_dir": "prepared", "data__sources": sources, "data__validation_ratio": 0.3}
    path = write_small_recipe(folder, small_tokenizer_dir, output_dir="run", train__max_steps=1, **changes)
    monkeypatch.chdir(folder)
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    return path


def test_changed_data_ends_the_training_with_the_name_of_the_file(recipe: Path, tmp_path: Path) -> None:
    """Every fault is in tests/data_pipeline/prepared; here are one that only hashes find, and two of other kinds."""
    names = ("weights times seven", "edited condition", "extra tokenizer file")
    faults: dict[str, Fault] = {name: PREPARED_FAULTS[name][0] for name in names}
    others = {"whole": lambda prepared: None, "no hashes": without_hashes, "sources": change_sources}
    said = train_on_copies(recipe, tmp_path, {**faults, **others})
    for number, name in enumerate(names):
        assert said[name][0] == exits.USER_ERROR, name
        assert f"ochat train: prepared/{PREPARED_FAULTS[name][1]}: " in said[name][1]
        run = tmp_path / str(number) / "run"
        assert not run.exists() or not [path for path in run.rglob("*") if path.is_file()], "nothing was written"
    assert said["whole"][0] == exits.DONE, "the control"
    assert "warning" not in said["whole"][1]
    assert said["no hashes"][0] == exits.DONE
    assert said["no hashes"][1].count("warning: prepared: was prepared by a version that kept no hashes") == 1
    assert said["sources"][0] == exits.USER_ERROR
    assert "prepared was prepared from other sources than this recipe names" in said["sources"][1]


# ---- work in the background ----


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    def gather(found: list[object], value: object) -> None:
        found[0] = value

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    return ALONE


def test_work_that_comes_further_is_waited_for_however_long_it_takes(one_rank: Ranks) -> None:
    go = threading.Event()

    def work(progress: object) -> int:
        go.wait(60)
        return 5

    background = Background(work, place="data", timeout_seconds=60.0)
    assert not wait_for_all(one_rank, background, most_seconds=0.0)
    go.set()
    assert wait_for_all(one_rank, background)
    assert background.result() == 5


def test_work_that_stands_still_ends_the_wait(one_rank: Ranks) -> None:
    """A disk that no longer answers: the thread cannot be stopped, and is not waited for."""
    go = threading.Event()
    background = Background(lambda progress: go.wait(60), place="data", timeout_seconds=0.0)
    assert wait_for_all(one_rank, background)
    with pytest.raises(UserError, match=r"data: could not be read on for 0 s \(train.hang_timeout_seconds\)"):
        background.result()
    go.set()


def test_an_error_of_the_work_is_its_result(one_rank: Ranks) -> None:
    def work(progress: object) -> None:
        raise UserError("a file", "has changed")

    background = Background(work, place="data", timeout_seconds=60.0)
    assert wait_for_all(one_rank, background)
    with pytest.raises(UserError, match="a file: has changed"):
        background.result()
