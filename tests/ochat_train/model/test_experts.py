"""Mixtures of experts: the router loss against transformers' own and a float64 formula, and tokens per expert."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.attention.choose import choose_attention
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.needs import AttentionNeeds
from ochat_train.model.attention.register import register_attention
from ochat_train.model.batch import PackShape, joined, pack_batch
from ochat_train.model.build import compile_obstacle, is_compiled
from ochat_train.model.experts import ExpertCounter, RouterLoss, expert_layers, router_coefficient, router_loss_of
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.recipe.sections.model import ModelSettings
from tests.support.hybrids import hybrid_config
from tests.support.measured import Measured
from tests.support.reference import FakeSplit, random_conversations, relative_error
from tests.support.tiny_model import VOCAB, tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
_SMALL: dict[str, Any] = {"num_experts_per_tok": 2, "num_hidden_layers": 2, "head_dim": 8, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "norm_topk_prob": True},
    "olmoe": {"num_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 64},
    "phimoe": {"num_local_experts": 4},
    "minimax_m2": {"num_local_experts": 4, "moe_intermediate_size": 16},
}
SHAPE = PackShape(pack_length=96, max_seqlen=96, max_sequences=7)
ROWS = random_conversations(np.random.default_rng(0), [40, 17, 30, 60], vocab_size=VOCAB)
SPLIT = FakeSplit(ROWS, [0] * len(ROWS))
PACKS = [pack_batch(SPLIT, np.array(rows, dtype=np.int64), SHAPE) for rows in ([0, 1, 2], [3], [])]


def settings(**changes: Any) -> ModelSettings:
    return ModelSettings.model_validate({"path": "x", "template": "openchat_3.5", "max_length_tokens": 64, **changes})


def mixture(model_type: str, **changes: Any) -> Any:
    """A mixture of experts whose routers are not the same for all tokens."""
    model = tiny_model(**{"model_type": model_type, **_SMALL, **FAMILIES[model_type], **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(8 if "gate.weight" in name or "router" in name else 1)
    return model


def packed_router_loss(
    causal_lm: Any, batches: list[Any], coefficient: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """coefficient * sum of tokens * loss over packs, and its gradient, without the main loss."""
    causal_lm.zero_grad()
    router_loss = router_loss_of(causal_lm, settings(router_aux_loss=coefficient))
    model = PackedCausalLM(causal_lm, num_classes=1, router_loss=router_loss)
    total = torch.stack([model(batch).router_loss for batch in batches]).sum()
    total.backward()
    return total.detach(), gradients(causal_lm)


def gradients(causal_lm: Any) -> torch.Tensor:
    """Of all parameters, 0 for those that the router loss does not reach."""
    every = causal_lm.parameters()
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in every])


def formula(logits_of_layers: list[torch.Tensor], top_k: int) -> torch.Tensor:
    """E * sum_e f_e * P_e in float64, written from the paper: f_e over all layers, P_e of the softmax."""
    logits = torch.cat(logits_of_layers).double()
    num_experts = logits.shape[1]
    probabilities = torch.exp(logits - logits.logsumexp(dim=1, keepdim=True))
    chosen = torch.zeros_like(logits)
    best = logits.argsort(dim=1, descending=True)[:, :top_k]
    chosen[torch.arange(len(logits))[:, None], best] = 1
    return num_experts * sum(chosen[:, e].mean() * probabilities[:, e].mean() for e in range(num_experts))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_conversation_has_the_loss_of_transformers(model_type: str, measured: Measured) -> None:
    """A pack with one conversation and padding, against the family's own `aux_loss` of the conversation alone."""
    causal_lm = mixture(model_type)
    twin = copy.deepcopy(causal_lm)
    twin.config._attn_implementation = "eager"
    ids = torch.from_numpy(ROWS[3].input_ids.astype(np.int64))[None]
    expected = twin(input_ids=ids, output_router_logits=True).aux_loss * 60
    if not isinstance(expected, torch.Tensor):  # Granite in transformers 5.17, which hands out no router logits
        with pytest.raises(UserError, match="does not hand out the router logits of every token"):
            packed_router_loss(causal_lm, PACKS[1:2])
        return
    expected.backward()
    found, gradient = packed_router_loss(causal_lm, PACKS[1:2])
    measured("router loss of a pack against transformers' own of the conversation", relative_error(found, expected))
    assert relative_error(found, expected) < 1e-6
    assert relative_error(gradient, gradients(twin)) < 1e-5
    with_padding = pack_batch(SPLIT, np.array([3]), SHAPE)
    object.__setattr__(with_padding, "num_tokens", 96)
    assert relative_error(packed_router_loss(causal_lm, [with_padding])[0] * 60 / 96, expected) > 1e-4  # the control


