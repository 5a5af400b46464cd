"""Hosts that do not fit together are refused at the start, by all ranks, with one message. Two real ranks in two
folders.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from data_pipeline.errors import UserError
from ochat_train.cli.main import main
from ochat_train.distributed import agreement, rendezvous
from ochat_train.distributed.launch import free_port
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.system import exits
from tests.support.data import edit_manifest
from tests.support.processes import run_jobs
from tests.support.run_folder import metrics
from tests.support.small_recipe import TINY_MODEL, write_small_recipe

HOST = socket.gethostname()
Spoil = Callable[[Path], None]


def changed_recipe(host: Path) -> None:
    path = host / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["optimizer"]["learning_rate"] = 0.004
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")


def other_data(host: Path) -> None:
    edit_manifest(host / "prepared", lambda manifest: manifest.update(fingerprint="0123456789abcdef"))


def flipped_bit(host: Path) -> None:
    path = host / "prepared" / "train" / "data-00000-of-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def no_data(host: Path) -> None:
    shutil.rmtree(host / "prepared")


def no_base(host: Path) -> None:
    shutil.rmtree(host / "base")


def other_settings(host: Path) -> None:
    edit_manifest(host / "prepared", lambda manifest: manifest["inputs"].update(settings="0" * 64))


def own_disk(host: Path) -> None:
    (host / "run").unlink()
    (host / "run").mkdir()


SPOILED: dict[str, tuple[Spoil, str]] = {
    "recipe": (
        changed_recipe,
        f"the hosts differ: optimizer.learning_rate is 0.004 on rank 1 ({HOST}), but 0.003 on",
    ),
    "data": (
        other_data,
        f"the hosts differ: the fingerprint of the prepared data is 0123456789ab on rank 1 ({HOST}), but",
    ),
    "flipped_bit": (flipped_bit, f"rank 1 ({HOST}): prepared/train/data-00000-of-00001.arrow: has changed since"),
    "no_data": (no_data, f"rank 1 ({HOST}): data.prepared_dir: prepared holds no prepared dataset; run `ochat prepare"),
    "no_base": (no_base, f"rank 1 ({HOST}): model.path: base: cannot be loaded"),
    "own_disk": (own_disk, f"output_dir: rank 1 ({HOST}) looked into "),
}


@pytest.fixture
def host(tmp_path: Path, small_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, prepared data, and a run folder that is somewhere else: what each host sees."""
    folder = tmp_path / "main"
    folder.mkdir()
    monkeypatch.chdir(folder)
    config = transformers.AutoConfig.for_model(**TINY_MODEL, vocab_size=400)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    model = {
        "path": "base",
        "tokenizer": str(small_tokenizer_dir),
        "template": "openchat_3.5",
        "max_length_tokens": 256,
    }
    recipe = write_small_recipe(
        folder,
        small_tokenizer_dir,
        output_dir="run",
        data__prepared_dir="prepared",
        train__max_steps=2,
        num_conversations=30,
        model=model,
    )
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    (tmp_path / "shared").mkdir()
    (folder / "run").symlink_to(tmp_path / "shared")
    return folder


def test_hosts_that_differ_are_refused_before_the_first_step(host: Path, tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = []
    for name, (spoil, _) in SPOILED.items():
        other = tmp_path / name
        shutil.copytree(host, other, symlinks=True)
        spoil(other)
        jobs.append({"command": ["train", "recipe.yaml"], "folders": [str(host), str(other)]})
    good = tmp_path / "good"
    shutil.copytree(host, good, symlinks=True)
    (main_output, other_output), codes = run_jobs(
        *jobs, {"command": ["train", "recipe.yaml"], "folders": [str(host), str(good)]}
    )
    assert codes == [0, 0]
    expected = [f"exit code {exits.USER_ERROR}"] * len(SPOILED) + ["exit code 0"]
    for output in (main_output, other_output):
        assert [line for line in output.splitlines() if line.startswith("exit code ")] == expected
    said = [line for line in main_output.splitlines() if line.startswith("ochat train: ")]
    assert len(said) == len(SPOILED)
    for line, (_, text) in zip(said, SPOILED.values(), strict=True):
        assert text in line
    assert "ochat train: " not in other_output, "rank 0 speaks for all"
    assert said[-1].endswith("under the same path")
    assert str(tmp_path / "own_disk" / "run") in said[-1]
    assert str(host / "run") in said[-1]
    assert len(metrics(tmp_path / "shared")) == 2
    assert list((tmp_path / "own_disk" / "run").iterdir()) == []
    assert not list((tmp_path / "shared").glob(".seen-by-all-*"))


def test_a_recipe_that_one_host_lacks_is_told_by_that_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ranks end before they meet the others, so nobody else can say it; the first of the host does."""
    said = []
    for local_rank in ("0", "1"):
        monkeypatch.setenv("RANK", str(8 + int(local_rank)))
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert main(["train", str(tmp_path / "recipe.yaml")]) == exits.USER_ERROR
        said.append(capsys.readouterr().err)
    assert said[0].startswith(f"ochat train: {HOST}: {tmp_path}/recipe.yaml: cannot be read")
    assert said[1] == ""


# ---- roll call ----


def met_alone(monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int = 0) -> UserError:
    """What a rank says that meets nobody."""
    for name, value in {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": 4,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError) as caught:
        rendezvous.meet(seconds=1.5)
    return caught.value


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = met_alone(monkeypatch, rank=0)
    assert str(error).startswith("3 of 4 ranks did not join within 1.5 s: 1, 2, 3; look at the output of their hosts")


def test_ranks_that_came_later_name_the_same() -> None:
    """The first that has waited long enough gives up for all; otherwise the others would lose the store."""
    store = torch.distributed.HashStore()
    for rank in (0, 1):
        rendezvous.join(store, rank)
    assert rendezvous.missing_ranks(store, 3, seconds=0.0, poll_seconds=0.01) == [2]
    assert rendezvous.missing_ranks(store, 3, seconds=600.0, poll_seconds=0.01) == [2]


def test_a_rank_that_is_late_looks_for_the_file_all_the_same(tmp_path: Path) -> None:
    """Its time was over before it first looked, as on a host that does much else."""
    assert agreement._sees(tmp_path, seconds=0.0)
    assert not agreement._sees(tmp_path / "none", seconds=0.0)  # the control


def test_hosts_with_different_problems_are_all_told(host: Path, tmp_path: Path) -> None:
    folders = []
    for name, spoil in (("first", no_data), ("second", other_settings)):
        shutil.copytree(host, tmp_path / name, symlinks=True)
        spoil(tmp_path / name)
        folders.append(str(tmp_path / name))
    outputs, codes = run_jobs({"command": ["train", "recipe.yaml"], "folders": folders})
    assert codes == [exits.USER_ERROR] * 2
    lines = outputs[0].splitlines()
    start = lines.index("ochat train: ranks: cannot start, for different reasons")
    assert lines[start + 1].startswith(f"  rank 0 ({HOST}): data.prepared_dir: prepared holds no prepared dataset")
    assert lines[start + 2].startswith(
        f"  rank 1 ({HOST}): data.prepared_dir: prepared was prepared from other settings"
    )


@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_first_rank_that_cannot_be_reached_is_told_once_a_host(
    local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = met_alone(monkeypatch, rank=2 + local_rank, local_rank=local_rank)
    assert f"rank {2 + local_rank} ({HOST}): cannot reach rank 0 at 127.0.0.1:" in str(error)
    assert isinstance(error, exits.OneRankError) == (local_rank == 0), "only such are printed by ranks other than 0"
