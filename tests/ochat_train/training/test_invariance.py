"""A step has the same gradient however it is split, ordered, sharded or compiled, and weights mean what they say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.conversation import TokenizedConversation
from data_pipeline.plan.plan import TrainingPlan
from data_pipeline.prepared.dataset import PreparedSplit
from ochat_train.model.attention.register import REGISTERED_NAME, register_attention
from ochat_train.model.batch import PackedBatch, PackShape, joined, pack_batch
from ochat_train.model.build import build_model
from ochat_train.model.layers import layer_forward, set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.planning.steps import training_plan
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared, prepare_recipe
from tests.support.disturbed_runs import first_gradients
from tests.support.measured import Measured
from tests.support.reference import FakeSplit, as_float64, flat, random_conversations, reference_loss, relative_error
from tests.support.small_recipe import RecipeFactory
from tests.support.tiny_model import VOCAB, gradients, tiny_model

PACK_LENGTH = 128
SHAPE = PackShape(pack_length=PACK_LENGTH, max_seqlen=PACK_LENGTH, max_sequences=7)


def step_gradient(causal_lm: Any, split: Any, packs: list[list[int]], denominator: float) -> torch.Tensor:
    """Gradient of sum(w * nll) / denominator over packs of rows, one process."""
    model = PackedCausalLM(causal_lm, num_classes=2)
    causal_lm.zero_grad()
    for rows in packs:
        batch = pack_batch(split, np.array(rows, dtype=np.int64), SHAPE)
        (model(batch).weighted_nll * (1 / denominator)).backward()
    return gradients(causal_lm)


def reweighted(row: TokenizedConversation, factor: float) -> TokenizedConversation:
    return TokenizedConversation(input_ids=row.input_ids, loss_weights=row.loss_weights * np.float32(factor))


# ---- ranks, micro-batches, order, ZeRO stage ----


def test_any_split_of_a_step_gives_the_same_gradient(
    tmp_path: Path, make_recipe: RecipeFactory, measured: Measured
) -> None:
    """Eight packs as 1 x 8 and 2 x 4, in two orders, ZeRO 0 to 3, against float64 of each conversation alone."""
    path = make_recipe(train__tokens_per_step=2048, model__max_length_tokens=256)
    recipe = load_recipe(path)
    assert recipe.train.packs_per_step == 8
    prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
    found = {
        f"{num_ranks} ranks {case}": flat(gradient)
        for num_ranks, cases in ((1, ["0"]), (2, ["0", "1", "2", "3", "2:reversed"]))
        for case, gradient in first_gradients(path, tmp_path, cases, num_ranks=num_ranks).items()
    }
    manifest, split = check_prepared(recipe), PreparedSplit(Path(recipe.data.prepared_dir), "train")
    model = build_model(recipe.model, manifest, device=torch.device("cpu"), seed=recipe.seed).model
    plan = training_plan(recipe, split)
    truth = float64_gradient(model.causal_lm, split, plan, per_pack=False)
    assert len(found) == 6
    for case, gradient in found.items():
        measured(
            "gradient of a step, ranks x micro-batches x order x ZeRO 0 to 3, against float64",
            relative_error(gradient, truth),
        )
        assert relative_error(gradient, truth) < 5e-6, case
        spread = relative_error(gradient, found["1 ranks 0"])
        measured("the same, against one rank without ZeRO", spread)
        assert spread < 1e-6, case
        residual = float((gradient - truth).mean() / truth.abs().mean())
        measured("the same, mean residual (one-sided drift)", abs(residual))
        assert abs(residual) < 1e-6, case
    fault = relative_error(float64_gradient(model.causal_lm, split, plan, per_pack=True), truth)
    measured("control: each micro-batch divided by its own weights", fault)
    assert fault > 1e-2


def float64_gradient(causal_lm: Any, split: PreparedSplit, plan: TrainingPlan, *, per_pack: bool) -> torch.Tensor:
    """Gradient of the first step, each conversation alone. per_pack: the fault of a mean taken per micro-batch."""
    truth = as_float64(causal_lm)
    epoch = plan.epoch(0)
    packs = [[split[int(row)] for row in epoch.rows(int(pack))] for pack in epoch.step_packs(0)]
    for rows in packs:
        own = sum(float(row.loss_weights.sum(dtype=np.float64)) for row in rows) * len(packs)
        (reference_loss(truth, rows) / (own if per_pack else plan.denominator(0, "epoch"))).backward()
    return flat({name: parameter.grad for name, parameter in truth.named_parameters()})


# ---- weights ----


def test_doubling_all_weights_changes_nothing() -> None:
    """Bit for bit, because a factor of two is exact in floating point; the control doubles one class only."""
    rows = random_conversations(np.random.default_rng(0), [30, 40, 25, 60], vocab_size=VOCAB)
    twice = [reweighted(row, 2.0) for row in rows]
    one_class = [reweighted(row, 1.0 + number % 2) for number, row in enumerate(rows)]
    for kind in ("epoch", "step"):
        found = []
        for weighted in (rows, twice, one_class):
            split: Any = FakeSplit(weighted, [0, 1, 0, 1])
            plan = TrainingPlan(split, capacity=PACK_LENGTH, packs_per_step=1, seed=0, epochs=1, max_steps=None)
            packs = [plan.epoch(0).rows(int(pack)).tolist() for pack in plan.epoch(0).step_packs(0)]
            found.append(step_gradient(tiny_model(), split, packs, plan.denominator(0, kind)))
        assert torch.equal(found[0], found[1]), kind
        assert relative_error(found[2], found[0]) > 1e-2, kind


def test_a_class_with_weight_zero_equals_the_class_left_out(measured: Measured) -> None:
    rows = random_conversations(np.random.default_rng(1), [30, 40, 25, 20], vocab_size=VOCAB)
    silent = [reweighted(row, 1.0 - number % 2) for number, row in enumerate(rows)]
    whole = step_gradient(tiny_model(), FakeSplit(silent, [0, 1, 0, 1]), [[0, 1, 2, 3]], 7.0)
    without = step_gradient(tiny_model(), FakeSplit(silent, [0, 1, 0, 1]), [[0, 2]], 7.0)
    measured("a class with weight 0 against the class left out", relative_error(whole, without))
    assert relative_error(whole, without) < 1e-6
    with_weight = step_gradient(tiny_model(), FakeSplit(rows, [0, 1, 0, 1]), [[0, 1, 2, 3]], 7.0)
    assert relative_error(with_weight, without) > 1e-2


# ---- conversations of one pack ----


def test_a_change_in_one_conversation_leaves_the_others_loss_and_gradient_bit_equal() -> None:
    """The changed one has weight 0, so that the whole gradient is the other's; the control takes the border away."""
    rng = np.random.default_rng(2)
    first, second, other = random_conversations(rng, [40, 50, 40], vocab_size=VOCAB)
    for whole_pack_is_one_sequence in (False, True):
        found = []
        for changed in (first, other):
            split = FakeSplit([reweighted(changed, 0.0), second], [0, 1])
            batch = pack_batch(split, np.array([0, 1]), SHAPE)
            if whole_pack_is_one_sequence:
                batch.cu_seqlens_S1[1:-1] = PACK_LENGTH
            causal_lm = tiny_model()
            sums = PackedCausalLM(causal_lm, num_classes=2)(batch)
            sums.weighted_nll.backward()
            found.append((sums.per_class[1], gradients(causal_lm)))
        equal = [torch.equal(*pair) for pair in zip(*found, strict=True)]
        assert equal == [not whole_pack_is_one_sequence] * 2