@pytest.mark.parametrize("checkpointing", ["none", "matmuls", "full"])
def test_packs_have_the_loss_of_the_formula(checkpointing: str, measured: Measured) -> None:
    """Several conversations in a pack are one batch; how many packs are in a micro-batch does not matter."""
    causal_lm = mixture("mixtral")
    reference = copy.deepcopy(causal_lm)
    recorded: list[torch.Tensor] = []
    for layer in reference.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, args, output: recorded.append(output[0]))
    expected: Any = 0.0
    for batch in PACKS[:2]:
        recorded.clear()
        PackedCausalLM(reference, num_classes=1)(batch)
        expected = expected + batch.num_tokens * formula([logits[: batch.num_tokens] for logits in recorded], top_k=2)
    expected.backward()
    set_layer_forward(causal_lm.model.layers, checkpointing=[checkpointing] * 2, compiled=False)
    for batches in (PACKS, [joined(PACKS)], [joined(PACKS[::-1])]):
        loss, gradient = packed_router_loss(causal_lm, batches, coefficient=0.5)
        measured("router loss of packs against its formula in float64", relative_error(loss, 0.5 * expected))
        assert relative_error(loss, 0.5 * expected) < 1e-6
        assert relative_error(gradient, 0.5 * gradients(reference)) < 1e-5
    assert relative_error(packed_router_loss(causal_lm, PACKS[:1])[0], expected) > 1e-2  # the control: a pack left out


def test_a_pack_of_padding_alone_has_no_router_loss() -> None:
    loss, gradient = packed_router_loss(mixture("mixtral"), [PACKS[2], PACKS[1]])
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_the_coefficient_is_the_recipes_or_else_the_configs() -> None:
    """As in `transformers`, a config asks for the loss by `output_router_logits`."""
    on = {"output_router_logits": True, "router_aux_loss_coef": 0.02}
    for model_type, changes, wanted, expected in (
        ("mixtral", {}, None, 0.0),
        ("mixtral", on, None, 0.02),
        ("mixtral", on, 0.0, 0.0),
        ("mixtral", {}, 0.3, 0.3),
        ("mistral", {}, None, 0.0),
        ("jetmoe", {"output_router_logits": True, "aux_loss_coef": 0.07}, None, 0.07),
    ):
        config = transformers.AutoConfig.for_model(model_type, **changes)
        assert router_coefficient(config, settings(router_aux_loss=wanted)) == expected


def test_validation_and_recipes_without_it_have_no_router_loss() -> None:
    causal_lm = mixture("mixtral", output_router_logits=True, router_aux_loss_coef=0.02)
    assert router_loss_of(causal_lm, settings(router_aux_loss=0.0)) is None
    model = PackedCausalLM(causal_lm, num_classes=1)
    assert model(PACKS[0]).router_loss is None
    assert not getattr(causal_lm.model, "_output_capturing_hooks_installed", False)
    model = PackedCausalLM(causal_lm, num_classes=1, router_loss=router_loss_of(causal_lm, settings()))
    assert type(model(PACKS[0], score=True)).__name__ == "TokenScores"
    assert model(PACKS[0]).router_loss is not None


