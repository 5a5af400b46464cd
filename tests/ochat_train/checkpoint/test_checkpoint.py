"""Checkpoints: a failed write never hurts an older one, damage is always found, and nothing planted is run."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from ochat_train.checkpoint.resume import decide, read_earlier_run
from ochat_train.checkpoint.state import (
    MANIFEST,
    MANIFEST_HASH,
    CheckpointManifest,
    list_checkpoints,
    refuse_unsafe_pickles,
    verify,
)
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.system import exits
from tests.support.failpoints import run_failpoints
from tests.support.faults import flip_bits
from tests.support.measured import Measured
from tests.support.processes import finish, run_jobs, start_ranks, train_on_ranks
from tests.support.run_folder import metrics
from tests.support.small_recipe import TINY_MODEL, RecipeFactory

NUM_FLIPS = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def run_dir(made: Path, make_recipe: RecipeFactory) -> Path:
    """A run of two ranks with checkpoints at steps 2, 4 and 6, made once; tests work on copies."""
    if not (made / "run").exists():
        path = make_recipe(output_dir=str(made / "run"), data__prepared_dir=str(made / "prepared"), **SHORT)
        prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
        train_on_ranks(["train", path.rename(made / "run.yaml")])
    return made / "run"


SHORT: dict[str, Any] = {"train__max_steps": 6, "checkpoint__save_every_steps": 2, "checkpoint__keep_last": 9}


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def choose(output_dir: Path, made: Path, resume: str = "auto", *, num_ranks: int = 2, stage: int = 2) -> str:
    """The checkpoint that a run with this output folder would resume from, or the message of the refusal."""
    recipe = load_recipe(made.with_suffix(".yaml"), [f"deepspeed.zero_stage={stage}"])
    manifest = CheckpointManifest.load(made / "checkpoints" / "step-00000002")
    try:
        decision = decide(
            read_earlier_run(output_dir, resume),
            resume,
            num_ranks=num_ranks,
            recipe=recipe,
            data_fingerprint=manifest.data_fingerprint,
            accept_changes=False,
        )
    except UserError as error:
        return str(error)
    return decision.checkpoint.name if decision.checkpoint else "none"


# ---- damage ----


def test_every_flipped_bit_is_found(copy: Path, measured: Measured) -> None:
    """In every kind of file; the control: torch.load silently reads flipped tensors."""
    outcome = flip_bits(copy / "checkpoints" / "step-00000006", NUM_FLIPS, random.Random(0))
    measured(f"flipped bits found, of {NUM_FLIPS}", outcome["found"])
    measured(f"control: flipped bits that torch.load read silently, of {outcome['torch_files']}", outcome["silent"])
    assert outcome["found"] == NUM_FLIPS
    assert outcome["silent"] > outcome["torch_files"] / 2


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "state").glob("*optim_states.pt"))


def truncate(folder: Path) -> None:
    os.truncate(shards(folder)[0], 100)


def delete(folder: Path) -> None:
    shards(folder)[1].unlink()


def swap(folder: Path) -> None:
    first, second = shards(folder)
    between = first.with_suffix(".x")
    first.rename(between)
    second.rename(first)
    between.rename(second)


def copy_a_shard_over_another(folder: Path) -> None:
    shutil.copy(*shards(folder))


def add_a_file(folder: Path) -> None:
    shutil.copy(shards(folder)[0], folder / "state" / "zero_pp_rank_2_mp_rank_00_optim_states.pt")


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 200)


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


def remove_hash_of_manifest(folder: Path) -> None:
    (folder / MANIFEST_HASH).unlink()


def hash_of_another_manifest(folder: Path) -> None:
    shutil.copy(folder.with_name("step-00000004") / MANIFEST_HASH, folder)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        delete,
        swap,
        copy_a_shard_over_another,
        add_a_file,
        remove_manifest,
        cut_manifest,
        empty_manifest,
        remove_hash_of_manifest,
        hash_of_another_manifest,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_checkpoint_is_passed_over(damage: Callable[[Path], None], copy: Path, run_dir: Path) -> None:
    damage(copy / "checkpoints" / "step-00000006")
    assert choose(copy, run_dir) == "step-00000004"


@pytest.mark.parametrize("content", ["", "step-00000099\n", "../../etc\n", None])
def test_the_pointer_for_people_does_not_decide(content: str | None, copy: Path, run_dir: Path) -> None:
    latest = copy / "checkpoints" / "LATEST"
    latest.unlink() if content is None else latest.write_text(content)
    assert choose(copy, run_dir) == "step-00000006"


def test_stray_folders_are_no_checkpoints(copy: Path, run_dir: Path) -> None:
    for name in (
        "step-99",
        "step-00000100",
        ".tmp-step-00000101-abcdef01",
        "step-00000200.bak",
        "aside-1-step-00000300",
    ):
        (copy / "checkpoints" / name).mkdir()
    (copy / "checkpoints" / "step-00000400").write_text("a file")
    assert choose(copy, run_dir) == "step-00000006"


def test_no_intact_checkpoint_is_an_error_and_never_a_silent_restart(copy: Path, run_dir: Path) -> None:
    for folder in list_checkpoints(copy):
        delete(folder)
    message = choose(copy, run_dir)
    assert "no checkpoint is intact" in message
    assert "`--resume never` starts over" in message


@pytest.mark.parametrize(("stage", "is_converted"), [(0, False), (1, True), (3, False)])
def test_what_cannot_be_converted_is_refused(stage: int, is_converted: bool, copy: Path, run_dir: Path) -> None:
    assert choose(copy, run_dir, num_ranks=4) == "step-00000006"
    answer = choose(copy, run_dir, num_ranks=4, stage=stage)
    refusal = f"number of GPUs (2 -> 4), deepspeed.zero_stage (2 -> {stage}); change it back, or start over"
    assert answer == "step-00000006" if is_converted else refusal in answer


# ---- what is planted ----


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("name", ["*optim_states.pt", "*model_states.pt"])
def test_a_planted_pickle_is_not_run(name: str, copy: Path, run_dir: Path, tmp_path: Path) -> None:
    """Even with hashes that agree; the control shows that loading it would have run it."""
    folder = copy / "checkpoints" / "step-00000006"
    path = next((folder / "state").glob(name))
    torch.save({"module": Payload(tmp_path / "canary")}, path)
    manifest = CheckpointManifest.load(folder)
    manifest.files[str(path.relative_to(folder))] = (path.stat().st_size, sha256_of_file(path))
    manifest.write(folder)
    assert verify(folder) is None
    with pytest.raises(UserError, match=r"would run (os|posix)\.system when loaded"):
        refuse_unsafe_pickles(folder)
    assert not (tmp_path / "canary").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "canary").exists()


def test_a_pickle_that_is_no_archive_is_refused(copy: Path) -> None:
    folder = copy / "checkpoints" / "step-00000006"
    shards(folder)[0].write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(UserError, match="cannot be read as a torch file"):
        refuse_unsafe_pickles(folder)


# ---- writes that fail ----


def test_every_point_of_a_write_can_be_the_last(tmp_path: Path, make_recipe: RecipeFactory, measured: Measured) -> None:
    """The process ends before, or half-way through, each change to the disk; each time the newest verified checkpoint
    loads.
    """
    path = make_recipe(**{**SHORT, "checkpoint__keep_last": 1})
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    outcome = run_failpoints(path)
    measured("points of a write at which the process ended", outcome["points"])
    assert outcome["points"] >= 30
    assert outcome["recovered"] == outcome["points"], outcome
    assert outcome["without_manifest"] > 0, "control: a folder without manifest check would have been taken for whole"


def test_a_rank_that_cannot_write_stops_all_with_one_message(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """Rank 1 has no room, by an error and by the system's own limit; a slow rank is waited for; the older one stays."""
    jobs, faults = (
        [],
        {
            "enospc": {"rank": 1, "call": "write_all", "nth": 60, "do": "full_disk"},
            "manifest": {"rank": 0, "call": "rename", "nth": 8, "do": "full_disk"},
            "limit": {"rank": 1, "step": 4, "do": "limit_file_size"},
            "slow": {"rank": 1, "call": "sync_file", "nth": 4, "do": "wait"},
        },
    )
    for name, fault in faults.items():
        path = make_recipe(output_dir=str(tmp_path / name), **SHORT)
        prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
        jobs.append({"command": ["train", path.rename(tmp_path / f"{name}.yaml")], "fault": fault})
    jobs.append(jobs.pop(2))  # the limit stays for the rest of the process
    outputs, _ = run_jobs(*jobs)
    for output in outputs:
        exits = [line for line in output.splitlines() if line.startswith("exit code")]
        assert exits == ["exit code 2", "exit code 2", "exit code 0", "exit code 2"], outputs[0][-4000:]
    assert outputs[0].count("could not be written: rank 1: ") == 2
    assert "No space left on device" in outputs[0]
    assert "File too large" in outputs[0]
    for name in faults:
        newest = list_checkpoints(tmp_path / name)[-1]
        assert verify(newest) is None
        assert newest.name == (
            "step-00000006" if name == "slow" else "step-00000002" if name == "enospc" else newest.name
        )
        leftovers = [path.name for path in newest.parent.iterdir() if path.name.startswith(".tmp")]
        assert leftovers == [] or name == "manifest"


