"""The memory plan against peaks measured on GPUs, and the choices it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.config import LayerWidths, layer_widths
from ochat_train.planning.costs import COSTS
from ochat_train.planning.memory import MemoryPlan, fastest_plan, resolve
from ochat_train.planning.memory_parts import ModelShape, model_shape
from ochat_train.planning.memory_text import memory_text, out_of_memory, too_little_memory
from ochat_train.planning.work import Work, work_of
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.sizes import GIB
from ochat_train.training.meter import Meter

ROOT = Path(__file__).resolve().parents[3]
MISTRAL_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32_002,
}


def recipe_of(num_gpus: int, *changes: str) -> Recipe:
    settings = [
        "deepspeed.zero_stage=null",
        "train.pack_length_tokens=8192",
        f"train.tokens_per_step={49152 * num_gpus}",
    ]
    return load_recipe(ROOT / "recipes" / "quickstart.yaml", [*settings, *changes])


def mistral_7b(*, compiled: bool = True, num_layers: int = 32) -> ModelShape:
    config = transformers.AutoConfig.for_model("mistral", **{**MISTRAL_7B, "num_hidden_layers": num_layers})
    num_parameters = 262_164_480 + 218_112_000 * num_layers  # embedding, head and last norm; a layer
    return model_shape(config, vocab_size=32_002, num_parameters=num_parameters, compiled=compiled)


def plan(num_gpus: int, free_gib: float, *changes: str, num_layers: int = 32) -> MemoryPlan:
    recipe, shape = recipe_of(num_gpus, *changes), mistral_7b(num_layers=num_layers)
    return fastest_plan(recipe, shape, num_gpus=num_gpus, free_bytes=free_gib * GIB, compiled=True, is_gpu=True)


def test_layers_keep_what_was_measured() -> None:
    """Memory after the forward pass of 8 compiled layers, per token and layer: 8, 92 and 136 KiB
    (docs/performance.md).
    """
    assert {kind: size / 1024 for kind, size in mistral_7b().layer_bytes.items()} == {
        "full": 8,
        "matmuls": 92,
        "none": 136,
    }


@pytest.mark.parametrize(
    ("num_gpus", "free_gib", "num_layers", "changes", "stage", "peak_gib"),
    [
        (1, 138.0, 32, ["model.activation_checkpointing=matmuls"], 1, 133.0),
        (1, 138.0, 32, ["model.activation_checkpointing={layers: 20}", "train.packs_per_micro_batch=1"], 1, 119.8),
        (1, 77.5, 16, [], 1, 69.4),
        (1, 138.0, 32, [], 1, 132.7),
        (2, 77.5, 24, [], 1, 70.2),
        (2, 77.5, 24, ["deepspeed.zero_stage=2"], 2, 70.2),
        (2, 138.0, 32, [], 1, 115.6),
        (2, 77.5, 32, ["deepspeed.zero_stage=3"], 3, 73.3),
    ],
)
def test_plan_is_close_to_the_measured_peak(
    num_gpus: int, free_gib: float, num_layers: int, changes: list[str], stage: int, peak_gib: float
) -> None:
    """Whole steps of Mistral-7B shapes on H200 (138 GiB free) and H100, bfloat16 gradients (docs/performance.md)."""
    found = plan(num_gpus, free_gib, "train.gradient_dtype=bfloat16", *changes, num_layers=num_layers)
    assert found.zero_stage == stage
    assert found.total / GIB == pytest.approx(peak_gib, rel=0.025)


def test_stage_2_adds_up_in_float32_where_bfloat16_would_be_kept_twice() -> None:
    """Of 3.62 billion parameters: 4 bytes each while packs are added up, 2 where the step is one micro-batch."""
    stage_2, narrow = "deepspeed.zero_stage=2", "train.gradient_dtype=bfloat16"
    gradients = [
        plan(2, 500.0, stage_2, *changes).parts.gradients
        for changes in ([], [narrow], [narrow, "train.packs_per_micro_batch=6"])
    ]
    assert gradients == [7_241_748_480 / 2 * size for size in (4, 4, 2)]
    wide_model = "model.precision=float32"
    assert plan(2, 500.0, stage_2, wide_model).parts.gradients == 7_241_748_480 / 2 * 8
    for changes, dtype in (((narrow,), "bfloat16"), ((narrow, stage_2), "float32"), ((narrow, wide_model), "float32")):
        text = memory_text(plan(2, 500.0, *changes))
        assert f"gradients in {dtype}" in text


@pytest.mark.parametrize(
    ("precision", "activations_gib", "gathered_gib"),
    [
        # layers' inputs, one layer recomputed and its working memory, head and its gradients, logits of 2,048 tokens
        # twice
        ("bfloat16", 2.0 + 1.0625 + 1.125 + 0.9767 + 0.4883, 1.686),
        ("float32", 4.0 + 2.1250 + 2.250 + 1.4650 + 0.4883, 3.372),
    ],
)
def test_everything_in_the_dtype_of_the_model_is_twice_as_wide_in_float32(
    precision: str, activations_gib: float, gathered_gib: float
) -> None:
    """8,192 tokens of Mistral-7B shapes: 32 * 8 KiB kept by layers and 136 KiB by the one that is recomputed."""
    changes = [f"model.precision={precision}", "model.activation_checkpointing=full", "train.packs_per_micro_batch=1"]
    found = plan(2, 500.0, *changes, "deepspeed.zero_stage=3")
    assert found.parts.activations / GIB == pytest.approx(activations_gib, abs=1e-3)
    buckets = 2 * 200e6 * (4 if precision == "float32" else 2) / GIB
    assert found.parts.buffers / GIB == pytest.approx(gathered_gib + buckets, abs=1e-3)


def test_the_fastest_that_fits_is_taken() -> None:
    narrow = "train.gradient_dtype=bfloat16"
    one = plan(1, 138.0, narrow)
    assert (one.zero_stage, one.checkpointing_text, one.packs_per_micro_batch) == (1, "matmuls", 1)
    less = [plan(1, free, narrow) for free in (136.0, 125.0, 118.0)]
    assert [found.total < free * GIB for found, free in zip(less, (136.0, 125.0, 118.0), strict=True)] == [True] * 3
    num_full = [found.checkpointing.count("full") for found in less]
    assert num_full == sorted(num_full)
    assert num_full[-1] > 0
    assert plan(2, 138.0, narrow).packs_per_micro_batch == 2, "adding up gradients costs less per token"
    eight = plan(8, 77.5, narrow)
    assert (eight.zero_stage, eight.checkpointing_text) == (1, "matmuls")
    wide = plan(8, 77.5)
    assert (wide.zero_stage, wide.checkpointing_text) == (1, "layers: 6"), (
        "less than reducing the gradients of every pack"
    )
    assert plan(4, 77.5).zero_stage == 2, "float32 sums of all gradients leave no room on 80 GB"
    assert plan(2, 72.0).zero_stage == 3


@pytest.mark.parametrize(
    ("states", "bytes_each"),
    [
        ("float32", 4 + 4 + 4),  # master weight, two moments
        ("bfloat16", 1 + 2 + 2),  # 8 bits beside the weight, two moments
        ("8bit", 1 + 1 + 1 + 2 * 4 / 128),  # the same, and two scales of 128 moments
    ],
)
def test_optimizer_states_are_counted(states: str, bytes_each: float) -> None:
    """Of 7,241,748,480 parameters, on one GPU and on two; a float32 model has no masters."""
    choice = f"optimizer.states={states}"
    assert plan(1, 500.0, choice).parts.optimizer == 7_241_748_480 * bytes_each
    assert plan(2, 500.0, choice).parts.optimizer == 7_241_748_480 * bytes_each / 2
    masters = 4 if states == "float32" else 1
    wide = plan(1, 500.0, choice, "model.precision=float32")
    assert wide.parts.optimizer == 7_241_748_480 * (bytes_each - masters)
    assert f"optimizer.states {states}" in memory_text(wide)


def test_small_states_leave_room_for_what_layers_keep() -> None:
    """7.24 billion parameters on 80 GB: on one GPU they fit only with small states, on two less is recomputed."""
    narrow = "train.gradient_dtype=bfloat16"
    one = {states: plan(1, 77.5, narrow, f"optimizer.states={states}") for states in ("float32", "bfloat16", "8bit")}
    assert [found.fits for found in one.values()] == [False, True, True]
    assert "optimizer.states: 8bit" in too_little_memory(one["float32"], num_gpus=1).remedy
    num_full = [found.checkpointing.count("full") for found in one.values()]
    assert num_full == [32, 19, 0]
    two = [plan(2, 77.5, narrow, f"optimizer.states={states}") for states in one]
    assert [found.checkpointing.count("full") for found in two] == [32, 0, 0]


def test_what_the_recipe_says_is_kept() -> None:
    found = plan(
        4, 77.5, "deepspeed.zero_stage=3", "model.activation_checkpointing=full", "train.packs_per_micro_batch=3"
    )
    assert (found.zero_stage, found.checkpointing_text, found.packs_per_micro_batch) == (3, "full", 3)
    mixed = plan(4, 77.5, "model.activation_checkpointing={layers: 5}")
    assert mixed.checkpointing == ("full",) * 5 + ("matmuls",) * 27
    resolved = resolve(recipe_of(4), mixed, compiled=True)
    assert resolved.model.activation_checkpointing == {"layers": 5}
    assert (resolved.deepspeed.stage, resolved.train.packs_per_micro_batch, resolved.model.compile) == (
        mixed.zero_stage,
        mixed.packs_per_micro_batch,
        True,
    )


@pytest.mark.parametrize(("precision", "is_gpu"), [("bfloat16", True), ("bfloat16", False), ("auto", True)])
def test_stage_0_is_refused_for_a_bfloat16_model(precision: str, is_gpu: bool) -> None:
    recipe = recipe_of(2, "deepspeed.zero_stage=0", f"model.precision={precision}")
    with pytest.raises(UserError, match=r"deepspeed\.zero_stage: 0 cannot be used .*; use 1"):
        fastest_plan(recipe, mistral_7b(), num_gpus=2, free_bytes=1000 * GIB, compiled=True, is_gpu=is_gpu)


@pytest.mark.parametrize(("precision", "is_gpu"), [("float32", True), ("float32", False), ("auto", False)])
def test_stage_0_is_kept_for_a_float32_model(precision: str, is_gpu: bool) -> None:
    recipe = recipe_of(2, "deepspeed.zero_stage=0", f"model.precision={precision}")
    found = fastest_plan(recipe, mistral_7b(), num_gpus=2, free_bytes=1000 * GIB, compiled=True, is_gpu=is_gpu)
    assert found.zero_stage == 0


def test_on_a_cpu_nothing_is_recomputed_or_joined() -> None:
    found = fastest_plan(recipe_of(2), mistral_7b(), num_gpus=2, free_bytes=0.0, compiled=False, is_gpu=False)
    assert (found.zero_stage, found.checkpointing_text, found.packs_per_micro_batch) == (2, "none", 1)


def test_too_little_memory_is_refused_with_the_need() -> None:
    least = plan(1, 30.0)
    assert not least.fits
    assert least.checkpointing_text == "full"
    assert (
        "needs on 1 GPU(s) is 127.1 GiB each (weights 13.5, gradients 27.0"
        in too_little_memory(least, num_gpus=1).problem
    )
    assert plan(1, 138.0).fits
    with pytest.raises(UserError, match="packs_per_micro_batch: 4 does not divide the 6 packs"):
        plan(1, 138.0, "train.packs_per_micro_batch=4")


def test_a_remedy_is_nothing_that_is_set_already() -> None:
    def remedy(*changes: str) -> str:
        least = plan(2, 20.0, *changes)
        assert not least.fits
        return too_little_memory(least, num_gpus=2).remedy

    free = remedy()
    for name in ("optimizer.states: 8bit", "deepspeed.offload_optimizer: true", "train.gradient_dtype: bfloat16"):
        assert name in free  # the control
    assert "states" not in remedy("optimizer.states=8bit")
    assert "offload" not in remedy("optimizer.states=8bit"), "the two exclude each other"
    offloaded = remedy("deepspeed.offload_optimizer=true")
    assert "offload" not in offloaded
    assert "states" not in offloaded
    assert "gradient_dtype" not in remedy("train.gradient_dtype=bfloat16")
    for value, name in (
        ("train.packs_per_micro_batch=2", "train.packs_per_micro_batch: 1"),
        ("model.activation_checkpointing=none", "model.activation_checkpointing: full"),
        ("deepspeed.zero_stage=1", "deepspeed.zero_stage: 3"),
    ):
        assert name not in free, "of what the recipe leaves open, the plan has taken the least"
        assert name in remedy(value), "what the recipe decides against memory"


def test_out_of_memory_names_the_next_safer_setting() -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    for changes, safer in (
        (["train.packs_per_micro_batch=2"], "train.packs_per_micro_batch: 1"),
        (["train.packs_per_micro_batch=1", "model.activation_checkpointing=matmuls"], "checkpointing: {layers: 4}"),
        (["train.packs_per_micro_batch=1", "model.activation_checkpointing={layers: 30}"], "checkpointing: full"),
        (
            ["train.packs_per_micro_batch=1", "model.activation_checkpointing=full", "deepspeed.zero_stage=2"],
            "zero_stage: 3",
        ),
    ):
        found = out_of_memory(plan(4, 77.5, *changes), error)
        assert str(found).startswith("GPU memory: more was needed than the ")
        assert f"{safer}, and start again" in found.remedy
        assert "Tried to allocate 2.00 GiB" in found.remedy


def test_the_documentation_shows_the_costs() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    percent = {name: f"{COSTS[name]:.0%}".replace("%", " %") for name in ("full", "stage_2", "stage_3")}
    sums = {name: f"{COSTS[name] / 8192:.{digits}%}" for name, digits in (("float32", 0), ("bfloat16", 1))}
    for row in (
        f"| recompute one layer (`full`, `layers: N`) | {percent['full']} of that layer's time |",
        f"added up in float32 | {percent['stage_2']} of a step |",
        f"| ZeRO-3 | {percent['stage_3']} of a step |",
        f"| {sums['float32']} in float32, {sums['bfloat16']} in bfloat16 |".replace("%", " %"),
        f"fits into {COSTS['usable_ratio']:.0%} of the free GPU memory".replace("%", " %"),
    ):
        assert row in page


def test_operations_of_a_step() -> None:
    """Mistral-7B: 42.66 GFLOP per token for 7.110e9 matrix parameters, and 0.786 MFLOP per token of T_eff."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model("mistral", **MISTRAL_7B)
        )
    work = work_of(model)
    assert work == Work(matmul_parameters=7_110_402_048, attention_width=4096, num_layers=32)
    per_token = work.flops(num_tokens=1.0, squared_lengths=2000.0)
    assert per_token == pytest.approx(44.2e9, rel=0.002)


LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "mistral", "num_attention_heads": 4, "num_key_value_heads": 2},
            LayerWidths(query=64, key=32, value=32, output=64, intermediate=96),
        ),
        (  # keys have a part with and one without positions
            {"model_type": "deepseek_v3", "num_attention_heads": 4, "num_key_value_heads": 4, **LATENT},
            LayerWidths(query=96, key=96, value=48, output=48, intermediate=96),
        ),
        (  # two layers that differ: heads of 16 and of 32
            {
                "model_type": "gemma4_text",
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "global_head_dim": 32,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            LayerWidths(query=96, key=48, value=48, output=96, intermediate=96),
        ),
        (  # no attention
            {"model_type": "mamba2", "head_dim": 16, "num_heads": 8},
            LayerWidths(query=0, key=0, value=0, output=0, intermediate=128),
        ),
    ],
    ids=lambda found: found.get("model_type", "") if isinstance(found, dict) else "",
)
def test_widths_of_layers(config: dict[str, Any], expected: LayerWidths) -> None:
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers does not know the family")
    shapes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
    found = transformers.AutoConfig.for_model(**{**shapes, **config})
    assert layer_widths(found)[:4] == expected[:4]
    shape = model_shape(found, vocab_size=100, num_parameters=1, compiled=True)
    assert shape.layer_bytes["full"] == 128


def test_the_meter_of_a_cpu_has_no_share_of_a_peak() -> None:
    meter = Meter(Work(matmul_parameters=10, attention_width=4, num_layers=1), torch.device("cpu"), num_ranks=2)
    meter.start(waited_seconds=1.0)
    found = meter.stop(num_tokens=100, squared_lengths=50.0, waited_seconds=1.0)
    assert found.mfu is None
    assert found.memory_gib is None
    assert found.data_wait_ratio == 0.0
    assert found.tokens_per_second > 0
