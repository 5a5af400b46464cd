"""Exports are read as the same model by transformers 4 and 5, by engines, and by other users of the machine."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from data_pipeline.prepared.dataset import Manifest
from ochat_train.export.export import export
from ochat_train.export.portable_config import portable, write_portable_config
from tests.support.exports import prepared_recipe, random_model, write_run
from tests.support.measured import Measured
from tests.support.old_transformers import load_with_old_transformers, require_old_transformers
from tests.support.small_recipe import RecipeFactory

SHAPES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_parameters": LLAMA_3},
    "mistral": {"model_type": "mistral", "rope_parameters": {"rope_theta": 1e6}, "sliding_window": 8},
    "qwen3": {"model_type": "qwen3", "rope_parameters": {"rope_theta": 1e6}, "tie_word_embeddings": True},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 12000.0},
        },
    },
    "mixtral": {"model_type": "mixtral", "rope_parameters": {"rope_theta": 1e6}, "num_local_experts": 4},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "rope_parameters": {"rope_theta": 1e6},
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
}
MESSAGES = [{"role": "user", "content": "What is 3 plus 4? " * 4}]
CONDITION = "GPT3"

ExportFamilies = Callable[..., dict[str, Path]]


@pytest.fixture
def export_families(tmp_path: Path, make_recipe: RecipeFactory) -> ExportFamilies:
    def run(*names: str) -> dict[str, Path]:
        recipe = prepared_recipe(make_recipe())
        manifest = Manifest.load(Path(recipe.data.prepared_dir))
        assert manifest is not None
        folders = {}
        for name in names:
            model = random_model(recipe, manifest.vocab_size, **{**SHAPES, **FAMILIES[name]})
            write_run(tmp_path / f"run-{name}", recipe, model)
            out = tmp_path / f"export-{name}"
            folders[name] = export(tmp_path / f"run-{name}", out, step=None, max_shard_size="5GB")
        return folders

    return run


def here(folder: Path) -> tuple[list[int], torch.Tensor]:
    """Ids and logits of the prompt with the installed transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(MESSAGES, condition=CONDITION, add_generation_prompt=True, return_dict=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        return ids, model(torch.tensor([ids])).logits[0]


def test_transformers_4_loads_the_same_model(
    tmp_path: Path, export_families: ExportFamilies, measured: Measured
) -> None:
    packages = require_old_transformers()
    folders = export_families(*FAMILIES)
    damaged = tmp_path / "without-the-older-names"  # the control: what version 5 alone would write
    damaged.mkdir()
    for file in folders["llama"].iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    transformers.AutoConfig.from_pretrained(folders["llama"]).save_pretrained(damaged)
    text = "Hello, 1,000 é🙂<|end_of_turn|>"
    questions = {
        "folders": {name: str(folder) for name, folder in {**folders, "damaged": damaged}.items()},
        "messages": MESSAGES,
        "condition": CONDITION,
        "text": text,
    }
    answers = load_with_old_transformers(packages, tmp_path, questions)
    assert answers["version"].startswith("4.57")
    for name, folder in folders.items():
        ids, logits = here(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        found = answers[name]
        difference = float((torch.tensor(found["logits"]) - logits.double()).abs().max())
        measured("export: logits of transformers 4.57 against 5", difference)
        assert found["problems"] == [], name
        assert found["ids"] == ids, name
        assert found["text_ids"] == tokenizer(text)["input_ids"], name
        assert found["tied"] is (name in ("qwen3", "gemma3")), name
        assert found["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|end_of_turn|>"), name
        # version 5 multiplies gate and up projection of an expert at once, which may round otherwise
        assert difference <= (1e-5 if name in ("mixtral", "qwen3_moe") else 0.0), name
    _, logits = here(folders["llama"])
    assert (torch.tensor(answers["damaged"]["logits"]) - logits.double()).abs().max() > 0.1


def test_rotary_settings_are_also_where_version_4_looks(export_families: ExportFamilies) -> None:
    folders = export_families("llama", "gemma3", "qwen3_moe")
    llama, gemma, experts = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in folders.values()
    )
    assert llama["rope_theta"] == 500000.0
    assert llama["rope_scaling"] == {name: value for name, value in LLAMA_3.items() if name != "rope_theta"}
    assert llama["rope_parameters"] == LLAMA_3
    assert (llama["tie_word_embeddings"], gemma["tie_word_embeddings"]) == (False, True)
    assert llama["dtype"] == llama["torch_dtype"] == "float32"
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"]) == (1e6, 12000.0)
    assert gemma["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert experts["num_experts"] == experts["num_local_experts"] == 4


def test_experts_have_the_names_that_bases_have(export_families: ExportFamilies) -> None:
    """transformers 5 keeps the experts of a layer in one tensor; files hold one tensor an expert."""
    folder = export_families("mixtral")["mixtral"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight" for n in range(4)} <= names
    assert not any("gate_up_proj" in name for name in names)


def test_files_have_the_mode_of_the_umask(export_families: ExportFamilies) -> None:
    before = os.umask(0o027)
    try:
        folder = export_families("mistral")["mistral"]
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o640}


def test_plain_and_scaled_rotary_settings_of_version_4() -> None:
    def of(**parameters: Any) -> dict[str, Any]:
        return portable({"model_type": "phi3", "rope_parameters": parameters}, tied=False)

    plain = of(rope_type="default", rope_theta=2.0, partial_rotary_factor=0.5)
    assert (plain["rope_theta"], plain["rope_scaling"], plain["partial_rotary_factor"]) == (2.0, None, 0.5)
    long = of(rope_type="longrope", rope_theta=2.0, short_factor=[1.0], long_factor=[2.0], original=4)
    assert long["rope_scaling"] == {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    neox = portable({"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 3.0}}, tied=True)
    assert (neox["rotary_emb_base"], "rope_theta" in neox) == (3.0, False)
    assert "rope_theta" not in portable({"model_type": "gpt2"}, tied=True)


def test_what_this_version_would_read_differently_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings by kind of layer that version 4 never had: a `rope_scaling` would replace them."""
    config = transformers.AutoConfig.for_model("llama", **SHAPES, rope_parameters=LLAMA_3)
    monkeypatch.setattr(
        "ochat_train.export.portable_config.portable", lambda saved, *, tied: {**saved, "hidden_size": 64}
    )
    write_portable_config(tmp_path, config)
    assert transformers.AutoConfig.from_pretrained(tmp_path).hidden_size == SHAPES["hidden_size"]