def test_families_without_a_router_loss_are_refused() -> None:
    with pytest.raises(UserError, match="no load-balancing loss for mistral") as error:
        router_loss_of(tiny_model(), settings(router_aux_loss=0.1))
    assert error.value.place == "model.router_aux_loss"


def test_a_model_that_hands_out_too_few_logits_is_refused() -> None:
    causal_lm = mixture("mixtral")
    loss = RouterLoss(function=torch.add, num_experts=4, top_k=2, coefficient=1.0)
    model = PackedCausalLM(causal_lm, num_classes=1, router_loss=loss)
    model._base_outputs = lambda *_, **__: SimpleNamespace(  # type: ignore[method-assign, assignment]
        last_hidden_state=torch.zeros(1, 96, 32), router_logits=(torch.zeros(95, 4),)
    )
    with pytest.raises(UserError, match="router logits of every token"):
        model(PACKS[0])


@pytest.mark.parametrize("case", ["router loss", "mixer", "dense"])
def test_layers_that_cannot_be_compiled(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERNELS["sdpa"].__class__, "compilable", True, raising=False)
    if case == "mixer":
        config = transformers.AutoConfig.for_model(**hybrid_config("lfm2", vocab_size=VOCAB))
        attention = register_attention("sdpa")
        causal_lm = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    else:
        causal_lm = mixture("mixtral")
    coefficient = 0.1 if case == "router loss" else None
    wanted, free = (settings(compile=value, router_aux_loss=coefficient) for value in (True, None))
    kernel = next(name for name, found in KERNELS.items() if found.compilable)
    assert (compile_obstacle(causal_lm, free, None) is None) == (case == "dense")
    assert is_compiled(free, kernel=kernel, device=GPU, causal_lm=causal_lm) == (case == "dense")
    if case == "dense":
        assert is_compiled(wanted, kernel=kernel, device=GPU, causal_lm=causal_lm)
        return
    with pytest.raises(UserError, match="true cannot be used"):
        is_compiled(wanted, kernel=kernel, device=GPU, causal_lm=causal_lm)


@pytest.mark.parametrize(
    ("model_type", "checkpointing"),
    [("mixtral", "full"), ("mixtral", "none"), ("gpt_oss", "none"), ("granitemoe", "none"), ("deepseek_v3", "none")],
)
def test_counts_are_of_what_experts_are_given(model_type: str, checkpointing: str) -> None:
    """Against what each layer's experts are called with, without padding, and once although layers are recomputed."""
    if model_type == "deepseek_v3":
        causal_lm = tiny_model(
            model_type="deepseek_v3",
            **{**_SMALL, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1},
            **{"moe_intermediate_size": 16, "first_k_dense_replace": 0, "kv_lora_rank": 16, "q_lora_rank": None},
            **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
        )
    else:
        causal_lm = mixture(model_type)
    model = PackedCausalLM(causal_lm, num_classes=1)
    set_layer_forward(causal_lm.model.layers, checkpointing=[checkpointing] * 2, compiled=False)
    model.count_experts()
    assert model.expert_counter is not None
    calls: list[torch.Tensor] = []
    for layer in model.expert_counter.layers:
        layer.register_forward_pre_hook(lambda module, args: calls.append(args[1]))
    sums = model(joined([PACKS[1], PACKS[0]]))
    expected = torch.stack(
        [
            torch.cat((call[:60], call[96 : 96 + 87])).flatten().bincount(minlength=n)
            for call, n in ((call, sums.expert_counts.shape[1]) for call in calls)
        ]
    )
    sums.weighted_nll.backward()
    assert len(calls) == (2 if checkpointing == "none" else 4)
    assert torch.equal(sums.expert_counts, expected)
    assert sums.expert_counts.sum(dim=1).tolist() == [147 * 2] * 2


