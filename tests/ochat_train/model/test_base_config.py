"""What a config.json may say: entries that contradict each other, or that no model can have, are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from data_pipeline.errors import UserError
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from ochat_train.export.portable_config import portable
from ochat_train.model.config import load_base_config
from ochat_train.recipe.sections.model import ModelSettings
from tests.support.small_recipe import TINY_MODEL

VALUES = {**TINY_MODEL, "vocab_size": 420}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def load(folder: Path, values: Mapping[str, Any] | str) -> Any:
    (folder / "config.json").write_text(values if isinstance(values, str) else json.dumps({**VALUES, **values}))
    return load_base_config(ModelSettings(path=str(folder), template="chatml", max_length_tokens=8), 300)


@pytest.mark.parametrize(
    ("values", "theta", "factor"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5, None),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, 5e5, 2),
        ({"rope_parameters": {**LINEAR, "rope_theta": 5e5}, "rope_theta": 5e5, "rope_scaling": LINEAR}, 5e5, 2),
        ({"rope_parameters": {**LINEAR, "rope_theta": 5e5}, "rope_scaling": None}, 5e5, 2),
    ],
)
def test_rotary_settings_in_one_spelling_or_twice_alike(
    values: dict[str, Any], theta: float, factor: float | None, tmp_path: Path
) -> None:
    found = load(tmp_path, values).rope_parameters
    assert (found["rope_theta"], found.get("factor")) == (theta, factor)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        # what a card says to add for longer texts: `transformers` 5 then forgets the base frequency
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": LINEAR}, "rope_parameters.rope_theta: 500000.0"),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e6}, "rope_theta: 1000000.0"),
        (
            {"rope_parameters": {**LINEAR, "rope_theta": 1e4}, "rope_scaling": {**LINEAR, "factor": 8.0}},
            "rope_parameters.factor: 2.0",
        ),
    ],
)
def test_rotary_settings_that_contradict_each_other(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"`{named}`, and `transformers` .*named twice"):
        load(tmp_path, values)


def test_a_scaling_that_a_family_leaves_out(tmp_path: Path) -> None:
    """Olmo 3 knows the kind of scaling by its newer name only: under the older one it would be trained unscaled."""
    sizes = {"model_type": "olmo3", "max_position_embeddings": 1024, "sliding_window": 64}
    scaling = {"factor": 8.0, "original_max_position_embeddings": 128}
    found = load(tmp_path, {**sizes, "rope_scaling": {"rope_type": "yarn", **scaling}}).rope_parameters
    assert found["full_attention"]["rope_type"] == "yarn", "the control"
    with pytest.raises(UserError, match=r"`rope_scaling\.type: yarn`, and `transformers` takes default"):
        load(tmp_path, {**sizes, "rope_scaling": {"type": "yarn", **scaling}})


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt_neox", "phi3", "ministral3", "modernbert-decoder"])
def test_configurations_of_exports_do_not_contradict_themselves(model_type: str, tmp_path: Path) -> None:
    """They have both spellings, so that transformers 4 and 5 read the same."""
    config = transformers.AutoConfig.for_model(model_type)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    values = portable(saved, tied=False)
    assert {"rope_theta", "rotary_emb_base"} & values.keys(), "the control: an older spelling is there"
    (tmp_path / "config.json").write_text(json.dumps(values))
    settings = ModelSettings(path=str(tmp_path), template="chatml", max_length_tokens=8)
    assert load_base_config(settings, 300).rope_parameters == config.rope_parameters


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rope_theta": "1e4"}, "`rope_theta: '1e4'`, a text instead of a number; write it without quotes"),
        ({"pad_token_id": 420}, "`pad_token_id: 420`, and the model has 420 rows; set `pad_token_id: null`"),
        ({"torch_dtype": "fp16"}, "`torch_dtype: fp16` in its config.json is no dtype of torch"),
        ({"dtype": 16}, "`dtype: 16` in its config.json is no dtype of torch"),
        ({"attention_dropout": 1.5}, "`attention_dropout: 1.5`, and a share is at least 0 and below 1"),
        ({"quantization_config": "gptq"}, "`quantization_config` in its config.json is 'gptq', and not an object"),
        ({"vocab_size": "420"}, "write that entry of its config.json as transformers expects it"),
        ("[]", "config.json: is damaged: expected a JSON object"),
        ("version https://git-lfs.github.com/spec/v1\n", "config.json: is a pointer of Git LFS and not the file"),
    ],
)
def test_entries_that_no_model_can_have_are_named(values: Mapping[str, Any] | str, named: str, tmp_path: Path) -> None:
    load(tmp_path, {})
    with pytest.raises(UserError) as caught:
        load(tmp_path, values)
    assert named in str(caught.value)


def test_files_beside_the_weights(tmp_path: Path) -> None:
    load(tmp_path, {})
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"generation_config\.json: is damaged, not JSON"):
        load(tmp_path, {})
    (tmp_path / "config.json").unlink()
    settings = ModelSettings(path=str(tmp_path), template="chatml", max_length_tokens=8)
    with pytest.raises(UserError, match=r"has no config\.json.*; name the folder of a model$"):
        load_base_config(settings, 300)
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "config.json").touch()
    with pytest.raises(UserError, match=r"for example .*checkpoint-20$"):
        load_base_config(settings, 300)
    (tmp_path / "recipe.json").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="export the run"):
        load_base_config(settings, 300)
    with pytest.raises(UserError, match="is the folder of a run, and not a model; export the run"):
        find_tokenizer_files(str(tmp_path))


def test_what_a_base_returns_by_itself_is_not_asked_for(tmp_path: Path) -> None:
    """A model that returns tuples cannot be read by names, and one that returns every layer's states keeps them all."""
    config = load(tmp_path, {"return_dict": False, "output_hidden_states": True})
    assert (config.return_dict, config.output_hidden_states) == (True, False)
