"""Bases that wrap a language model: its text part is trained, the rest is loaded, kept and exported unchanged."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from data_pipeline.errors import UserError
from ochat_train.export.export import export
from ochat_train.model.attention.register import register_attention
from ochat_train.model.base_class import (
    backbone,
    freeze_other_parts,
    is_wrapper,
    load_exported,
    new_model,
    other_parts,
    trained_parameters,
)
from ochat_train.model.config import check_config, num_frozen_parameters, num_parameters
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.structure import decoder_layers
from ochat_train.planning.memory_parts import MemorySetting, memory_parts, model_shape
from ochat_train.planning.work import work_of
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.measured import Measured
from tests.support.processes import train_on_ranks
from tests.support.small_recipe import TINY_MODEL, RecipeFactory
from tests.support.wrappers import WRAPPERS, wrapper_config, write_wrapper

BORDERS = (0, 9, 20)


def packed_gradients(model: Any, ids: torch.Tensor, upstream: torch.Tensor, borders: tuple[int, ...]) -> torch.Tensor:
    """Hidden states of a pack; gradients stay in the parameters."""
    lengths = [end - start for start, end in pairwise(borders)]
    hidden = backbone(model)(
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        use_cache=False,
        cu_seqlens=torch.tensor(borders, dtype=torch.int32),
        max_seqlen=max(lengths),
    ).last_hidden_state[0]
    hidden.backward(upstream)
    return hidden.detach()


@pytest.mark.parametrize("model_type", sorted(WRAPPERS))
def test_packs_of_text_are_what_the_whole_wrapper_computes_alone(model_type: str, measured: Measured) -> None:
    torch.manual_seed(0)
    model = new_model(wrapper_config(model_type), attn_implementation=register_attention("sdpa"))
    freeze_other_parts(model)
    whole, leaking = copy.deepcopy(model), copy.deepcopy(model)
    whole.set_attn_implementation("eager")
    ids, upstream = torch.randint(1, 380, (20,)), torch.randn(20, 32)
    hidden = packed_gradients(model.train(), ids, upstream, BORDERS)
    packed_gradients(leaking, ids, upstream, (0, 20))
    for start, end in pairwise(BORDERS):
        alone = whole.eval()(input_ids=ids[None, start:end], output_hidden_states=True, use_cache=False)
        alone.hidden_states[-1][0].backward(upstream[start:end])
        assert torch.allclose(hidden[start:end], alone.hidden_states[-1][0], atol=1e-5)
    error, control = (_largest_difference(found, whole) for found in (model, leaking))
    measured("text part of wrappers: gradients of packs against the whole wrapper, each conversation alone", error)
    assert error < 1e-5
    assert control > 1e-2


def _largest_difference(model: Any, reference: Any) -> float:
    """Of gradients, relative; both must have them for the same parameters, and none for what is frozen."""
    frozen = {id(parameter) for parameter in other_parts(model)}
    worst = 0.0
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None)
        assert found.grad is None or id(found) not in frozen
        if found.grad is not None:
            worst = max(worst, float((found.grad - expected.grad).norm() / expected.grad.norm()))
    return worst


def test_only_the_text_part_is_trained_and_counted() -> None:
    model = new_model(wrapper_config("gemma3"))
    freeze_other_parts(model)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("language_model" in name or "lm_head" in name for name in names)
    assert {name.split(".")[1] for name in dict(model.named_parameters()).keys() - names} == {
        "vision_tower",
        "multi_modal_projector",
    }
    text = transformers.AutoModelForCausalLM.from_config(model.config.text_config)
    assert len(trained_parameters(model)) == len(list(text.parameters()))
    assert num_parameters(model, 422) - num_frozen_parameters(model) == num_parameters(text, 422)
    assert work_of(model) == work_of(text)
    assert len(decoder_layers(model)) == 2
    plain = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**TINY_MODEL, vocab_size=9))
    freeze_other_parts(plain)
    assert not is_wrapper(plain.config)
    assert trained_parameters(plain) == list(plain.parameters())
    assert num_frozen_parameters(plain) == 0


def test_what_is_frozen_has_no_optimizer_state_in_the_memory_plan(make_recipe: RecipeFactory) -> None:
    recipe = load_recipe(make_recipe())
    config = wrapper_config("gemma3")
    setting = MemorySetting(zero_stage=2, checkpointing=("none",) * 2, packs_per_micro_batch=1, sum_dtype="float32")

    def parts(**counts: int) -> Any:
        shape = model_shape(config, vocab_size=420, compiled=False, **counts)
        return memory_parts(recipe, shape, setting, num_gpus=1)

    wrapper, text = parts(num_parameters=1_000_000, num_frozen=400_000), parts(num_parameters=600_000)
    assert (wrapper.optimizer, wrapper.gradients) == (text.optimizer, text.gradients)
    assert wrapper.weights == 1_000_000 * 2
    assert text.weights == 600_000 * 2


def test_the_limit_of_the_text_part_counts(make_recipe: RecipeFactory) -> None:
    settings = load_recipe(make_recipe()).model.model_copy(update={"max_length_tokens": 257})
    with pytest.raises(UserError, match="max_position_embeddings 256"):
        check_config(wrapper_config("mistral3"), settings)


def recipe_on(folder: Path, make_recipe: RecipeFactory, tokenizer: Path, **changes: Any) -> Path:
    model = {"path": str(folder), "tokenizer": str(tokenizer), "template": "openchat_3.5", "max_length_tokens": 256}
    return make_recipe(model=model, train__max_steps=2, **changes)


def frozen_names(stored: Mapping[str, torch.Tensor]) -> set[str]:
    """Of what is not text. Files of Qwen2.5-VL name their text part `model.layers`, without `language_model`."""
    return {name for name in stored if re.search(r"(^|\.)(vision_tower|visual|multi_modal_projector)\.", name)}


@pytest.mark.parametrize(("stage", "model_type"), [(2, "gemma3"), (3, "mistral3")])
def test_a_wrapper_is_trained_resumed_and_exported(
    stage: int, model_type: str, tmp_path: Path, make_recipe: RecipeFactory, small_tokenizer_dir: Path
) -> None:
    """What is not text comes out bit for bit, with the file of its image processor. A run of ZeRO-2 that goes on on
    another number of ranks, and one of ZeRO-3 that goes on on the same, have the frozen parts too.
    """
    base = write_wrapper(tmp_path / "base", model_type)
    path = recipe_on(tmp_path / "base", make_recipe, small_tokenizer_dir, deepspeed__zero_stage=stage)
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    train_on_ranks(["train", path, "--set", "checkpoint.save_every_steps=1"])
    whole = export(tmp_path / "run", tmp_path / "export", step=None, max_shard_size="5GB")
    stored, exported = load_file(tmp_path / "base" / "model.safetensors"), load_file(whole / "model.safetensors")
    assert stored.keys() == exported.keys()
    frozen = frozen_names(stored)
    assert len(frozen) == len(other_parts(base))
    for name, tensor in stored.items():
        found = exported[name]
        if name in frozen:
            assert torch.equal(found, tensor), name
        elif tensor.dim() == 2:
            assert not torch.equal(found[: len(tensor)], tensor), f"{name} was trained"
    assert (whole / "preprocessor_config.json").is_file()
    config = json.loads((whole / "config.json").read_text())
    assert config["text_config"]["rope_theta"] == config["text_config"]["rope_parameters"].get(
        "rope_theta", config["text_config"]["rope_theta"]
    )
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000002")
    train_on_ranks(["train", path], num_ranks=1 if stage == 2 else 2)
    resumed = load_file(
        export(tmp_path / "run", tmp_path / "again", step=2, max_shard_size="5GB") / "model.safetensors"
    )
    assert all(torch.allclose(resumed[name], exported[name], atol=1e-6) for name in exported)
    assert all(torch.equal(resumed[name], exported[name]) for name in (exported if stage == 3 else frozen))
    model = load_exported(whole)
    assert type(model) is type(base)
    assert len(model.get_input_embeddings().weight) >= model.config.text_config.vocab_size


def test_the_loss_reads_the_head_of_a_wrapper() -> None:
    model = new_model(wrapper_config("qwen2_5_vl"))
    packed = PackedCausalLM(model, num_classes=1)
    assert packed.loss.head_weight is model.get_output_embeddings().weight


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize(("stage", "model_type"), [(2, "gemma3"), (3, "mistral3"), (2, "qwen2_5_vl")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["stored in float32", "stored in bfloat16"])
def test_gpu_frozen_parts_in_bfloat16_are_the_bases(
    dtype: torch.dtype,
    stage: int,
    model_type: str,
    tmp_path: Path,
    make_recipe: RecipeFactory,
    small_tokenizer_dir: Path,
) -> None:
    """Two steps in bfloat16, where weights have float32 masters: what is frozen is exported as the base has it, rounded
    once. The control: what is trained is not.
    """
    write_wrapper(tmp_path / "base", model_type, dtype=dtype)
    changes: dict[str, Any] = {"deepspeed__zero_stage": stage, "model__precision": "bfloat16"}
    path = recipe_on(tmp_path / "base", make_recipe, small_tokenizer_dir, **changes)
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    train_on_ranks(["train", path], num_ranks=1)
    folder = export(tmp_path / "run", tmp_path / "export", step=None, max_shard_size="5GB")
    stored, exported = load_file(tmp_path / "base" / "model.safetensors"), load_file(folder / "model.safetensors")
    frozen = frozen_names(stored)
    same = {name for name, x in stored.items() if torch.equal(exported[name][: len(x)], x.bfloat16())}
    assert frozen
    assert frozen <= same
    assert not {name for name in same - frozen if stored[name].dim() == 2}
