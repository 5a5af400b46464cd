"""The memory plan and the work of adapters: literal numbers for Mistral-7B, and what PEFT and bitsandbytes make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.adapter.build import add_adapter
from ochat_train.model.config import model_without_weights
from ochat_train.planning.adapters import NF4_BYTES, AdapterShape, adapter_shape
from ochat_train.planning.memory import MemoryPlan, StepCosts
from ochat_train.planning.memory_text import memory_text, out_of_memory, too_little_memory
from ochat_train.planning.report import MemoryChoice, memory_choice
from ochat_train.planning.time import assumed_speed, find_gpu
from ochat_train.planning.work import Work, work_of
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.system.sizes import GIB
from tests.ochat_train.planning.test_memory_plan import MISTRAL_7B
from tests.support.small_recipe import RecipeFactory
from tests.support.tiny_model import VOCAB, tiny_model

ROOT = Path(__file__).resolve().parents[3]
# r * (in + out): query and output 131,072 each, key and value 81,920 each, three of the MLP 294,912 each; 32 layers
TRAINED = 32 * (2 * 131_072 + 2 * 81_920 + 3 * 294_912)
IN_LAYERS = 32 * 218_103_808  # weights of linear modules of Mistral-7B's layers
PARAMETERS = 7_241_748_480


@pytest.fixture(scope="module")
def mistral_7b() -> Any:
    return model_without_weights(transformers.AutoConfig.for_model("mistral", **MISTRAL_7B))


def recipe_of(num_gpus: int, *changes: str) -> Recipe:
    settings = [
        "deepspeed.zero_stage=null",
        "train.pack_length_tokens=8192",
        f"train.tokens_per_step={49152 * num_gpus}",
        "adapter.type=lora",
    ]
    return load_recipe(ROOT / "recipes" / "quickstart.yaml", [*settings, *changes])


def choice(model: Any, num_gpus: int, gpu_gib: float, *changes: str) -> MemoryChoice:
    recipe = recipe_of(num_gpus, *changes)
    return memory_choice(recipe, model, vocab_size=32_002, num_gpus=num_gpus, gpu_memory_gib=gpu_gib)


def plan(model: Any, num_gpus: int, gpu_gib: float, *changes: str) -> MemoryPlan:
    return choice(model, num_gpus, gpu_gib, *changes).chosen


def shape_of(model: Any, *, vocab_size: int = VOCAB, **changes: Any) -> AdapterShape:
    found = adapter_shape(AdapterSettings(**{"type": "lora", "rank": 4, **changes}), model, vocab_size=vocab_size)
    assert found is not None
    return found


def test_the_parts_of_lora_on_a_7b(mistral_7b: Any) -> None:
    """Weights 2 bytes each, and of the adapter alone: gradients 4, two moments and a master 12."""
    parts = plan(mistral_7b, 1, 79.0, "model.activation_checkpointing=full").parts
    assert TRAINED == 41_943_040
    assert parts.weights == (PARAMETERS + TRAINED) * 2
    assert parts.gradients == TRAINED * 4
    assert parts.optimizer == TRAINED * 12
    # layers' inputs, one layer recomputed, its working memory; logits of 2,048 tokens and their softmax, a copy of the
    # head. A frozen head has no gradient. 136.2: 136 KiB and results of A, 7 * 16 numbers
    recomputed = (136 * 1024 + 7 * 16 * 2) * 8192
    head = 32_002 * (2048 * 8 + 4096 * 2)
    assert parts.activations == 32 * 8192 * 8192 + recomputed + 4 * 2 * (14_336 + 4096) * 8192 + head
    assert parts.total / GIB == pytest.approx(19.1, abs=0.05)


def test_qlora_holds_the_layers_in_4_bits(mistral_7b: Any) -> None:
    """4 bits, an 8-bit constant for 64 weights and a float32 for 256 of those; embedding, head and norms 2 bytes."""
    parts = plan(mistral_7b, 1, 24.0, "adapter.type=qlora", "model.activation_checkpointing=full").parts
    in_nf4 = IN_LAYERS // 2 + IN_LAYERS // 64 + IN_LAYERS // (64 * 256) * 4
    assert parts.weights == pytest.approx(in_nf4 + (PARAMETERS - IN_LAYERS + TRAINED) * 2, rel=1e-12)
    without = plan(mistral_7b, 1, 79.0, "model.activation_checkpointing=full").parts
    assert parts.activations - without.activations == 4096 * 14_336 * 2, "the largest module in bfloat16"
    assert (parts.gradients, parts.optimizer) == (without.gradients, without.optimizer)


def test_nf4_takes_what_bitsandbytes_takes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="the extra `adapters` is not installed")
    packed, state = functional.quantize_4bit(
        torch.randn(1024, 2048), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    constants = [state.absmax, state.state2.absmax]
    found = sum(tensor.numel() * tensor.element_size() for tensor in (packed, *constants))
    assert found == 1024 * 2048 * NF4_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank": 3, "targets": ["q_proj", "down_proj"]},
        {"dora": True},
        {"dora": True, "targets": ["v_proj"]},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_trained_is_counted_as_peft_makes_it(changes: dict[str, Any], tied: bool) -> None:
    """On a model without weights, before its new rows exist: as many as the model with an adapter then has."""
    settings = AdapterSettings(**{"type": "lora", "rank": 4, **changes})
    model = tiny_model(tie_word_embeddings=tied)
    before = model_without_weights(model.config)
    before.config.vocab_size = VOCAB - 2  # as of a base that lacks two tokens
    counted = shape_of(before, **changes)
    add_adapter(model, settings, new_token_ids=[VOCAB - 2, VOCAB - 1])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert counted.num_trained == trained
    assert shape_of(before, **{**changes, "rank": 2}).num_trained != trained, "the control"


def test_layers_keep_what_targeted_modules_read(mistral_7b: Any) -> None:
    """Of Mistral-7B 92 KiB a token and layer are kept in any case; results of A take 2 bytes for each rank."""

    def kept(targets: str, kind: str) -> float:
        return choice(mistral_7b, 1, 79.0, f"adapter.targets={targets}").shape.layer_bytes[kind]

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    every = f"[{', '.join(names)}]"
    assert kept("all-linear", "none") == kept(every, "none") == 136 * 1024 + 2 * 7 * 16
    assert kept("all-linear", "matmuls") == 92 * 1024 + 2 * 7 * 16
    assert kept("[q_proj, v_proj]", "none") == 92 * 1024 + 2 * (4096 + 2 * 16), "one norm's result"
    assert kept("[down_proj]", "none") == 92 * 1024 + 2 * (14_336 + 16), "the MLP's product"
    changes = ["adapter.targets=[q_proj, v_proj]", "model.compile=false"]
    plain, dropped = (
        choice(mistral_7b, 1, 79.0, *changes, f"adapter.dropout={ratio}").shape.layer_bytes["none"]
        for ratio in (0, 0.1)
    )
    assert dropped - plain == 2 * (2 * 4096), "each reads its own numbers; layers that are not compiled keep twice that"


def test_what_the_plan_chooses(mistral_7b: Any) -> None:
    large = plan(mistral_7b, 1, 79.0)
    assert (large.zero_stage, large.checkpointing_text, large.packs_per_micro_batch) == (1, "none", 1)
    assert large.fits
    small = plan(mistral_7b, 1, 24.0)
    assert (small.fits, small.checkpointing_text) == (True, "layers: 28")
    assert not plan(mistral_7b, 1, 16.0).fits
    assert plan(mistral_7b, 1, 16.0, "adapter.type=qlora").fits
    assert plan(mistral_7b, 8, 12.0).zero_stage == 3, "frozen weights are sharded too"
    assert plan(mistral_7b, 8, 9.0, "adapter.type=qlora").zero_stage < 3, "weights in 4 bits are not"
    assert plan(mistral_7b, 1, 79.0, "adapter=null").fits is False, "the control: all weights do not fit"


def test_what_is_said_where_an_adapter_does_not_fit(mistral_7b: Any) -> None:
    """Not what saves gradients and states of all weights; and weights in 4 bits are not sharded."""
    lora = too_little_memory(plan(mistral_7b, 1, 12.0), num_gpus=1)
    assert lora.remedy == "use more GPUs, adapter.type: qlora or a shorter train.pack_length_tokens"
    qlora = plan(mistral_7b, 1, 6.0, "adapter.type=qlora")
    assert not qlora.fits
    assert "each holds the whole base" in too_little_memory(qlora, num_gpus=1).remedy
    everything = plan(mistral_7b, 1, 79.0, "adapter=null")
    assert "an adapter (adapter.type: lora)" in too_little_memory(everything, num_gpus=1).remedy
    error = RuntimeError("out of memory")
    assert "shorter train.pack_length_tokens" in str(out_of_memory(qlora, error))
    assert "deepspeed.zero_stage: 2" in str(out_of_memory(plan(mistral_7b, 1, 12.0), error))
    assert memory_text(qlora).endswith("qlora; computed to be more than is free")


def test_recomputing_costs_more_of_a_step_that_has_no_gradients_of_weights(mistral_7b: Any) -> None:
    """A full step of 6 operations a weight recomputes 22 %; one of 4 operations half as much again.

    Measured on an H100, `none`, `matmuls` and `full`: 15,889, 15,190 and 12,015 tokens/s.
    """
    found = choice(mistral_7b, 1, 79.0)
    assert set(found.chosen.checkpointing) == {"none"}, "the fastest fits"
    for checkpointing, speed in (("none", 15_889), ("matmuls", 15_190), ("full", 12_015)):
        setting = plan(mistral_7b, 1, 79.0, f"model.activation_checkpointing={checkpointing}")
        assert found.costs.relative_seconds(setting) == pytest.approx(15_889 / speed, rel=2e-3)
    recomputed = plan(mistral_7b, 1, 79.0, "model.activation_checkpointing=full")
    full = StepCosts.of(recipe_of(1, "adapter=null", "train.gradient_dtype=bfloat16"), compiled=True)
    assert full.relative_seconds(recomputed) == pytest.approx(1 + 0.22 + 430 / 8192)


@pytest.mark.parametrize(
    ("kind", "checkpointing", "mfu"),
    [("lora", "none", 0.493), ("lora", "matmuls", 0.471), ("lora", "full", 0.372), ("qlora", "full", 0.359)],
)
def test_speeds_that_are_assumed_are_those_that_were_measured(
    mistral_7b: Any, kind: str, checkpointing: str, mfu: float
) -> None:
    changes = (f"adapter.type={kind}", f"model.activation_checkpointing={checkpointing}")
    found = choice(mistral_7b, 1, 79.0, *changes)
    speed = assumed_speed(
        recipe_of(1, *changes),
        found.chosen,
        gpu=find_gpu("H100", memory_gib=None),
        num_parameters=7_241_748_480,
        own=None,
        useful=1.0,
        trained_ratio=found.shape.trained_ratio,
    )
    assert speed.mfu == pytest.approx(mfu, rel=5e-3)


def test_operations_of_a_step_with_an_adapter(mistral_7b: Any) -> None:
    """4 operations for each weight of the base's products, 6 for each of A and B; attention as in full training."""
    base = Work(matmul_parameters=131_080_192 + IN_LAYERS, attention_width=4096, num_layers=32)
    found = base.with_adapter(TRAINED)
    attention = 6 * 32 * 4096 * 1e6
    expected = 1000 * (4 * (131_080_192 + IN_LAYERS) + 6 * TRAINED) + attention
    assert found.flops(num_tokens=1000, squared_lengths=1e6) == pytest.approx(expected, rel=1e-15)
    assert base.flops(num_tokens=1000, squared_lengths=1e6) == 1000 * 6 * (131_080_192 + IN_LAYERS) + attention


def test_the_meter_counts_what_the_plan_counts() -> None:
    model = tiny_model()
    before = work_of(model)
    assert before.frozen_parameters == 0
    shape = shape_of(model)
    add_adapter(model, AdapterSettings(type="lora", rank=4))
    assert work_of(model) == before.with_adapter(shape.num_in_products)


def test_the_command_shows_an_adapter(make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]) -> None:
    from ochat_train.cli.main import main

    path = make_recipe(adapter={"type": "qlora", "rank": 4})
    assert main(["plan", str(path), "--gpus", "2", "--gpu", "h100"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"million parameters; qlora of rank 4 trains 0\.\d+ million parameters", text)
    assert main(["plan", str(path), "--set", "adapter.targets=[q_prog]"]) == 2
    assert "no linear module of the decoder layers is called `q_prog`" in capsys.readouterr().err


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"adapter\.rank: 4096 is more than"):
        shape_of(tiny_model(), rank=4096)
