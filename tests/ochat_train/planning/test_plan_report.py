"""`ochat plan`: times against speeds that were measured, the settings it compares, and what it says before `ochat
prepare`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.cli.main import main
from ochat_train.evaluation.validation import Validator
from ochat_train.planning.memory_parts import MemorySetting
from ochat_train.planning.report import plan_report
from ochat_train.planning.results import PlanReport
from ochat_train.planning.text import plan_text
from ochat_train.planning.time import Gpu, MeanPack, assumed_speed, find_gpu, step_seconds, useful_ratio
from ochat_train.planning.work import Work
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.recipe.recipe import Recipe
from tests.support.small_recipe import TINY_MODEL, RecipeFactory, write_small_recipe

H100 = find_gpu("h100", memory_gib=None)
H200 = find_gpu("H200", memory_gib=None)


def mistral(num_layers: int = 32) -> Work:
    """Products of 131 million parameters in the head and 218 million in a layer."""
    return Work(matmul_parameters=131_080_192 + 218_103_808 * num_layers, attention_width=4096, num_layers=num_layers)


def setting(
    num_full: int = 0, *, stage: int = 1, packs: int = 1, num_layers: int = 32, sum_dtype: str = "bfloat16"
) -> MemorySetting:
    layers = ("full",) * num_full + ("matmuls",) * (num_layers - num_full)
    return MemorySetting(zero_stage=stage, checkpointing=layers, packs_per_micro_batch=packs, sum_dtype=sum_dtype)


def recipe_of(make_recipe: RecipeFactory, *changes: str) -> Recipe:
    return load_recipe(make_recipe(), ["train.pack_length_tokens=8192", "train.tokens_per_step=49152", *changes])


@pytest.mark.parametrize(
    ("changes", "plan", "mean_length", "tokens_per_second"),
    [
        ([], setting(20, sum_dtype="float32"), 2013, 10_877),
        (["train.gradient_dtype=bfloat16"], setting(), 2013, 12_601),
        (["model.float8=true"], setting(20, sum_dtype="float32"), 2013, 14_193),
        (["model.float8=true", "train.gradient_dtype=bfloat16"], setting(), 2013, 16_784),
        # 2 GPUs, a run that estimates do not come from; its T_eff is what its MFU of 57.4 % says
        (["train.gradient_dtype=bfloat16"], setting(packs=2), 2110, 12_809),
    ],
)
def test_estimate_gives_the_measured_tokens_per_second(
    make_recipe: RecipeFactory, changes: list[str], plan: MemorySetting, mean_length: int, tokens_per_second: int
) -> None:
    """Whole steps of Mistral-7B shapes on H200 (docs/performance.md), padding 2.7 %; mean_length: T_eff of the run."""
    seconds = step_of(recipe_of(make_recipe, *changes), plan, num_tokens=7971, mean_length=mean_length)
    assert 6 * 7971 / seconds == pytest.approx(tokens_per_second, rel=0.015)


@pytest.mark.parametrize(
    ("gpu", "float8", "plan", "mean_length", "tokens_per_second"),
    [
        (H200, False, setting(), 2524, 12_511),
        (H200, False, setting(packs=2), 2125, 12_692),
        (H100, False, setting(num_layers=16), 2524, 23_672),
        (H100, False, setting(num_layers=16, packs=2), 2125, 24_560),
        (H100, False, setting(num_layers=24), 2125, 16_570),
        (H100, False, setting(num_layers=24, stage=2, sum_dtype="float32"), 2125, 15_105),
        (H100, False, setting(31), 2125, 10_315),
        (H100, False, setting(31, stage=2, sum_dtype="float32"), 2125, 9_542),
        (H100, False, setting(13, stage=3), 2125, 9_971),
        (H200, True, setting(), 2524, 16_588),
        (H200, True, setting(packs=2), 2125, 17_782),
        (H100, True, setting(num_layers=16), 2524, 30_329),
        (H100, True, setting(num_layers=16, packs=2), 2125, 33_010),
        (H100, True, setting(13, stage=3), 2125, 11_983),
    ],
)
def test_estimate_for_other_gpus_and_settings_is_near_what_was_measured(
    make_recipe: RecipeFactory, gpu: Gpu, float8: bool, plan: MemorySetting, mean_length: int, tokens_per_second: int
) -> None:
    """Mistral-7B shapes on one and two GPUs (docs/performance.md), padding 1.2 %; the estimate comes from earlier H200
    runs.
    """
    recipe = recipe_of(make_recipe, "train.gradient_dtype=bfloat16", f"model.float8={json.dumps(float8)}")
    seconds = step_of(recipe, plan, num_tokens=8093, mean_length=mean_length, gpu=gpu)
    assert 6 * 8093 / seconds == pytest.approx(tokens_per_second, rel=0.065 if float8 else 0.025)


def step_of(recipe: Recipe, plan: MemorySetting, *, num_tokens: int, mean_length: int, gpu: Gpu = H200) -> float:
    """Seconds of a step of six packs with so many tokens each."""
    work = mistral(len(plan.checkpointing))
    pack = MeanPack(num_tokens=num_tokens, squared_lengths=num_tokens * mean_length)
    useful = useful_ratio(work, pack, pack_length_tokens=8192)
    speed = assumed_speed(recipe, plan, gpu=gpu, num_parameters=7_241_748_480, own=None, useful=useful)
    assert speed.mfu is not None
    return step_seconds(work, pack, packs_per_gpu=6, gpu=gpu, mfu=speed.mfu)


@pytest.mark.parametrize(("num_tokens", "seconds"), [(8192, 3.80), (4096, 3.73), (1, 3.66)])
def test_padding_takes_as_long_as_tokens_but_for_attention(
    make_recipe: RecipeFactory, num_tokens: int, seconds: float
) -> None:
    """Measured: 12,601 tokens/s, so six packs of 7,971 tokens take 3.795 s, 3.6 % of it (1.58 of 44.2 GFLOP) for
    attention.
    """
    recipe = recipe_of(make_recipe, "train.gradient_dtype=bfloat16")
    assert step_of(recipe, setting(), num_tokens=num_tokens, mean_length=2013) == pytest.approx(seconds, rel=0.003)


def test_a_half_filled_pack_takes_as_long_as_a_full_one(tmp_path: Path, small_tokenizer_dir: Path) -> None:
    """One pack of 8,192 a step; 8 layers, products of 1.747e9 parameters. 7.110e9 take 0.610 of the measured 0.632
    s.
    """
    shapes = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    }
    changes = {
        "model__config": {**TINY_MODEL, **shapes},
        "deepspeed": {},
        "train": {"pack_length_tokens": 8192, "tokens_per_step": 8192, "epochs": 1, "gradient_dtype": "bfloat16"},
    }
    fills = []
    for count in (48, 96):
        recipe = load_recipe(write_small_recipe(tmp_path, small_tokenizer_dir, num_conversations=count, **changes))
        prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
        report = plan_report(recipe, num_gpus=1, gpu=find_gpu("h200", memory_gib=None))
        assert (report.run.num_steps, report.zero_stage, report.activation_checkpointing) == (1, 1, "matmuls")
        assert report.time.seconds_per_step == pytest.approx(0.1499, rel=0.01)
        fills.append(report.run.packing_efficiency)
    assert fills[0] < 0.55 < 0.9 < fills[1]


def test_costlier_settings_are_slower(make_recipe: RecipeFactory) -> None:
    recipe = recipe_of(make_recipe)
    plans = [setting(packs=2), setting(), setting(16), setting(32), setting(32, stage=2), setting(32, stage=3)]
    speeds = [
        assumed_speed(recipe, plan, num_parameters=7_000_000_000, own=None, useful=1.0, gpu=H200).mfu or 0.0
        for plan in plans
    ]
    assert speeds == sorted(speeds, reverse=True)
    assert len(set(speeds)) == len(speeds)


def test_what_was_not_measured_is_not_guessed(make_recipe: RecipeFactory) -> None:
    for change in ("model.compile=false", "model.precision=float32", "deepspeed.offload_optimizer=true"):
        recipe = recipe_of(make_recipe, change)
        speed = assumed_speed(recipe, setting(stage=2), num_parameters=7_000_000_000, own=None, useful=1.0, gpu=H200)
        assert speed.mfu is None
        assert "--mfu" in speed.basis
        assert (
            assumed_speed(recipe, setting(stage=2), num_parameters=7_000_000_000, own=0.3, useful=0.5, gpu=H200).mfu
            == 0.3
        )
    assert (
        assumed_speed(recipe_of(make_recipe), setting(), num_parameters=575_000, own=None, useful=1.0, gpu=H200).mfu
        is None
    )
    small = assumed_speed(recipe_of(make_recipe), setting(), num_parameters=134_000_000, own=None, useful=1.0, gpu=H200)
    assert small.mfu == 0.05
    assert "134 million parameters" in small.basis


def test_kinds_of_gpus() -> None:
    assert (H100.peak_flops, H100.memory_gib) == (989e12, 79.0)
    assert find_gpu("A100", memory_gib=39.5).memory_gib == 39.5
    assert find_gpu("2250", memory_gib=180.0).peak_flops == 2250e12
    for text, message in (
        ("b200", "give h100, h200, a100 or"),
        ("nan", "peak in TFLOP/s"),
        ("2250", "add --gpu-memory GIB"),
    ):
        with pytest.raises(UserError, match=f"--gpu {text}: .*{message}"):
            find_gpu(text, memory_gib=None)


@pytest.fixture
def prepared(make_recipe: RecipeFactory) -> Recipe:
    recipe = load_recipe(make_recipe(deepspeed={}, data__validation_ratio=0.2, checkpoint={"save_every_steps": 3}))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    return recipe


def test_hours_follow_from_operations_peak_and_share(prepared: Recipe) -> None:
    """A share given by the user counts operations as the meter does (docs/performance.md): without padding."""
    report = plan_report(prepared, num_gpus=2, gpu=H100, mfu=0.5)
    prepared_dir = Path(prepared.data.prepared_dir)
    lengths = PreparedSplit(prepared_dir, "train").num_tokens.tolist()
    vocabulary = json.loads((prepared_dir / "manifest.json").read_text())["vocab_size"]
    hidden, layers = TINY_MODEL["hidden_size"], TINY_MODEL["num_hidden_layers"]
    attention = hidden * (32 + 16 + 16 + 32)
    matmuls = layers * (attention + 3 * hidden * TINY_MODEL["intermediate_size"]) + vocabulary * hidden
    operations = 6 * (matmuls * sum(lengths) + layers * 32 * sum(length**2 for length in lengths))
    full_packs = sum(lengths) / (256 * report.run.packing_efficiency)
    packs_worked_on = report.run.num_steps * report.packs_per_gpu * 2
    seconds = operations / full_packs * packs_worked_on / (2 * 989e12 * 0.5)
    assert report.time.hours * 3600 == pytest.approx(seconds, rel=0.002)
    assert report.time.gpu_hours == pytest.approx(2 * report.time.hours)
    assert report.time.seconds_per_step * report.run.num_steps == pytest.approx(seconds, rel=0.002)
    assert report.time.tokens_per_second * seconds == pytest.approx(sum(lengths) * prepared.train.epochs, rel=0.002)
    assert plan_report(prepared, num_gpus=2, gpu=H100, mfu=0.25).time.hours == pytest.approx(2 * report.time.hours)


def test_validations_are_counted(prepared: Recipe) -> None:
    every = {"validation": prepared.validation.model_copy(update={"every_steps": 2})}
    report = plan_report(prepared.model_copy(update=every), num_gpus=1, gpu=H100)
    steps = report.run.num_steps
    assert report.run.num_validations == len({s for s in range(1, steps + 1) if s % 2 == 0 or s % 3 == 0 or s == steps})
    assert 0 < report.run.validation_time_ratio < 1


@pytest.mark.parametrize(
    ("validation_ratio", "sample_tokens", "tokens", "every_steps"),
    [
        (0.3, 0, 15 * 256, 32),
        (0.3, 24, 15 * 256 + 24 * (15 + 24 + 13 + 24), 47),
        (0.0, 24, 24 * (15 + 24 + 13 + 24), 15),
    ],
)
def test_validations_are_those_of_the_run(
    make_recipe: RecipeFactory, validation_ratio: float, sample_tokens: int, tokens: int, every_steps: int
) -> None:
    """tokens: held-out packs, and the prompt of 15 and 13 tokens with the room of its answer, once for each new token.

    every_steps: reading them (a third of the work of training) takes 4 % of the time of so many steps of 1,024 tokens.
    """
    settings = {"prompts": ["Hello there"], "sample_tokens": sample_tokens}
    recipe = load_recipe(
        make_recipe(
            data__validation_ratio=validation_ratio, validation=settings, train__epochs=40, train__max_steps=100
        )
    )
    manifest, _ = prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    validator = Validator(recipe, manifest, num_steps=100)
    due = [step for step in range(1, 101) if validator.is_due(step, saves=step == 100)]
    assert (every_steps - 1) * 1024 * 0.04 < tokens / 3 <= every_steps * 1024 * 0.04
    assert due == [*range(every_steps, 100, every_steps), 100]
    for num_gpus in (1, 4):
        report = plan_report(recipe, num_gpus=num_gpus, gpu=H100, mfu=0.5)
        assert report.run.num_validations == len(due)
        assert f"; {len(due)} validations" in plan_text(report)


def test_nothing_held_out_and_nothing_asked_is_never_validated(make_recipe: RecipeFactory) -> None:
    recipe = load_recipe(make_recipe(validation={"prompts": ["Hello there"], "sample_tokens": 0}))
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    report = plan_report(recipe, num_gpus=1, gpu=H100, mfu=0.5)
    assert (report.run.num_validations, report.run.validation_time_ratio) == (0, 0.0)
    assert "validation" not in plan_text(report)


def test_settings_hold_the_chosen_one_and_it_is_the_fastest_that_fits(prepared: Recipe) -> None:
    for memory_gib in (79.0, 3.6, 2.0):
        report = plan_report(prepared, num_gpus=2, gpu=find_gpu("h100", memory_gib=memory_gib), mfu=0.5)
        settings = report.settings
        [chosen] = [row for row in settings if row.chosen]
        fitting = [row.relative_seconds for row in settings if row.fits]
        assert report.fits == bool(fitting) == chosen.fits
        assert chosen.relative_seconds == min(fitting, default=1.0) == 1.0
        keys = ("zero_stage", "activation_checkpointing", "packs_per_micro_batch")
        assert [getattr(chosen, key) for key in keys] == [getattr(report, key) for key in keys]
        assert chosen.memory_gib == report.memory_gib_per_gpu["total"]
        assert {row.zero_stage for row in settings} == {1, 2, 3}
        assert (report.time is None) == (not report.fits)
        text = plan_text(report)
        assert text.count("<- this one" if report.fits else "<- the least") == text.count("<-") == 1
        assert ("the least that this recipe needs" in text) == (not report.fits)


CONTRACT = {
    "steps_per_epoch",
    "tokens_per_step",
    "bins_per_step",
    "packing_efficiency",
    "conversations_per_epoch",
    "learning_rate",
    "memory_gib_per_gpu",
}


def test_command(prepared: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(tmp_path / "recipe.yaml"), "--gpus", "2", "--gpu", "h200"]
    assert main([*command, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(report) >= CONTRACT | {"hours", "gpu_hours", "mfu_assumed", "mfu_basis", "settings"}
    assert report["gpu_memory_gib"] == 139.0
    assert json.dumps(PlanReport.from_json(report).to_json()) == json.dumps(report)
    assert (report["price_per_gpu_hour"], report["cost"]) == (None, None)
    priced = [*command, "--mfu", "0.001", "--price", "2.5"]
    assert main([*priced, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["price_per_gpu_hour"] == 2.5
    assert report["cost"] == pytest.approx(2.5 * report["gpu_hours"])
    assert main(priced) == 0
    assert f"GPU-hours, {report['cost']:,.2f} at 2.5 each" in capsys.readouterr().out
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "not known: no speed was measured with so small a model" in text
    assert main([*command, "--mfu", "0.4"]) == 0
    text = capsys.readouterr().out
    assert "40.0% of 989 TFLOP/s: given by --mfu" in text
    assert "not in it" in text
    assert main([*command, "--set", "data.beta=0.5"]) == 2
    assert "run `ochat prepare RECIPE` again" in capsys.readouterr().err
    for wrong in ("0", "50", "nan"):
        with pytest.raises(SystemExit):
            main([*command, "--mfu", wrong])
        assert "--mfu" in capsys.readouterr().err
    assert main([*command[:-1], "a100", "--set", "model.float8=true"]) == 2
    assert "cannot be used on an A100" in capsys.readouterr().err


def test_before_the_data_are_prepared(make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(deepspeed={})
    command = ["plan", str(recipe), "--gpus", "2", "--mfu", "0.4"]
    assert main([*command, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert json.dumps(PlanReport.from_json(before).to_json()) == json.dumps(before)
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "known after `ochat prepare RECIPE`" in text
    assert "1,024 in 4 packs\n" in text
    assert main([*command, "--set", "train.tokens_per_step=256"]) == 0
    assert "256 in 1 pack\n" in capsys.readouterr().out
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    assert main([*command, "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert json.dumps(PlanReport.from_json(after).to_json()) == json.dumps(after)
    assert before.keys() == after.keys()
    assert {key for key in after if before[key] != after[key]} == {
        "prepared",
        "classes",
        "steps_per_epoch",
        "num_steps",
        "tokens_per_epoch",
        "packing_efficiency",
        "conversations_per_epoch",
        "max_conversations_per_pack",
        "waiting_ratio",
        "balanced_waiting_ratio",
        "learning_rate",
        "num_validations",
        "validation_time_ratio",
        "seconds_per_step",
        "tokens_per_second",
        "hours",
        "gpu_hours",
    }
    assert all(before[key] is None for key in after if before[key] != after[key] and key not in ("prepared", "classes"))


def test_a_plan_that_does_not_fit_is_no_success(make_recipe: RecipeFactory, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_recipe()
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    for memory, code in (("79", 0), ("0.6", 2)):
        assert main(["plan", str(path), "--gpu-memory", memory]) == code
        output = capsys.readouterr()
        assert "settings considered" in output.out  # the report is printed in both cases
        assert ("no setting of this recipe fits" in output.err) == (code == 2)
