"""Exports of runs with an adapter: merged into the base, or as a folder that PEFT loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.adapter import merge as merging
from ochat_train.adapter.folder import ADAPTER_WEIGHTS, load_adapter
from ochat_train.export.export import export
from ochat_train.export.verify import logits_of
from ochat_train.inference.generate import load_generator
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.folder import read_run_folder
from tests.support.adapted_runs import write_adapted_run, write_base
from tests.support.small_recipe import RecipeFactory

Adapted = Callable[..., tuple[Path, Any]]


@pytest.fixture
def adapted(tmp_path: Path, make_recipe: RecipeFactory, small_tokenizer_dir: Path) -> Adapted:
    """Makes a run with an adapter: its folder, and the model that it trained. The base lacks the template's token."""

    def run(*, dtype: torch.dtype = torch.float32, base: dict[str, Any] | None = None, **adapter: Any) -> Any:
        model = {
            "path": str(tmp_path / "base"),
            "tokenizer": str(small_tokenizer_dir),
            "template": "openchat_3.5",
            "max_length_tokens": 256,
        }
        recipe = load_recipe(make_recipe(model=model, adapter={"type": "lora", "rank": 4, **adapter}))
        rows = _prepared(recipe, tmp_path, base or {})
        assert rows
        _, trained = write_adapted_run(tmp_path / "run", recipe, dtype=dtype)
        return tmp_path / "run", trained

    return run


def _prepared(recipe: Recipe, folder: Path, base: dict[str, Any]) -> int:
    """Write a base with two rows less than the tokenizer of the recipe has with its template; prepare the data."""
    write_base(folder / "base", num_rows=100, **base)
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    manifest = Manifest.load(Path(recipe.data.prepared_dir))
    assert manifest is not None
    write_base(folder / "base", num_rows=manifest.vocab_size - 2, **base)
    return manifest.vocab_size


FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora, some targets": {"rslora": True, "targets": ["q_proj", "down_proj"]},
    "dora": {"dora": True},
    "tied": {"base": {"tie_word_embeddings": True}},
    "qlora": {"type": "qlora"},
    "qlora and dora": {"type": "qlora", "dora": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_merged_and_adapter_give_the_logits_of_training(form: str, adapted: Adapted, tmp_path: Path) -> None:
    run_dir, trained = adapted(**FORMS[form])
    run = read_run_folder(run_dir)
    with torch.no_grad():
        expected = logits_of(run, trained)
    scale = max(float(logits.abs().max()) for logits in expected)
    merged = export(run_dir, tmp_path / "merged", step=None, max_shard_size="5GB")
    mark = json.loads((merged / "ochat.json").read_text())
    assert mark["adapter"]["merged"]
    assert mark["adapter"]["logits"]["equal"] < 1e-5
    whole = transformers.AutoModelForCausalLM.from_pretrained(merged)
    folder = export(run_dir, tmp_path / "adapter", step=None, max_shard_size="5GB", adapter=True)
    loaded = [logits_of(run, whole)]
    if not form.startswith("qlora"):  # PEFT does not know that the base was quantised
        import peft

        loaded.append(logits_of(run, peft.AutoPeftModelForCausalLM.from_pretrained(folder)))
    loaded.append(logits_of(run, load_generator(folder)._model))
    for found in loaded:
        assert max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)) < 1e-5 * scale