def test_a_rank_that_dies_while_it_writes_leaves_the_older_checkpoint(
    tmp_path: Path, make_recipe: RecipeFactory
) -> None:
    """The control: DeepSpeed's own pointer has moved to what is not there."""
    path = make_recipe(**SHORT)
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    outputs, codes = run_jobs(
        {"command": ["train", path], "fault": {"rank": 1, "call": "write_all", "nth": 60, "do": "kill"}}
    )
    assert codes == [exits.LOST_RANKS, -9], outputs[0][-3000:]
    assert "at step 4, writing a checkpoint" in outputs[0]
    root = tmp_path / "run" / "checkpoints"
    assert (root / "LATEST").read_text() == "step-00000002\n"
    assert [folder.name for folder in list_checkpoints(tmp_path / "run")] == ["step-00000002"]
    assert verify(root / "step-00000002") is None
    assert list(root.glob(".tmp-step-00000004-*/state/*.pt")) != []  # what was written; the next save clears it away

    finish(start_ranks("tests.support.plain_deepspeed", str(path), str(tmp_path / "plain"), num_ranks=2))
    assert (tmp_path / "plain" / "latest").read_text() == "bad"
    assert len(list((tmp_path / "plain" / "bad").glob("*optim_states.pt"))) == 1


def test_room_is_checked_before_a_byte_is_written(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    path = make_recipe(**SHORT)
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    [output], codes = run_jobs({"command": ["train", path], "fault": {"step": 1, "do": "no_room"}}, num_ranks=1)
    assert codes == [2]
    assert "needs about 0.00 GiB for a checkpoint and has 0.00 GiB free; nothing was written" in output
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_the_estimate_is_close_to_real_sizes(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    """Never less than what is written, and at most a tenth more, beside the fixed margin."""
    larger = {**TINY_MODEL, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    jobs = []
    cases = {
        "zero0": (0, "float32"),
        "zero2": (2, "float32"),
        "zero3": (3, "float32"),
        "zero2_bfloat16": (2, "bfloat16"),
    }
    for case, (stage, precision) in cases.items():
        path = make_recipe(
            output_dir=str(tmp_path / case),
            model__config=larger,
            train__max_steps=1,
            deepspeed__zero_stage=stage,
            model__precision=precision,
        )
        prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
        jobs.append({"command": ["train", path.rename(tmp_path / f"{case}.yaml")]})
    outputs, codes = run_jobs(*jobs)
    assert codes == [0, 0], outputs[0][-3000:]
    estimates = [int(line.split()[-1]) for line in outputs[0].splitlines() if line.startswith("estimated bytes")]
    for case, estimate in zip(cases, estimates, strict=True):
        [folder] = list_checkpoints(tmp_path / case)
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert written <= estimate <= 1.1 * written + 2 * 2**20, case


def test_incomplete_checkpoints_take_no_place_and_good_ones_survive(copy: Path, run_dir: Path, made: Path) -> None:
    """Retention of two, after the newest one lost a file: it neither counts nor is deleted."""
    delete(copy / "checkpoints" / "step-00000004")
    (copy / "checkpoints" / ".tmp-step-00000006-deadbeef").mkdir()
    (copy / "checkpoints" / ".universal-step-00000002").mkdir()
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    text = (
        run_dir.with_suffix(".yaml")
        .read_text()
        .replace(str(run_dir), str(copy))
        .replace("keep_last: 9", "keep_last: 2")
    )
    path = copy.parent / "copy.yaml"
    path.write_text(text)
    train_on_ranks(["train", path])
    names = sorted(folder.name for folder in (copy / "checkpoints").iterdir())
    assert names == ["LATEST", "aside-1-step-00000004", "step-00000004", "step-00000006"]
    assert verify(copy / "checkpoints" / "step-00000004") is None
    assert [line["step"] for line in metrics(copy)] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in metrics(copy)] == [line["loss"] for line in metrics(run_dir)]
