"""Gradients of everything that an adapter trains against plain float64, each conversation alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.checkpoint import CheckpointPolicy

from data_pipeline.errors import UserError
from ochat_train.adapter.build import add_adapter
from ochat_train.adapter.folder import adapter_tensors, peft_name
from ochat_train.model.attention.register import REGISTERED_NAME, register_attention
from ochat_train.model.batch import PackShape, pack_batch
from ochat_train.model.build import compile_obstacle
from ochat_train.model.layers import _policy, layer_forward, set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.structure import decoder_layers
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.training.adapter import ReachedTensors
from tests.ochat_train.training.test_invariance import dense_attention
from tests.support.adapters import randomize, reference_gradients
from tests.support.measured import Measured
from tests.support.reference import FakeSplit, flat, random_conversations, relative_error
from tests.support.tiny_model import VOCAB, tiny_model

SHAPE = PackShape(pack_length=128, max_seqlen=128, max_sequences=7)
NEW_TOKENS = [5, 290]
ROWS = random_conversations(np.random.default_rng(0), [40, 50, 30], vocab_size=VOCAB)
for _row in ROWS:  # the new tokens are read and written
    _row.input_ids[[3, 8, -1]] = NEW_TOKENS[1]
    _row.input_ids[[6, 20]] = NEW_TOKENS[0]
    _row.loss_weights[[8, 20, -1]] = 1.0
BATCH = pack_batch(FakeSplit(ROWS, [0, 1, 0]), np.array([0, 1, 2]), SHAPE)


def gradients_of(
    settings: AdapterSettings,
    *,
    token_ids: Sequence[int] = NEW_TOKENS,
    checkpointing: str | None = None,
    batch: Any = BATCH,
    **changes: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients by PEFT's names: of a pack, and of the reference."""
    causal_lm = tiny_model(**changes)
    base = copy.deepcopy(causal_lm)
    add_adapter(causal_lm, settings, new_token_ids=token_ids)
    randomize(causal_lm)
    if checkpointing is not None:
        layers = decoder_layers(causal_lm)
        set_layer_forward(layers, checkpointing=[checkpointing] * len(layers), compiled=False, rank=settings.rank)
    PackedCausalLM(causal_lm, num_classes=2)(batch).weighted_nll.backward()
    trained = {name: parameter for name, parameter in causal_lm.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is None for name, parameter in causal_lm.named_parameters() if name not in trained)
    found = {peft_name(name): parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    assert len(found) == len(trained)
    tensors = adapter_tensors(causal_lm)
    return found, reference_gradients(base, tensors, ROWS, scale=settings.scale, token_ids=token_ids)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"rank": 4}, {}),
        ({"rank": 4}, {"tie_word_embeddings": True}),
        ({"rank": 8, "rslora": True, "alpha": 3.0, "targets": ["q_proj", "down_proj"]}, {}),
        (
            {"rank": 4},
            {"model_type": "gemma3_text", "tie_word_embeddings": True, "sliding_window": 200},
        ),  # its embedding scales what it returns
    ],
)
def test_gradients_are_those_of_float64(settings: dict[str, Any], changes: dict[str, Any], measured: Measured) -> None:
    adapter = AdapterSettings(type="lora", **settings)
    found, truth = gradients_of(adapter, **changes)
    assert found.keys() == truth.keys()
    for name, gradient in found.items():
        measured("gradient of an adapter's tensor against float64", relative_error(gradient, truth[name]))
        assert relative_error(gradient, truth[name]) < 5e-6, name


def test_a_wrong_scale_or_a_missing_border_is_seen(measured: Measured) -> None:
    """The controls of the test above."""
    adapter = AdapterSettings(type="lora", rank=4)
    found, _ = gradients_of(adapter)
    _, other = gradients_of(AdapterSettings(type="lora", rank=4, alpha=36.0))
    measured("control: a scale of 36 / 4 instead of 32 / 4", relative_error(flat(found), flat(other)))
    assert relative_error(flat(found), flat(other)) > 1e-2
    without_borders = pack_batch(FakeSplit(ROWS, [0, 1, 0]), np.array([0, 1, 2]), SHAPE)
    without_borders.cu_seqlens_S1[1:-1] = SHAPE.pack_length
    found, truth = gradients_of(adapter, batch=without_borders)
    measured("control: an adapter on packs without borders", relative_error(flat(found), flat(truth)))
    assert relative_error(flat(found), flat(truth)) > 1e-2


