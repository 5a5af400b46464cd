"""What each field of a recipe declares: whether it decides the steps, whether it is public, what it takes."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import Field, ValidationError

from data_pipeline.section import ANY, Rule, Section, all_fields, chosen_values, flags_of, is_section, setting
from ochat_train.checkpoint.changes import decisive_settings
from ochat_train.export.public_recipe import public_recipe
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from tests.support.small_recipe import RecipeFactory

# What checkpoints and exports have held since before fields declared it. New fields join these lists; none leaves.
DECISIVE = """
    seed deepspeed.zero_stage model.path model.config model.tokenizer model.revision model.template
    model.condition_in model.rewritten_history model.template_variables model.template_date
    model.max_length_tokens model.inference_condition model.precision model.attention model.float8 train.epochs
    model.router_aux_loss
    train.pack_length_tokens train.gradient_dtype train.tokens_per_step train.loss_denominator train.plan
    train.max_steps
    optimizer.learning_rate optimizer.warmup_ratio optimizer.min_lr_ratio optimizer.weight_decay optimizer.betas
    optimizer.eps optimizer.grad_clip optimizer.states deepspeed.offload_optimizer
    deepspeed.config.zero_optimization.reduce_bucket_size
"""
PUBLIC = """
    name seed model.path model.config model.tokenizer model.revision model.template model.max_length_tokens
    model.condition_in model.rewritten_history model.template_variables model.template_date
    model.inference_condition model.precision model.attention model.compile model.float8 model.activation_checkpointing
    model.router_aux_loss
    data.classes data.classes.*.condition data.classes.*.reward data.classes.*.weight data.classes.*.baseline
    data.classes_from data.classes_from.field data.classes_from.quantiles data.classes_from.conditions
    data.classes_from.rewards data.beta data.reward_clip data.condition_dropout data.sources data.sources.*.path
    data.sources.*.format data.sources.*.class data.sources.*.class_field data.sources.*.reward_field
    data.sources.*.subset data.sources.*.revision
    data.sources.*.fields data.sources.*.answer_classes data.ignore_fields
    data.sources.*.fields.messages data.sources.*.fields.role data.sources.*.fields.content data.sources.*.fields.roles
    data.sources.*.fields.prompt data.sources.*.fields.input data.sources.*.fields.answer data.sources.*.fields.history
    data.sources.*.fields.chosen data.sources.*.fields.rejected data.sources.*.fields.answers
    data.sources.*.fields.system data.sources.*.fields.id data.sources.*.fields.tools data.sources.*.fields.weight
    data.sources.*.fields.masked data.sources.*.fields.row_weight
    data.sources.*.split data.sources.*.think_tags data.part_weights data.part_weights.reasoning
    data.part_weights.answer data.part_weights.tool_calls data.validation_ratio data.validation_seed data.only_classes
    data.overlong data.bad_rows
    train.epochs train.pack_length_tokens train.packs_per_micro_batch train.gradient_dtype train.tokens_per_step
    train.loss_denominator train.plan train.max_steps train.log_every_steps train.max_nonfinite_steps
    train.hang_timeout_seconds
    train.push_to_hub train.hub_private optimizer.learning_rate optimizer.warmup_ratio optimizer.min_lr_ratio
    optimizer.weight_decay optimizer.betas optimizer.eps optimizer.grad_clip optimizer.states deepspeed.zero_stage
    deepspeed.offload_optimizer deepspeed.offload_parameters deepspeed.config validation.every_steps validation.prompts
    validation.benchmarks validation.benchmarks.*.answer_tokens validation.benchmarks.*.conditions
    validation.benchmarks.*.data validation.benchmarks.*.limit validation.benchmarks.*.suite
    validation.sample_tokens validation.questions validation.answer_pattern validation.answer_tokens
    checkpoint.save_every_steps checkpoint.keep_last adapter adapter.type adapter.rank adapter.alpha adapter.dropout
    adapter.targets adapter.rslora adapter.dora adapter.init