def test_models_without_experts_count_nothing() -> None:
    model = PackedCausalLM(tiny_model(), num_classes=1)
    model.count_experts()
    assert model.expert_counter is None
    assert model(PACKS[0]).expert_counts is None
    assert ExpertCounter.of(tiny_model()) is None


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_grouped_products_have_the_gradients_of_a_loop_over_experts(model_type: str, measured: Measured) -> None:
    """transformers' implementations of experts, float32; the control leaves an expert out."""
    found = {}
    for implementation in ("eager", "grouped_mm", "batched_mm", "control"):
        causal_lm = mixture(model_type)
        causal_lm.set_experts_implementation(implementation.replace("control", "eager"))
        if implementation == "control":
            with torch.no_grad():
                next(p for name, p in causal_lm.named_parameters() if name.endswith("experts.down_proj"))[0] = 0
        PackedCausalLM(causal_lm, num_classes=1)(PACKS[0]).weighted_nll.backward()
        found[implementation] = gradients(causal_lm)
    for implementation in ("grouped_mm", "batched_mm"):
        error = relative_error(found[implementation], found["eager"])
        measured("gradients of grouped products of experts against a loop over them, float32", error)
        assert error < 1e-5
    assert relative_error(found["control"], found["eager"]) > 1e-3


# ---- on a GPU ----

_GPU_SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 128, "head_dim": 64}


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "granitemoe"])
@pytest.mark.parametrize("checkpointing", ["none", "matmuls", "full"])
def test_gpu_counts_and_compiled_layers(model_type: str, checkpointing: str, measured: Measured) -> None:
    """bfloat16: counts of layers that are not compiled are those of the routers; compiled ones count nothing, and give
    the same gradients.
    """
    counts_and_compiled_layers(model_type, checkpointing, GPU, measured)


def counts_and_compiled_layers(model_type: str, checkpointing: str, device: torch.device, measured: Measured) -> None:
    """Every token goes to all experts for the gradients: compiled code rounds differently and may choose others."""
    needs = AttentionNeeds(head_dims=frozenset({(64, 64)}), is_grouped=True)
    kernel = choose_attention("auto", device=device, dtype=torch.bfloat16, needs=needs)
    batch = joined([PACKS[1], PACKS[0]]).to(device)

    def model(top_k: int, *, compiled: bool) -> PackedCausalLM:
        causal_lm = mixture(model_type, **_GPU_SIZES, num_experts_per_tok=top_k).to(device, torch.bfloat16)
        causal_lm.set_attn_implementation(register_attention(kernel))
        set_layer_forward(causal_lm.model.layers, checkpointing=[checkpointing] * 2, compiled=compiled)
        found = PackedCausalLM(causal_lm, num_classes=1)
        if not compiled:
            found.count_experts()
        return found

    counting = model(2, compiled=False)
    chosen: list[torch.Tensor] = []
    for layer in expert_layers(counting.causal_lm):
        layer.register_forward_pre_hook(lambda module, args: chosen.append(args[1]))
    counts_LE = counting(batch).expert_counts
    real = [torch.cat((choices[:60], choices[96 : 96 + 87])).flatten() for choices in chosen]
    assert counts_LE.tolist() == [choices.bincount(minlength=4).tolist() for choices in real]
    assert counts_LE.sum(dim=1).tolist() == [147 * 2] * 2
    assert len({tuple(row) for row in counts_LE.tolist()}) == 2  # the control: layers differ
    if not KERNELS[kernel].compilable:
        return
    found = []
    for compiled in (False, True):
        mixed = model(4, compiled=compiled)
        sums = mixed(batch)
        assert (sums.expert_counts is None) == compiled
        sums.weighted_nll.backward()
        found.append(gradients(mixed.causal_lm))
    error = relative_error(found[1], found[0])
    measured("gradients of compiled mixtures of experts against layers that are not, bfloat16", error)
    assert error < 3e-2