def test_a_merge_that_computes_something_else_is_refused(
    adapted: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: a wrong scale."""
    run_dir, _ = adapted()

    def wrong(causal_lm: Any) -> None:
        for _, module in merging._adapted(causal_lm):
            module.scaling["default"] *= 1.001
        merging.merge_adapter(causal_lm)

    monkeypatch.setattr("ochat_train.export.adapted.merge_adapter", wrong)
    with pytest.raises(UserError, match="moves logits"):
        export(run_dir, tmp_path / "merged", step=None, max_shard_size="5GB")
    assert not (tmp_path / "merged").exists()


def test_a_model_trained_in_float32_on_a_base_in_bfloat16_is_written_in_bfloat16(
    adapted: Adapted, tmp_path: Path
) -> None:
    run_dir, _ = adapted(base={"dtype": torch.bfloat16})
    merged = export(run_dir, tmp_path / "merged", step=None, max_shard_size="20KB")
    logits = json.loads((merged / "ochat.json").read_text())["adapter"]["logits"]
    assert logits["equal"] < 1e-5
    assert 1e-4 < logits["rounding"] < 0.1
    assert logits["dtype"] == "bfloat16"
    files = sorted(merged.glob("*.safetensors"))
    assert len(files) > 1, "the limit of a file holds"
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.bfloat16}
    assert "rounding" in (merged / "README.md").read_text()


def test_two_exports_are_equal_and_say_what_they_are(adapted: Adapted, tmp_path: Path) -> None:
    run_dir, _ = adapted(targets=["v_proj", "q_proj", "gate_proj"])
    folders = [
        export(run_dir, tmp_path / name, step=None, max_shard_size="5GB", adapter=True) for name in ("one", "two")
    ]
    names = {file.name for file in folders[0].iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert names == {file.name for file in folders[1].iterdir()}
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    assert config["target_modules"] == ["gate_proj", "q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    card = (folders[0] / "README.md").read_text()
    assert "library_name: peft" in card
    assert "AutoPeftModelForCausalLM" in card
    assert "vLLM cannot read trained rows of new tokens" in card


def test_an_adapter_that_is_not_whole_is_refused(adapted: Adapted, tmp_path: Path) -> None:
    """Where PEFT would answer with random or untouched weights."""
    run_dir, trained = adapted()
    folder = export(run_dir, tmp_path / "adapter", step=None, max_shard_size="5GB", adapter=True)
    path, base = folder / ADAPTER_WEIGHTS, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(len(trained.get_input_embeddings().weight))
    tensors = load_file(path)
    one = next(name for name in tensors if "q_proj.lora_A" in name)
    renamed = {name.replace("layers.1.", "layers.9."): tensor for name, tensor in tensors.items()}
    faults = {
        "lacks tensors": {name: tensor for name, tensor in tensors.items() if name != one},
        "does not have": {**tensors, f"{one}.more": tensors[one].clone()},
        "lacks tensors of the adapter": renamed,
        "PEFT cannot load": {**tensors, one: tensors[one][:2]},
    }
    for problem, values in faults.items():
        save_file(values, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=problem):
            load_adapter(copy.deepcopy(base), folder)
    save_file(tensors, path, metadata={"format": "pt"})
    assert load_adapter(copy.deepcopy(base), folder) is not None, "the control"


def test_options_that_do_not_fit_are_refused(adapted: Adapted, tmp_path: Path) -> None:
    run_dir, trained = adapted()
    arguments: dict[str, Any] = {"step": None, "max_shard_size": "5GB"}
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="no longer there"):
        export(run_dir, tmp_path / "out", **arguments)
    folder = export(run_dir, tmp_path / "out", **arguments, adapter=True, base=str(tmp_path / "moved"))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"].endswith("moved")
    (tmp_path / "moved").rename(tmp_path / "base")
    with pytest.raises(UserError, match="moved is not there"):
        load_generator(folder)
    generator = load_generator(folder, base=str(tmp_path / "base"))
    for condition in ("GPT4 Correct", "GPT3"):
        [answer] = generator.answers(
            [[{"role": "user", "content": "Hi"}]], condition=condition, max_new_tokens=3, temperature=0.0
        )
        assert isinstance(answer, str)
    for seed, changes, problem in (
        (0, {"rms_norm_eps": 1e-3}, "not the base"),
        (1, {}, "not those that the adapter"),
    ):
        write_base(tmp_path / "other", num_rows=len(trained.get_input_embeddings().weight) - 2, seed=seed, **changes)
        with pytest.raises(UserError, match=problem):
            export(run_dir, tmp_path / "again", **arguments, base=str(tmp_path / "other"))
    with pytest.raises(UserError, match="not those that the adapter"):  # its answers would be of another model
        load_generator(folder, base=str(tmp_path / "other"))