@pytest.mark.parametrize("kind", ["none", "matmuls", "full"])
def test_recomputed_layers_have_the_same_gradients(kind: str) -> None:
    """The first layer reads a frozen embedding: without new tokens nothing before it has a gradient."""
    found, truth = gradients_of(AdapterSettings(type="lora", rank=4), token_ids=[], checkpointing=kind)
    assert any(".layers.0." in name for name in found)
    for name, gradient in found.items():
        assert relative_error(gradient, truth[name]) < 5e-6, name


@pytest.mark.parametrize(
    ("rank", "width", "expected"),
    [
        (4, 4, CheckpointPolicy.PREFER_RECOMPUTE),
        (4, 32, CheckpointPolicy.MUST_SAVE),
        (None, 4, CheckpointPolicy.MUST_SAVE),
    ],
)
def test_products_with_b_are_not_kept(rank: int | None, width: int, expected: CheckpointPolicy) -> None:
    """They are as wide as the products of the base: keeping both would double what `matmuls` keeps."""
    assert _policy(rank, torch.ops.aten.mm.default, torch.empty(8, width), torch.empty(width, 32)) == expected


def test_recomputed_layers_draw_the_same_dropout() -> None:
    """Whatever is recomputed, the backward pass has the masks of the forward pass. The control draws others."""
    adapter = AdapterSettings(type="lora", rank=4, dropout=0.5)
    found = []
    for kind, seed in (("none", 3), ("matmuls", 3), ("full", 3), ("none", 4)):
        causal_lm = tiny_model()
        add_adapter(causal_lm, adapter)
        randomize(causal_lm)
        set_layer_forward(decoder_layers(causal_lm), checkpointing=[kind] * 2, compiled=False)
        torch.manual_seed(seed)
        PackedCausalLM(causal_lm, num_classes=2)(BATCH).weighted_nll.backward()
        found.append(flat({n: p.grad for n, p in causal_lm.named_parameters() if p.grad is not None}))
    assert relative_error(found[1], found[0]) < 1e-6
    assert relative_error(found[2], found[0]) < 1e-6
    assert relative_error(found[3], found[0]) > 1e-2


def test_compiled_layers_with_an_adapter_are_traced_once(monkeypatch: pytest.MonkeyPatch, measured: Measured) -> None:
    """Without a break, and have the same gradients. Traced only: making machine code of it takes long on a CPU."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    layer_forward.cache_clear()
    transformers.AttentionInterface.register(REGISTERED_NAME, dense_attention)
    try:
        found = []
        for compiled in (False, True):
            causal_lm = tiny_model(num_hidden_layers=4)
            transformers.AttentionInterface.register(REGISTERED_NAME, dense_attention)
            add_adapter(causal_lm, AdapterSettings(type="lora", rank=4), new_token_ids=NEW_TOKENS)
            randomize(causal_lm)
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            kinds = ["full", "matmuls", "none", "none"]
            set_layer_forward(decoder_layers(causal_lm), checkpointing=kinds, compiled=compiled, rank=4)
            PackedCausalLM(causal_lm, num_classes=2)(BATCH).weighted_nll.backward()
            found.append(flat({n: p.grad for n, p in causal_lm.named_parameters() if p.grad is not None}))
        num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    finally:
        register_attention("sdpa")
        layer_forward.cache_clear()
    measured("compiled layers with an adapter against eager", relative_error(found[1], found[0]))
    assert num_graphs == 3
    assert relative_error(found[1], found[0]) < 1e-6


@pytest.mark.parametrize(("key", "named"), [("dropout", "adapter.dropout"), ("dora", "adapter.dora")])
def test_dropout_and_dora_are_not_compiled(key: str, named: str) -> None:
    causal_lm = tiny_model()
    settings = ModelSettings(path="base", template="chatml", max_length_tokens=8)
    assert compile_obstacle(causal_lm, settings, AdapterSettings(type="lora", rank=4)) is None
    value: dict[str, Any] = {key: 0.1 if key == "dropout" else True}
    assert named in str(compile_obstacle(causal_lm, settings, AdapterSettings(type="lora", rank=4, **value)))


def test_a_module_that_the_base_does_not_call_is_named() -> None:
    """As in bases whose kernels read a module's weight: here the first `up_proj` runs without its adapter."""
    for bypassed in (False, True):
        causal_lm = tiny_model()
        add_adapter(causal_lm, AdapterSettings(type="lora", rank=4), new_token_ids=NEW_TOKENS)
        if bypassed:
            module = causal_lm.model.layers[0].mlp.up_proj
            module.forward = module.base_layer.forward
        model = PackedCausalLM(causal_lm, num_classes=2)
        reached = ReachedTensors(model)
        model(BATCH).weighted_nll.backward()
        if not bypassed:
            reached.require_all()
            continue
        with pytest.raises(UserError, match=r"1 of the modules.*: model\.layers\.0\.mlp\.up_proj"):
            reached.require_all()
