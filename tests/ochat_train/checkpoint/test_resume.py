"""Where a run starts: the decision, from what is on the disk; and what is moved out of its way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.checkpoint.basis import RunBasis
from ochat_train.checkpoint.changes import Change, changes_since
from ochat_train.checkpoint.earlier_plan import plan_to_take, with_plan
from ochat_train.checkpoint.resume import EarlierRun, ResumeDecision, decide, read_earlier_run, set_aside
from ochat_train.checkpoint.state import CheckpointManifest, Progress, verify
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.runs.lock import RunLock
from tests.support.small_recipe import TINY_MODEL, RecipeFactory


@pytest.fixture
def recipe(make_recipe: RecipeFactory) -> Recipe:
    return load_recipe(make_recipe())


def manifest_of(recipe: Recipe, *, step: int = 4, **changes: Any) -> CheckpointManifest:
    manifest = CheckpointManifest(
        progress=Progress(step=step),
        num_ranks=2,
        recipe=recipe.model_dump(mode="json", by_alias=True),
        data_fingerprint="a",
        validation_loss=None,
        versions={},
        files={},
    )
    return dataclasses.replace(manifest, **changes)


# ---- what has changed ----


def changes_of(manifest: CheckpointManifest, recipe: Recipe, *, num_ranks: int = 2, data: str = "a") -> list[Change]:
    return list(changes_since(manifest, num_ranks=num_ranks, recipe=recipe, data_fingerprint=data))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deepspeed__zero_stage": 0}, ("deepspeed.zero_stage", 2, 0, True)),
        ({"train__loss_denominator": "step"}, ("train.loss_denominator", "epoch", "step", False)),
        ({"train__tokens_per_step": 512}, ("train.tokens_per_step", 1024, 512, False)),
        ({"seed": 2}, ("seed", 1, 2, False)),
        ({"model__template": "chatml"}, ("model.template", "openchat_3.5", "chatml", False)),
        (
            {"model__config": {**TINY_MODEL, "hidden_size": 64}},
            ("model.config", TINY_MODEL, {**TINY_MODEL, "hidden_size": 64}, False),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_change_is_a_value(
    changes: dict[str, Any], expected: tuple[Any, ...], recipe: Recipe, make_recipe: RecipeFactory
) -> None:
    [change] = changes_of(manifest_of(recipe), load_recipe(make_recipe(**changes)))
    assert (change.name, change.then, change.now, change.is_of_layout) == expected
    assert str(change) == f"{expected[0]} ({expected[1]} -> {expected[2]})"


def without_plan(manifest: CheckpointManifest) -> CheckpointManifest:
    """As the first release wrote it, which had no `train.plan`."""
    train = {key: value for key, value in manifest.recipe["train"].items() if key != "plan"}
    return dataclasses.replace(manifest, recipe={**manifest.recipe, "train": train})


def test_a_checkpoint_without_a_plan_has_the_first_one(recipe: Recipe) -> None:
    manifest = without_plan(manifest_of(recipe))
    assert changes_of(manifest, with_plan(recipe, "first")) == []
    [change] = changes_of(manifest, recipe)
    assert str(change) == "train.plan (first -> varied)"


@pytest.mark.parametrize(
    ("then", "named", "resume", "expected"),
    [
        (None, None, "auto", "first"),
        (None, "varied", "auto", "varied"),  # refused afterwards, as every change
        (None, None, "never", "varied"),
        ("balanced", None, "auto", "balanced"),
        ("varied", None, "auto", "varied"),
        ("balanced", "first", "auto", "first"),
        ("no such plan", None, "auto", "varied"),
    ],
)
def test_a_run_keeps_the_plan_that_it_was_begun_with(
    then: str | None, named: str | None, resume: str, expected: str, make_recipe: RecipeFactory, tmp_path: Path
) -> None:
    recipe = load_recipe(make_recipe(output_dir=str(tmp_path / "run"), **({"train__plan": named} if named else {})))
    assert plan_to_take(recipe, resume) == (named or "varied")  # no checkpoint yet
    folder = tmp_path / "run" / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    manifest = without_plan(manifest_of(recipe))
    if then is not None:
        manifest.recipe["train"]["plan"] = then
    manifest.write(folder)
    assert plan_to_take(recipe, resume) == expected
    if resume == "auto":
        assert plan_to_take(recipe, str(folder)) == expected
    damaged = tmp_path / "run" / "checkpoints" / "step-00000006"
    damaged.mkdir()
    (damaged / "MANIFEST.json").write_text("{", encoding="utf-8")
    assert plan_to_take(recipe, resume) == expected


def test_data_and_the_number_of_gpus_are_compared(recipe: Recipe) -> None:
    manifest = manifest_of(recipe)
    assert changes_of(manifest, recipe) == []
    assert changes_of(manifest, recipe, data="b") == [Change(name="prepared data", then="a", now="b")]
    [change] = changes_of(manifest, recipe, num_ranks=4)
    assert (str(change), change.is_of_layout) == ("number of GPUs (2 -> 4)", True)


def test_what_does_not_decide_the_steps_is_not_compared(recipe: Recipe, make_recipe: RecipeFactory) -> None:
    """Also the values of `data`: what was prepared from them has a fingerprint."""
    other = make_recipe(
        name="other",
        train__log_every_steps=7,
        train__packs_per_micro_batch=3,
        train__push_to_hub="org/model",
        model__activation_checkpointing="full",
        checkpoint__keep_last=5,
        validation__every_steps=2,
        tracking__tensorboard=True,
        data__validation_ratio=0.5,
        deepspeed__config={
            "wall_clock_breakdown": True,
            "comms_logger": {"enabled": True},
            "zero_optimization": {"stage3_param_persistence_threshold": 0, "overlap_comm": False},
        },
    )
    assert changes_of(manifest_of(recipe), load_recipe(other)) == []


def test_keys_that_only_one_of_both_has(recipe: Recipe) -> None:
    """A key that the checkpoint alone has is left alone; one that it lacks was `None`."""
    values = recipe.model_dump(mode="json", by_alias=True)
    values["train"]["old_key"], values["old_section"] = 3, {"x": 1}
    del values["model"]["float8"], values["model"]["revision"], values["validation"]
    manifest = dataclasses.replace(manifest_of(recipe), recipe=values)
    assert changes_of(manifest, recipe) == [Change(name="model.float8", then=None, now=False)]


# ---- what has changed beside the recipe ----

BASE_CONFIG = {**TINY_MODEL, "vocab_size": 400}


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("rms_norm_eps", 1e-5, "base config: rms_norm_eps (1e-06 -> 1e-05)"),
        ("attention_dropout", 0.1, "base config: attention_dropout (0.0 -> 0.1)"),
        ("sliding_window", 16, "base config: sliding_window (None -> 16)"),
        ("hidden_act", "gelu", "base config: hidden_act (silu -> gelu)"),
        ("rope_theta", 5e5, "base config: rope_parameters.rope_theta (10000.0 -> 500000.0)"),
        ("use_cache", False, None),
        ("eos_token_id", 7, None),
        ("architectures", ["Other"], None),
        ("transformers_version", "4.0.0", None),
    ],
)
def test_an_entry_of_the_base_config(entry: str, value: Any, expected: str | None, recipe: Recipe) -> None:
    manifest = manifest_of(recipe, base_config=BASE_CONFIG)
    basis = RunBasis(config={**BASE_CONFIG, entry: value})
    found = changes_since(manifest, num_ranks=2, recipe=recipe, data_fingerprint="a", basis=basis)
    assert [str(change) for change in found] == ([] if expected is None else [expected])


def test_a_base_config_that_nobody_wrote_down_is_told(recipe: Recipe, tmp_path: Path) -> None:
    basis = RunBasis(config=BASE_CONFIG)
    [message] = decision(earlier_run(4, intact=manifest_of(recipe)), recipe, basis=basis).messages
    assert message.endswith("holds the base's config; it is not compared")
    assert (
        decision(earlier_run(4, intact=manifest_of(recipe, base_config=BASE_CONFIG)), recipe, basis=basis).messages
        == ()
    )
    folder = make_checkpoint(tmp_path / "run", recipe, 2)
    for content in (None, BASE_CONFIG):
        if content is not None:
            (tmp_path / "run" / "model_config").mkdir()
            (tmp_path / "run" / "model_config" / "config.json").write_text(json.dumps(content))
        found = read_earlier_run(tmp_path / "run", str(folder)).intact
        assert found is not None
        assert found[1].base_config == (content or {}), "of the run folder, where earlier versions wrote it"


def test_rows_are_compared_where_both_are_known_and_made_from_the_same(recipe: Recipe) -> None:
    def names(then: str, now: str, data: str = "a") -> list[str]:
        manifest = manifest_of(recipe, data_rows=then)
        basis = RunBasis(rows_digest=now)
        return [c.name for c in changes_since(manifest, num_ranks=2, recipe=recipe, data_fingerprint=data, basis=basis)]

    assert names("x", "x") == names("", "x") == names("x", "") == []
    assert names("x", "y") == ["rows of the prepared data"]
    assert names("x", "y", data="b") == ["prepared data"], "which says it already"


def test_raw_keys_that_change_a_number_are_compared(recipe: Recipe, make_recipe: RecipeFactory) -> None:
    """Also one that is no longer there."""
    other = load_recipe(make_recipe(deepspeed__config={"zero_optimization": {"reduce_bucket_size": 5}}))
    raw = "deepspeed.config.zero_optimization"
    assert {str(change) for change in changes_of(manifest_of(recipe), other)} == {
        f"{raw}.reduce_bucket_size (None -> 5)",
        f"{raw}.stage3_param_persistence_threshold (0 -> None)",
    }


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("deepspeed__offload_optimizer", True, r"deepspeed.offload_optimizer \(False -> True\)"),
        ("optimizer__states", "8bit", r"optimizer.states \(float32 -> 8bit\)"),
        ("optimizer__states", "bfloat16", r"optimizer.states \(float32 -> bfloat16\)"),
    ],
)
def test_another_optimizer_is_refused_even_if_changes_are_accepted(
    key: str, value: Any, named: str, recipe: Recipe, make_recipe: RecipeFactory
) -> None:
    other = load_recipe(make_recipe(**{key: value}))
    for accept in (False, True):
        with pytest.raises(UserError, match=f"{named}; its optimizer states cannot be converted"):
            decision(earlier_run(4, intact=manifest_of(recipe)), other, accept_changes=accept)
    assert decision(earlier_run(4, intact=manifest_of(other)), other).checkpoint, "the control"


@pytest.mark.parametrize(
    ("prefix", "now", "named"),
    [
        ("", "float32", None),
        ("bf16_", "bfloat16", None),
        ("", "bfloat16", "float32 -> bfloat16"),
        ("bf16_", "float32", "bfloat16 -> float32"),  # `auto`, on a GPU and then on a CPU
    ],
)
def test_weights_of_another_precision_cannot_be_converted(
    prefix: str, now: str, named: str | None, recipe: Recipe
) -> None:
    """DeepSpeed keeps masters beside bfloat16 weights, in files of other names."""
    files = {f"state/{prefix}zero_pp_rank_0_mp_rank_00_optim_states.pt": (1, "a")}
    earlier, basis = earlier_run(4, intact=manifest_of(recipe, files=files)), RunBasis(precision=now)
    if named is None:
        assert decision(earlier, recipe, basis=basis).checkpoint
        return
    with pytest.raises(UserError, match=rf"precision of the weights \({named}\); its optimizer states cannot be conv"):
        decision(earlier, recipe, basis=basis, accept_changes=True)


def test_a_checkpoint_with_the_name_of_another_step_is_not_intact(recipe: Recipe, tmp_path: Path) -> None:
    """It would be moved aside as later than itself, and the next start would begin from the base."""
    folder = make_checkpoint(tmp_path / "run", recipe, 2)
    assert verify(folder) is None, "the control"
    renamed = folder.rename(folder.with_name("step-00000003"))
    assert "is named step-00000003, and it holds step 2" in str(verify(renamed))
    assert verify(renamed.rename(tmp_path / "kept")) is None, "a copy may have any other name"


def test_a_checkpoint_without_optimizer_states_has_float32_ones(recipe: Recipe, make_recipe: RecipeFactory) -> None:
    """As versions wrote it that had no `optimizer.states`. The control: other states are a change."""
    manifest = manifest_of(recipe)
    del manifest.recipe["optimizer"]["states"]
    assert changes_of(manifest, recipe) == []
    [change] = changes_of(manifest, load_recipe(make_recipe(optimizer__states="8bit")))
    assert str(change) == "optimizer.states (float32 -> 8bit)"


def test_other_software_is_told_in_one_line(recipe: Recipe) -> None:
    """What only one of both knows is not compared."""
    then = {"torch": "1", "transformers": "5", "device": "H100", "flash-attn": "2"}
    earlier = earlier_run(4, intact=manifest_of(recipe, versions=then))
    now = {"torch": "2", "transformers": "5", "device": "H200", "attention kernel": "varlen"}
    found = decision(earlier, recipe, basis=RunBasis(versions=now))
    assert found.messages == (
        "warning: not what the checkpoint was computed with, so the last digits may differ: torch 1 -> 2, "
        "device H100 -> H200",
    )
    assert decision(earlier, recipe, basis=RunBasis(versions=then)).messages == ()


# ---- the decision ----

RUN = Path("runs/mine")


def earlier_run(*steps: int, intact: CheckpointManifest | None = None, **changes: Any) -> EarlierRun:
    folders = tuple(RUN / "checkpoints" / f"step-{step:08d}" for step in steps)
    found = EarlierRun(
        output_dir=RUN,
        is_there=bool(steps),
        neighbours=frozenset({"mine", "mine.previous-1", "other"}),
        checkpoints=folders,
        checkpoint_names=frozenset({*(folder.name for folder in folders), "LATEST", "aside-1-step-00000006"}),
        intact=(RUN / "checkpoints" / f"step-{intact.step:08d}", intact) if intact else None,
    )
    return dataclasses.replace(found, **changes)


def decision(earlier: EarlierRun, recipe: Recipe, resume: str = "auto", **changes: Any) -> ResumeDecision:
    facts = {"num_ranks": 2, "data_fingerprint": "a", "accept_changes": False, **changes}
    return decide(earlier, resume, recipe=recipe, **facts)


def test_a_first_run_starts_from_the_base_model(recipe: Recipe) -> None:
    for resume in ("auto", "never"):
        assert decision(earlier_run(), recipe, resume) == ResumeDecision(checkpoint=None)


def test_a_run_resumes_from_the_checkpoint_that_is_intact(recipe: Recipe) -> None:
    found = decision(earlier_run(2, 4, intact=manifest_of(recipe)), recipe)
    assert found == ResumeDecision(checkpoint=RUN / "checkpoints" / "step-00000004", learning_rate_rule=1)


def test_later_checkpoints_are_moved_to_free_names(recipe: Recipe) -> None:
    """One that is passed over as damaged as well as one that is left behind by `--resume PATH`."""
    earlier = earlier_run(2, 4, 6, 8, intact=manifest_of(recipe), damaged=(("step-00000008", "x"),))
    folder = RUN / "checkpoints"
    for resume in ("auto", str(folder / "step-00000004")):
        found = decision(earlier, recipe, resume)
        assert found.checkpoint == folder / "step-00000004"
        assert found.checkpoint_moves == (
            (folder / "step-00000006", folder / "aside-2-step-00000006"),
            (folder / "step-00000008", folder / "aside-1-step-00000008"),
        )
        assert found.messages[0] == (
            f"step-00000006 is later than this checkpoint; it is moved to {folder / 'aside-2-step-00000006'}"
        )


def test_starting_over_moves_the_whole_run_to_a_free_name(recipe: Recipe) -> None:
    found = decision(earlier_run(2, 4), recipe, "never")
    target = Path("runs/mine.previous-2")
    assert found == ResumeDecision(
        checkpoint=None, run_moves_to=target, messages=(f"the earlier run is moved to {target}",)
    )


def test_damage_is_never_a_silent_restart(recipe: Recipe) -> None:
    damaged = (("step-00000004", "x"), ("step-00000002", "y"))
    with pytest.raises(UserError) as caught:
        decision(earlier_run(2, 4, damaged=damaged), recipe)
    assert caught.value.problem == "no checkpoint is intact (step-00000004: x; step-00000002: y)"
    assert caught.value.remedy == "`--resume never` starts over"
    with pytest.raises(UserError, match="--resume a/step-00000004: x; choose another checkpoint"):
        decision(earlier_run(2, 4, damaged=damaged[:1]), recipe, "a/step-00000004")


def test_changes_are_refused_or_accepted(recipe: Recipe) -> None:
    earlier = earlier_run(4, intact=manifest_of(recipe, data_fingerprint="b"))
    with pytest.raises(UserError) as caught:
        decision(earlier, recipe)
    assert caught.value.problem == "changed since this checkpoint was written: prepared data (b -> a)"
    assert caught.value.remedy.endswith("or accept the change with `--accept-changes`")
    found = decision(earlier, recipe, accept_changes=True)
    assert (found.reshard, found.messages) == (False, ("resuming with accepted changes: prepared data (b -> a)",))


@pytest.mark.parametrize(("then", "now"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (0, 0), (0, 2), (2, 3), (3, 2)])
def test_which_layouts_are_converted(then: int, now: int, make_recipe: RecipeFactory) -> None:
    """Not accepted changes: a conversion needs no permission."""
    old, new = (load_recipe(make_recipe(deepspeed__zero_stage=stage)) for stage in (then, now))
    earlier = earlier_run(4, intact=manifest_of(old))
    if (then, now) in ((0, 0), (0, 2), (2, 3), (3, 2)):
        with pytest.raises(UserError, match=r"number of GPUs \(2 -> 4\)"):
            decision(earlier, new, num_ranks=4, accept_changes=True)
    else:
        found = decision(earlier, new, num_ranks=4)
        assert found.reshard
        assert found.messages[0].startswith("the checkpoint is converted first: number of GPUs (2 -> 4)")
    assert then != now or not decision(earlier, new).reshard


# ---- on the disk ----


def make_checkpoint(output_dir: Path, recipe: Recipe, step: int) -> Path:
    folder = output_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    manifest_of(recipe, step=step).write(folder)
    return folder


def test_reading_looks_no_further_than_the_newest_intact_checkpoint(
    tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    folders = [make_checkpoint(run, recipe, step) for step in (2, 4, 6)]
    for folder in (folders[0], folders[2]):
        (folder / "stray").touch()
    found = read_earlier_run(run, "auto")
    assert found.intact is not None
    assert (found.intact[0], found.intact[1].step) == (folders[1], 4)
    assert found.damaged == (("step-00000006", "stray is not in its MANIFEST.json"),)
    assert "step-00000006 is not intact: stray is not in its MANIFEST.json" in capsys.readouterr().err
    assert (found.is_there, found.checkpoints) == (True, tuple(folders))
    assert read_earlier_run(run, str(folders[2])).damaged == found.damaged
    assert read_earlier_run(run, "never").intact is None
    assert not read_earlier_run(tmp_path / "none", "auto").is_there


def test_the_folder_above_is_read_only_to_find_a_new_name(tmp_path: Path, recipe: Recipe) -> None:
    """A shared folder that this user may not list holds runs that start and resume."""
    run = tmp_path / "shared" / "run"
    run.mkdir(parents=True)
    (run.parent / "neighbour").touch()
    assert not read_earlier_run(run, "never").neighbours
    make_checkpoint(run, recipe, 2)
    assert not read_earlier_run(run, "auto").neighbours
    assert read_earlier_run(run, "never").neighbours == {"run", "neighbour"}


def test_what_is_decided_is_moved(tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    lock = RunLock(run)
    lock.acquire()
    assert not read_earlier_run(run, "never").is_there  # a lock alone is not a run
    for step in (2, 4):
        make_checkpoint(run, recipe, step)
    first = decision(read_earlier_run(run, str(run / "checkpoints" / "step-00000002")), recipe, "a path")
    set_aside(first, lock)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-00000002", "aside-1-step-00000004"}
    set_aside(decision(read_earlier_run(run, "never"), recipe, "never"), lock)
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert (tmp_path / "run.previous-1" / "checkpoints" / "step-00000002").is_dir()
    assert [line.partition(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "step-00000004 is later than this checkpoint",
        f"the earlier run is moved to {tmp_path / 'run.previous-1'}",
    ]
    lock.close()