"""


def test_every_field_declares_what_it_is_for() -> None:
    """A field that was not made by `setting` raises here; a section that is not itself a field is walked through."""
    declared = [place for place, field in all_fields(Recipe) if not is_section(field.annotation) and flags_of(field)]
    assert len(declared) > 70
    assert {place[0] for place in declared} == set(Recipe.model_fields)


def test_a_field_that_declares_nothing_is_named() -> None:
    class Silent(Section):
        rank: int = Field(8, description="rank of the adapter")

    class WithSilent(Section):
        adapters: list[Silent] = setting(description="adapters", decides_steps=True, is_public=True)

    with pytest.raises(TypeError, match="rank of the adapter"):
        [flags_of(field) for _, field in all_fields(WithSilent)]
    with pytest.raises(TypeError, match="rank of the adapter"):
        chosen_values(WithSilent, {"adapters": [{"rank": 8}]}, lambda flags: flags.is_public)


def test_the_keys_that_resume_compares(make_recipe: RecipeFactory) -> None:
    """`data` is not among them: the fingerprint of what was prepared from it is compared. Of DeepSpeed's configuration
    there are all keys but those that change no number.
    """
    raw = {"wall_clock_breakdown": True, "zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 5}}
    recipe = load_recipe(make_recipe(model__config={"model_type": "mistral", "head_dim": 8}, deepspeed__config=raw))
    found = decisive_settings(recipe.model_dump(mode="json", by_alias=True))
    assert sorted(found) == sorted(DECISIVE.split())
    assert found["model.config"] == {"model_type": "mistral", "head_dim": 8}
    assert (found["seed"], found["optimizer.betas"]) == (1, [0.9, 0.95])


def test_all_of_data_decides_the_steps_except_its_folder() -> None:
    fields = {place: field for place, field in all_fields(Recipe) if place[0] == "data" and len(place) > 1}
    assert [place for place, field in fields.items() if not flags_of(field).decides_steps] == [("data", "prepared_dir")]


def test_the_keys_that_are_published(make_recipe: RecipeFactory) -> None:
    fields = {".".join(place): field for place, field in all_fields(Recipe) if not is_section(field.annotation)}
    assert sorted(name for name, field in fields.items() if flags_of(field).is_public) == sorted(PUBLIC.split())
    published = public_recipe(load_recipe(make_recipe()))
    assert sorted(keys_of(published)) == sorted(
        name
        for name in PUBLIC.split()
        if not name.startswith(
            ("data.classes_from.", "data.part_weights.", "data.sources.*.fields.", "validation.benchmarks.", "adapter")
        )
    )


def test_the_keys_of_an_adapter_that_resume_compares(make_recipe: RecipeFactory) -> None:
    """A run without an adapter has none of them, so that checkpoints from before they existed are the same."""
    with_adapter = load_recipe(make_recipe(adapter={"type": "lora", "rank": 4}))
    found = decisive_settings(with_adapter.model_dump(mode="json", by_alias=True))
    names = "type rank alpha dropout targets rslora dora init"
    keys = [key for key in found if key.startswith("adapter")]
    assert sorted(keys) == sorted(f"adapter.{name}" for name in names.split())
    assert found["adapter.rank"] == 4


def keys_of(values: dict[str, Any], place: tuple[str, ...] = ()) -> list[str]:
    """Dotted names of all values, with a star for entries."""
    found = set()
    for key, value in values.items():
        here = (*place, key)
        if place or key in ("name", "seed"):
            found.add(".".join(here))
        if not place and isinstance(value, dict):
            found |= set(keys_of(value, here))
        elif here == ("data", "sources"):
            found |= {name for entry in value for name in keys_of(entry, (*here, ANY))}
        elif here == ("data", "classes"):
            found |= {name for entry in value.values() for name in keys_of(entry, (*here, ANY))}
    return sorted(found)


class Inner(Section):
    secret: str | None = setting(None, description="who", decides_steps=False, is_public=False)
    size: int = setting(3, description="how large", decides_steps=True, is_public=True)


class Outer(Section):
    one: Inner = Inner()
    maybe: Inner | None = setting(None, description="left out", decides_steps=True, is_public=True)
    many: list[Inner] = setting(description="several", decides_steps=True, is_public=True)
    named: dict[str, Inner] = setting(description="by name", decides_steps=False, is_public=True)


def test_flags_count_inside_lists_mappings_and_optional_sections() -> None:
    inner = {"secret": "x", "size": 4}
    values = {"one": inner, "maybe": inner, "many": [inner, inner], "named": {"a": inner}}
    part = {"size": 4}
    assert chosen_values(Outer, values, lambda flags: flags.is_public) == {
        "one": part,
        "maybe": part,
        "many": [part, part],
        "named": {"a": part},
    }
    assert chosen_values(Outer, values, lambda flags: flags.decides_steps).keys() == {"one", "maybe", "many"}
    assert chosen_values(Outer, {"many": []}, lambda flags: flags.is_public) == {
        "one": {"size": None},
        "maybe": None,
        "many": [],
        "named": None,
    }


def test_flags_are_not_in_the_json_schema() -> None:
    text = str(Recipe.model_json_schema(by_alias=True))
    assert "decides_steps" not in text
    assert "is_public" not in text


# ---- one rule for a field of several types ----


class Mixed(Section):
    size: Annotated[float | Literal["auto"], Rule("expected a number, or `auto`")] = setting(
        "auto", description="size", decides_steps=True, is_public=True
    )
    plain: float | Literal["auto"] = setting("auto", description="size", decides_steps=True, is_public=True)


def test_a_field_of_several_types_says_its_own_rule() -> None:
    """The control, without a rule, reports a problem for each type."""
    assert (Mixed(size=3.0).size, Mixed(size="auto").size) == (3.0, "auto")
    for key, num_problems in (("size", 1), ("plain", 2)):
        with pytest.raises(ValidationError) as caught:
            Mixed.model_validate({key: "large"})
        problems = caught.value.errors()
        assert len(problems) == num_problems
        if key == "size":
            assert (problems[0]["msg"], problems[0]["loc"]) == ("expected a number, or `auto`", ("size",))


def test_every_field_of_several_types_has_a_rule() -> None:
    several = {
        ".".join(place): any(isinstance(entry, Rule) for entry in field.metadata)
        for place, field in all_fields(Recipe)
        if num_types(field.annotation) > 1
    }
    assert several.keys() >= {"optimizer.learning_rate", "data.classes.*.baseline", "tracking.wandb"}
    assert all(several.values()), several


def num_types(annotation: Any) -> int:
    """How many types a field takes, beside none at all."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return 1
    return sum(part is not type(None) for part in get_args(annotation))