# ---- compiled ----


def dense_attention(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **rest: Any) -> Any:
    """Attention with the borders as a mask, which the compiler can follow on a CPU."""
    tokens = torch.arange(query.shape[2])
    conversation = torch.searchsorted(rest["cu_seqlens"][1:].contiguous(), tokens, right=True)
    visible = (conversation[:, None] == conversation[None, :]).tril()[None, None]
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2), None


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [("aot_eager", ["full", "matmuls", "none", "none"]), ("inductor", ["matmuls"] * 4)],
)
def test_compiled_layers_give_the_same_gradient(
    backend: str, kinds: list[str], monkeypatch: pytest.MonkeyPatch, measured: Measured
) -> None:
    """Layers that recompute nothing, all but products and attention, or everything; each kind is traced once. Machine
    code, which takes long on a CPU, is made of one kind.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    layer_forward.cache_clear()
    transformers.AttentionInterface.register(REGISTERED_NAME, dense_attention)
    try:
        rows = random_conversations(np.random.default_rng(3), [60, 40], vocab_size=VOCAB)
        split = FakeSplit(rows, [0, 1])
        plain = step_gradient(tiny_model(num_hidden_layers=4), split, [[0, 1]], 7.0)
        causal_lm = tiny_model(num_hidden_layers=4)
        transformers.AttentionInterface.register(REGISTERED_NAME, dense_attention)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        set_layer_forward(causal_lm.model.layers, checkpointing=kinds, compiled=True)
        compiled = step_gradient(causal_lm, split, [[0, 1]], 7.0)
        num_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    finally:
        register_attention("sdpa")
        layer_forward.cache_clear()
    measured("layers compiled by torch.compile against eager", relative_error(compiled, plain))
    assert num_graphs == len(set(kinds))
    assert relative_error(compiled, plain) < 1e-6


class CountProducts(TorchDispatchMode):
    """Counts matrix products that run under it."""

    num = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


def test_checkpointing_recomputes_what_it_says() -> None:
    """The same gradient bit for bit; `matmuls` repeats no product, the control `full` those of a layer's forward
    pass.
    """
    rows = random_conversations(np.random.default_rng(3), [60, 40], vocab_size=VOCAB)
    split = FakeSplit(rows, [0, 1])
    gradient, products = {}, {}
    for kind in ("none", "matmuls", "full"):
        causal_lm = tiny_model()
        layers = causal_lm.model.layers
        set_layer_forward(layers, checkpointing=[kind] * len(layers), compiled=False)
        with CountProducts() as counted:
            gradient[kind] = step_gradient(causal_lm, split, [[0, 1]], 7.0)
        products[kind] = counted.num
    assert torch.equal(gradient["none"], gradient["matmuls"])
    assert torch.equal(gradient["none"], gradient["full"])
    assert products["matmuls"] == products["none"]
    assert products["full"] == products["none"] + 2 * 6  # two layers; the last of their 7 products is not needed again


def test_packs_of_a_micro_batch_can_be_joined() -> None:
    """Two packs as one micro-batch: the same loss and gradient; the control forgets where the second pack begins."""
    rows = random_conversations(np.random.default_rng(4), [60, 40, 100, 17], vocab_size=VOCAB)
    split = FakeSplit(rows, [0, 1, 0, 1])
    packs = [pack_batch(split, np.array(numbers, dtype=np.int64), SHAPE) for numbers in ([0, 1], [2, 3], [])]
    expected = step_gradient(tiny_model(), split, [[0, 1], [2, 3], []], 7.0)
    batch = joined(packs)
    assert batch.cu_seqlens_S1.diff().sum() == 3 * PACK_LENGTH
    assert batch.num_tokens == 217
    for changed, bound in (
        ({}, 1e-6),
        ({"cu_seqlens_S1": torch.tensor([0, 3 * PACK_LENGTH], dtype=torch.int32)}, None),
    ):
        causal_lm = tiny_model()
        model = PackedCausalLM(causal_lm, num_classes=2)
        (model(PackedBatch(**{**vars(batch), **changed})).weighted_nll / 7.0).backward()
        error = relative_error(gradients(causal_lm), expected)
        assert error < bound if bound else error > 1e-3
