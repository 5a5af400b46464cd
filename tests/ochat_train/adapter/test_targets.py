"""Where an adapter is put, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.adapter import installed
from ochat_train.adapter.build import add_adapter
from ochat_train.adapter.folder import peft_name
from ochat_train.adapter.targets import target_modules
from ochat_train.checkpoint.basis import AdapterBasis, RunBasis
from ochat_train.checkpoint.resume import EarlierRun, decide
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.sections.adapter import AdapterSettings
from tests.ochat_train.checkpoint.test_resume import manifest_of
from tests.support.small_recipe import RecipeFactory
from tests.support.tiny_model import tiny_model

BASIS = AdapterBasis(base_sha256="a" * 64, modules=("q_proj",), token_ids=(5,))


def settings(**changes: Any) -> AdapterSettings:
    return AdapterSettings(**{"type": "lora", "rank": 4, **changes})


def test_all_linear_is_every_linear_module_of_the_layers_and_not_the_head() -> None:
    found = target_modules(tiny_model(), settings())
    assert len(found) == 14
    assert {name.rpartition(".")[2] for name in found} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_names_are_ends_of_names() -> None:
    found = target_modules(tiny_model(), settings(targets=["self_attn.q_proj", "layers.1.mlp.up_proj"]))
    assert found == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ["q_prj"]}, "q_proj"),
        ({"targets": ["proj"]}, "is called `proj`"),  # the end of a name, but not after a dot
        ({"targets": ["lm_head"]}, "no linear module"),
        ({"rank": 17}, "k_proj has on its smaller side (16)"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(changes: dict[str, Any], said: str) -> None:
    causal_lm = tiny_model()
    with pytest.raises(UserError) as refused:
        add_adapter(causal_lm, settings(**changes))
    assert said in str(refused.value)
    assert all(parameter.requires_grad for parameter in causal_lm.parameters())  # nothing was changed


def test_experts_in_one_tensor_have_to_be_left_out_by_name() -> None:
    mixture = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    with pytest.raises(UserError, match="leave out the experts"):
        target_modules(tiny_model(**mixture), settings())
    assert len(target_modules(tiny_model(**mixture), settings(targets=["q_proj", "v_proj"]))) == 4


@pytest.mark.parametrize("found", [None, "0.18.1"])
def test_a_missing_or_old_peft_is_named(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "installed_version", lambda name: found)
    with pytest.raises(UserError, match=r'pip install "peft>=0\.21"'):
        add_adapter(tiny_model(), settings())


def test_a_tensor_that_is_not_of_an_adapter_has_no_name() -> None:
    with pytest.raises(ValueError, match="not a tensor of an adapter"):
        peft_name("model.layers.0.self_attn.q_proj.base_layer.weight")


# ---- resuming ----


@pytest.fixture
def recipe(make_recipe: RecipeFactory) -> Recipe:
    return load_recipe(make_recipe(adapter={"type": "lora", "rank": 4}))


def decided(earlier_recipe: Recipe, recipe: Recipe, now: AdapterBasis | None, *, accept: bool = True) -> Any:
    """How a run starts after a checkpoint of another recipe, with changes accepted."""
    manifest = manifest_of(earlier_recipe, adapter=BASIS if earlier_recipe.adapter is not None else None)
    earlier: Any = EarlierRun.__new__(EarlierRun)
    for field in dataclasses.fields(EarlierRun):
        object.__setattr__(earlier, field.name, ())
    object.__setattr__(earlier, "intact", ("step-00000004", manifest))
    basis = RunBasis(adapter=now)
    return decide(earlier, "auto", num_ranks=2, recipe=recipe, data_fingerprint="a", accept_changes=accept, basis=basis)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_sha256": "b" * 64}, "weights of the base"),
        ({"modules": ("q_proj", "v_proj")}, "modules that have an adapter"),
        ({"token_ids": ()}, "trained rows"),
    ],
)
def test_an_adapter_of_another_base_is_never_resumed(changes: dict[str, Any], said: str, recipe: Recipe) -> None:
    assert decided(recipe, recipe, BASIS).checkpoint is not None
    with pytest.raises(UserError, match=said):
        decided(recipe, recipe, dataclasses.replace(BASIS, **changes))


@pytest.mark.parametrize("key", ["rank", "alpha", "targets", "rslora", "dora", "type"])
def test_another_kind_of_adapter_is_never_resumed(key: str, recipe: Recipe, make_recipe: RecipeFactory) -> None:
    values = {"rank": 8, "alpha": 8.0, "targets": ["q_proj"], "rslora": True, "dora": True, "type": "qlora"}
    other = load_recipe(make_recipe(adapter={"type": "lora", "rank": 4, key: values[key]}))
    with pytest.raises(UserError, match=rf"adapter\.{key}"):
        decided(recipe, other, BASIS)


def test_another_dropout_can_be_accepted(recipe: Recipe, make_recipe: RecipeFactory) -> None:
    other = load_recipe(make_recipe(adapter={"type": "lora", "rank": 4, "dropout": 0.1}))
    assert decided(recipe, other, BASIS).checkpoint is not None
    with pytest.raises(UserError, match=r"adapter\.dropout \(0\.0 -> 0\.1\)"):
        decided(recipe, other, BASIS, accept=False)


def test_all_weights_and_an_adapter_are_not_mixed(recipe: Recipe, make_recipe: RecipeFactory) -> None:
    full = load_recipe(make_recipe())
    with pytest.raises(UserError, match=r"adapter\.type \(None -> lora\)"):
        decided(full, recipe, BASIS)
    with pytest.raises(UserError, match=r"adapter\.type \(lora -> None\)"):
        decided(recipe, full, None)
