"""What changed between a checkpoint and a resume: refused by name, told, or without effect. One real rank."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from data_pipeline.errors import UserError
from ochat_train.checkpoint.basis import config_entries
from ochat_train.checkpoint.changes import IDLE_KEYS
from ochat_train.checkpoint.state import CheckpointManifest, list_checkpoints
from ochat_train.export.export import export
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.runs.folder import MODEL_CONFIG_FOLDER
from ochat_train.system import exits
from tests.support.data import edit_manifest
from tests.support.faults import same_run
from tests.support.prepared_faults import TRAIN, flip_bit, rewrite, times_seven
from tests.support.processes import ROOT, run_jobs
from tests.support.small_recipe import TINY_MODEL, write_small_recipe

Spoil = Callable[[Path], object]
ROPE = {"rope_theta": 500_000.0, "rope_type": "default"}
THETA = "base config: rope_parameters.rope_theta (10000.0 -> 500000.0)"


def base_config(**values: Any) -> Spoil:
    def edit(host: Path) -> None:
        path = host / "base" / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, **values}), encoding="utf-8")

    return edit


def checkpoint(**values: Any) -> Spoil:
    """Another manifest in the checkpoint that is resumed from."""

    def edit(host: Path) -> None:
        [folder] = list_checkpoints(host / "run")
        dataclasses.replace(CheckpointManifest.load(folder), **values).write(folder)

    return edit


def both(*parts: Spoil) -> Spoil:
    def edit(host: Path) -> None:
        for part in parts:
            part(host)

    return edit


OF_EARLIER_VERSION = checkpoint(data_rows="", base_config={}, base_weights="", versions={"torch": "2.0.0"})


def other_weights(host: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(host / "base")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(host / "base")


def other_rows(host: Path) -> None:
    """Rows that were prepared from the same, by something that makes other rows of it."""
    rewrite(host / "prepared" / TRAIN, times_seven)
    edit_manifest(host / "prepared", lambda content: content["files"].update({TRAIN: file_entry(host)}))


def file_entry(host: Path) -> dict[str, Any]:
    from data_pipeline.prepared.integrity import hashes_of

    return vars(hashes_of(host / "prepared")[TRAIN])


def nothing(host: Path) -> None:
    pass


# name -> (what is changed, options, what the message must hold)
REFUSED: dict[str, tuple[Spoil, list[str], str]] = {
    "rope": (base_config(rope_parameters=ROPE), [], THETA),
    "rope, checkpoint of an earlier version": (
        both(OF_EARLIER_VERSION, base_config(rope_parameters=ROPE)),
        [],
        THETA,
    ),
    "rows": (other_rows, [], "rows of the prepared data ("),
    "raw configuration": (
        nothing,
        ["--set", "deepspeed.config={zero_optimization: {reduce_bucket_size: 1000}}"],
        "deepspeed.config.zero_optimization.reduce_bucket_size (None -> 1000)",
    ),
    "optimizer offload": (
        nothing,
        ["--set", "deepspeed.offload_optimizer=true", "--accept-changes"],
        "deepspeed.offload_optimizer (False -> True); its optimizer states cannot be converted",
    ),
}
# The steps are those of the run that was not interrupted, bit for bit.
EXACT: dict[str, tuple[Spoil, list[str], str]] = {
    "unchanged": (nothing, [], ""),
    "other weights of the base, other names in its config": (
        both(other_weights, base_config(use_cache=False, architectures=["Other"], eos_token_id=7)),
        [],
        "they are not used: weights come from the checkpoint",
    ),
    "checkpoint of an earlier version": (OF_EARLIER_VERSION, [], "the last digits may differ: torch 2.0.0 -> "),
    "parameter offload, harmless raw configuration": (
        nothing,
        [
            "--set",
            "deepspeed.offload_parameters=true",
            "--set",
            "deepspeed.config={zero_optimization: {overlap_comm: false}}",
        ],
        "",
    ),
}
ACCEPTED: dict[str, tuple[Spoil, list[str], str]] = {
    "rope": (base_config(rope_parameters=ROPE), ["--accept-changes"], f"resuming with accepted changes: {THETA}"),
}


@pytest.fixture
def interrupted(tmp_path: Path, small_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe of relative paths, its base and data, and a run that has done 2 of 4 steps.

    The same run with all its steps is in `whole` beside it.
    """
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
    changes = {"data__prepared_dir": "prepared", "deepspeed__zero_stage": 3, "deepspeed__config": {}}
    steps = {"train__max_steps": 4, "checkpoint__save_every_steps": 2}
    recipe = write_small_recipe(
        folder, small_tokenizer_dir, num_conversations=30, output_dir="run", model=model, **changes, **steps
    )
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    _, codes = run_jobs({"command": ["train", recipe.name], "folders": [str(folder)]}, num_ranks=1)
    assert codes == [0]
    shutil.copytree(folder / "run", tmp_path / "whole")
    shutil.rmtree(list_checkpoints(folder / "run")[-1])
    return folder


