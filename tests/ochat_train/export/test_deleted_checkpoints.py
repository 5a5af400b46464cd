"""Exports of a run that still trains: it deletes a checkpoint while that is read, at each point where it may happen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from ochat_train.checkpoint import choose, room, state
from ochat_train.checkpoint.choose import find_checkpoint
from ochat_train.checkpoint.state import CheckpointManifest, Progress, checkpoint_dir, list_checkpoints, step_of, verify
from ochat_train.export import export as exporting
from ochat_train.export import trained
from ochat_train.export.export import export
from ochat_train.runs.folder import MODEL_CONFIG_FOLDER
from ochat_train.system import pretrained
from ochat_train.system.durable import remove_folder
from tests.support.exports import prepared_recipe, random_model, write_run
from tests.support.small_recipe import write_small_recipe

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
LOSSES = {1: 3.0, 2: 2.0, 3: 1.0, 4: 4.0}  # of validations, by step


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> Path:
    """A run with four checkpoints of the same weights."""
    place = tmp_path_factory.mktemp("made")
    recipe = prepared_recipe(write_small_recipe(place, small_tokenizer_dir))
    folder = place / "run"
    first = write_run(folder, recipe, random_model(recipe, vocab_size=512, **LLAMA))
    manifest = CheckpointManifest.load(first)
    for step, loss in LOSSES.items():
        checkpoint = checkpoint_dir(folder, step)
        if checkpoint != first:
            shutil.copytree(first, checkpoint)
        replace(manifest, progress=Progress(step=step), validation_loss=loss).write(checkpoint)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return shutil.copytree(made, tmp_path / "run")


Deletions = Callable[[Sequence[int]], None]


@pytest.fixture(params=["before the hashes", "while it is hashed", "before the weights", "between the weights' files"])
def deletes(request: pytest.FixtureRequest, run: Path, monkeypatch: pytest.MonkeyPatch) -> Deletions:
    """Lets the run delete these steps, each when the export has come to a point of reading it."""
    module, name = {
        "before the hashes": (exporting, "verify"),
        "while it is hashed": (state, "sha256_of_file"),
        "before the weights": (trained, "load_trained_weights"),
        "between the weights' files": (torch, "load"),
    }[request.param]
    original: Callable[..., Any] = getattr(module, name)

    def delete(steps: Sequence[int]) -> None:
        def deleting(path: Path, **options: Any) -> Any:
            for step in steps:
                if (folder := checkpoint_dir(run, step)) in (path, *path.parents) and folder.is_dir():
                    remove_folder(folder)
            return original(path, **options)

        monkeypatch.setattr(module, name, deleting)

    return delete


def exported_step(folder: Path) -> int:
    return int(json.loads((folder / "ochat.json").read_text())["step"])


def test_the_next_newest_is_exported(
    deletes: Deletions, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that goes after its last byte was read is the one that is exported: nothing else is asked of it."""
    deletes([4])
    assert exported_step(export(run, tmp_path / "out")) == 3
    said = capsys.readouterr().err
    assert "step-00000004 was deleted while it was read: the run still trains" in said
    assert "(checkpoint.keep_last: 2); looking for the next one" in said


def test_a_run_that_deletes_all_that_is_read_is_refused(deletes: Deletions, run: Path, tmp_path: Path) -> None:
    deletes([4, 3, 2])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="checkpoints: 3 checkpoints in a row were deleted while they were read"):
        export(run, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    assert [step_of(folder) for folder in list_checkpoints(run)] == [1]


def test_a_step_that_was_named_is_not_replaced_by_another(deletes: Deletions, run: Path, tmp_path: Path) -> None:
    deletes([2])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--step 2: .*step-00000002 was deleted while it was read.*keep_last: 2"):
        export(run, tmp_path / "out", step=2)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="--step 2: no such checkpoint; steps there: 1, 3, 4"):
        export(run, tmp_path / "out", step=2)


def test_the_checkpoint_is_not_needed_after_its_last_byte_was_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_config = pretrained.load_config

    def deleting(folder: Path, **options: Any) -> Any:
        assert folder == run / MODEL_CONFIG_FOLDER
        shutil.rmtree(run / "checkpoints")
        return load_config(folder, **options)

    monkeypatch.setattr(trained, "load_config", deleting)
    assert exported_step(export(run, tmp_path / "out")) == 4


def test_a_damaged_checkpoint_that_is_there_is_refused(run: Path, tmp_path: Path) -> None:
    """The control: only a checkpoint that is gone may be replaced by another one."""
    file = next(file for file in checkpoint_dir(run, 4).rglob("*.pt"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"step-00000004: .* bytes instead of"):
        export(run, tmp_path / "out")
    (checkpoint_dir(run, 4) / state.MANIFEST).write_text("{}")
    for step in (None, "best"):
        with pytest.raises(UserError, match=r"step-00000004: no readable MANIFEST\.json"):
            export(run, tmp_path / "out", step=step)


def test_the_best_is_looked_for_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one is deleted between the listing and its manifest."""
    used = []

    def use(checkpoint: Path) -> int:
        used.append(step_of(checkpoint))
        with choose.reading(checkpoint):
            if len(used) < 3:
                remove_folder(checkpoint)
            CheckpointManifest.load(checkpoint)
        return used[-1]

    assert choose.with_checkpoint(run, "best", use, keep_last=1) == 1
    assert used == [3, 2, 1]
    listed = list_checkpoints(run)
    monkeypatch.setattr(choose, "list_checkpoints", lambda folder: [*listed, checkpoint_dir(run, 9)])
    assert find_checkpoint(run, "best") == checkpoint_dir(run, 1)


def test_a_newest_that_replaces_all_that_were_listed_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([[], list_checkpoints(run)])
    monkeypatch.setattr(choose, "list_checkpoints", lambda folder: next(looks))
    assert find_checkpoint(run, None) == checkpoint_dir(run, 4)
    monkeypatch.setattr(choose, "list_checkpoints", lambda folder: [])
    with pytest.raises(UserError, match="holds no complete checkpoint; train first"):
        find_checkpoint(run, None)


def test_other_readers_of_a_run_that_trains(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ochat train --resume` of another run's checkpoint verifies it; `ochat check` adds up bytes of checkpoints."""
    checkpoint = checkpoint_dir(run, 1)

    def deleting(path: Path) -> str:
        remove_folder(checkpoint)
        return sha256_of_file(path)

    monkeypatch.setattr(state, "sha256_of_file", deleting)
    assert "mp_rank_00_model_states.pt is missing" in str(verify(checkpoint))
    num_bytes = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    assert room.bytes_in(run) == num_bytes > 0
    (run / "gone").symlink_to(run / "nowhere")  # what a file looks like that is deleted after it was listed
    assert room.bytes_in(run) == num_bytes