def test_what_changed_is_refused_or_told(interrupted: Path, tmp_path: Path) -> None:
    cases = [(group, name, case) for group in (EXACT, REFUSED, ACCEPTED) for name, case in group.items()]
    jobs: list[dict[str, Any]] = []
    for number, (_, _, (spoil, options, _)) in enumerate(cases):
        place = tmp_path / str(number)
        shutil.copytree(interrupted, place)
        spoil(place)
        jobs.append({"command": ["train", "recipe.yaml", *options], "folders": [str(place)]})
    [output], _ = run_jobs(*jobs, num_ranks=1)
    parts = re.split(r"^exit code (\d+)$", output, flags=re.MULTILINE)
    assert len(parts) == 2 * len(cases) + 1
    for number, (group, name, (_, _, text)) in enumerate(cases):
        said, code = parts[2 * number], int(parts[2 * number + 1])
        assert text in said, (name, said[-2000:])
        assert code == (exits.USER_ERROR if group is REFUSED else exits.DONE), (name, said[-2000:])
        is_same = group is not REFUSED and same_run(tmp_path / str(number) / "run", tmp_path / "whole")
        assert is_same == (group is EXACT), name
        warned = "the last digits may differ" in said, "they are not used" in said
        assert warned == ("the last digits" in text or "kernel" in text, "not used" in text), name
    untouched = json.loads((interrupted / "run" / MODEL_CONFIG_FOLDER / "config.json").read_text(encoding="utf-8"))
    refused = tmp_path / str(len(EXACT)) / "run" / MODEL_CONFIG_FOLDER / "config.json"
    assert json.loads(refused.read_text(encoding="utf-8")) == untouched, "a refused start writes nothing"
    exports_refuse_what_was_not_trained(tmp_path / "whole", tmp_path / "edited")


def exports_refuse_what_was_not_trained(run: Path, copy: Path) -> None:
    """A run folder whose configuration, tokenizer or manifest was edited after the training."""

    def edit(name: str, **values: Any) -> None:
        content = json.loads((copy / name).read_text(encoding="utf-8"))
        (copy / name).write_text(json.dumps({**content, **values}), encoding="utf-8")

    edits = {
        "model_config/config.json": lambda name: edit(name, rope_parameters=ROPE),
        "tokenizer/tokenizer.json": lambda name: flip_bit(copy / name),
        "prepared.json": lambda name: edit(name, inference_condition="Other"),
    }
    for name, spoil in edits.items():
        shutil.copytree(run, copy)
        spoil(name)
        with pytest.raises(UserError) as caught:
            export(copy, copy / "export", step=None, max_shard_size="1GB")
        assert caught.value.place == str(copy / name)
        shutil.rmtree(copy)
    assert export(run, run / "export", step=None, max_shard_size="1GB").is_dir(), "the control"


@pytest.mark.parametrize(
    "values",
    [
        TINY_MODEL,
        {"model_type": "qwen3", "layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
        {"model_type": "gemma3_text"},
        {
            "model_type": "llama",
            "max_position_embeddings": 131_072,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ],
    ids=lambda values: values["model_type"],
)
def test_a_config_has_the_same_entries_however_it_was_written(values: dict[str, Any], tmp_path: Path) -> None:
    """Whole, as a checkpoint holds it, and with what differs from the defaults, as `config.json` has it."""
    config = transformers.AutoConfig.for_model(**values)
    config.save_pretrained(tmp_path)
    short = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config_entries(short) == config_entries(json.loads(json.dumps(config.to_dict()))) == config_entries(values)
    assert config_entries({**short, "rms_norm_eps": 0.5}) != config_entries(short), "the control"


def test_the_docs_list_the_keys_that_may_change() -> None:
    page = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    assert [key for key in IDLE_KEYS if f"`{key}`" not in page] == []
