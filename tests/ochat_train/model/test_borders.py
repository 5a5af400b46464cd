"""Layers that mix tokens without attention keep the conversations of a pack apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ochat_train.model import borders
from ochat_train.model.attention.choose import choose_attention
from ochat_train.model.attention.needs import AttentionNeeds
from ochat_train.model.attention.register import register_attention
from ochat_train.model.batch import PackedBatch, PackShape, joined, pack_batch
from ochat_train.model.borders import Borders, border_keywords, keep_apart, sequence_mixers, trial
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from tests.support.hybrids import GPU_HYBRIDS, HYBRIDS, gpu_hybrid_config, has_kernels, hybrid_config
from tests.support.measured import Measured
from tests.support.reference import FakeSplit, random_conversations, reference_loss, relative_error
from tests.support.tiny_model import VOCAB, tiny_model

CPU = torch.device("cpu")
SHAPE = PackShape(pack_length=96, max_seqlen=64, max_sequences=7)
ROWS = random_conversations(np.random.default_rng(0), [40, 17, 2, 60, 20], vocab_size=VOCAB, weights=(0.1, 1.0))
PACKS = [pack_batch(FakeSplit(ROWS, [0] * 5), np.array(rows), SHAPE) for rows in ([0, 1, 2], [3, 4])]


def hybrid(model_type: str) -> Any:
    """A model whose weights are large enough that every layer matters."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**hybrid_config(model_type, vocab_size=VOCAB))
    attention = register_attention("sdpa")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model.train()


def gradients_of(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def alone(causal_lm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradients of each conversation by itself, by `transformers` alone."""
    twin = copy.deepcopy(causal_lm)
    twin.config._attn_implementation = "eager"
    loss = reference_loss(twin, ROWS)
    loss.backward()
    return loss.detach(), gradients_of(twin)


def packed(model: PackedCausalLM, batches: list[PackedBatch]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of packs. All are computed before the first gradient is."""
    model.zero_grad()
    losses = [model(batch).weighted_nll for batch in batches]
    for loss in losses:
        loss.backward()
    return torch.stack(losses).sum().detach(), gradients_of(model)


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_packed_is_alone(model_type: str, measured: Measured) -> None:
    causal_lm = hybrid(model_type)
    loss, gradient = alone(causal_lm)
    model = PackedCausalLM(causal_lm, num_classes=1)
    assert model.mixers is not None
    assert set(model.mixers.ways.values()) == {"alone"}
    for batches in (PACKS, [joined(PACKS)]) if model_type == "lfm2" else (PACKS,):
        found_loss, found = packed(model, batches)
        measured(
            "gradients of hybrids on packs, float32, against each conversation alone", relative_error(found, gradient)
        )
        assert relative_error(found_loss, loss) < 1e-5
        assert relative_error(found, gradient) < 1e-5


@pytest.mark.parametrize("model_type", ["minimax", "jamba", "lfm2"])
def test_control_without_borders_conversations_mix(model_type: str) -> None:
    causal_lm = hybrid(model_type)
    gradient = alone(causal_lm)[1]
    whole = [replace(batch, cu_seqlens_S1=torch.tensor([0, 96], dtype=torch.int32)) for batch in PACKS]
    assert relative_error(packed(PackedCausalLM(causal_lm, num_classes=1), whole)[1], gradient) > 1e-2


@pytest.mark.parametrize("checkpointing", ["full", "matmuls"])
def test_recomputed_layers_find_their_own_borders(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packs run forward before either runs backward; without the hook the first one gets borders of the second."""
    causal_lm = hybrid("qwen3_5_text")
    gradient = alone(causal_lm)[1]
    model = PackedCausalLM(causal_lm, num_classes=1)
    set_layer_forward(causal_lm.model.layers, checkpointing=[checkpointing] * 3, compiled=False)
    assert relative_error(packed(model, PACKS)[1], gradient) < 1e-5
    monkeypatch.setattr(Borders, "restore_in_backward", lambda self, hidden: None)
    try:
        error = relative_error(packed(model, PACKS)[1], gradient)
    except RuntimeError:  # shapes of the other pack
        error = torch.inf
    assert error > 1e-3


def test_models_without_mixers_are_left_alone() -> None:
    causal_lm = tiny_model()
    assert not list(sequence_mixers(causal_lm))
    assert keep_apart(causal_lm, device=CPU) is None


def test_border_keywords() -> None:
    keywords = border_keywords([2, 1, 3], CPU)
    assert keywords["seq_idx"].tolist() == [[0, 0, 1, 2, 2, 2]]
    assert keywords["seq_idx"].dtype == torch.int32
    assert keywords["cu_seq_lens_q"].tolist() == [0, 2, 3, 6]


# ---- mixers whose kernels get the borders ----


class RunningSum(torch.nn.Module):
    """A mixer that adds up the tokens before each one, apart for each sequence of `seq_idx`."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(8, 8, kernel_size=2)  # what mixers are found by
        self.fault = fault

    def forward(self, hidden_1TD: torch.Tensor, seq_idx: torch.Tensor | None = None) -> torch.Tensor:
        if seq_idx is None:
            return torch.tanh(hidden_1TD).cumsum(dim=1)
        numbers = seq_idx[0].tolist()
        lengths = [numbers.count(number) for number in range(max(numbers) + 1)]
        values = torch.tanh(hidden_1TD)
        if self.fault == "scale":
            values = values * 1.2
        result = torch.cat([part.cumsum(dim=1) for part in values.split(lengths, dim=1)], dim=1)
        if self.fault == "leak":  # of the last token before a border, and far below rounding of what is compared
            result[:, lengths[0]] += 1e-6 * values[:, lengths[0] - 1]
        if self.fault == "gradient":  # the value does not change
            first, others = values[:, :1], result[:, lengths[0] :]
            result = torch.cat((result[:, : lengths[0]], others + (first - first.detach())), dim=1)
        return result


@pytest.mark.parametrize(
    ("fault", "says"),
    [("", None), ("leak", "carry one"), ("gradient", "gradients"), ("scale", "something else")],
)
def test_trial_finds_kernels_that_mix_conversations(fault: str, says: str | None) -> None:
    found = trial(RunningSum(fault), hidden_size=8)
    assert found is None if says is None else found is not None and says in found


def test_kernels_that_passed_get_the_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for a whole pack with the same result as one call for each conversation."""
    calls: list[int] = []
    forward = RunningSum.forward

    def counted(self: RunningSum, hidden_1TD: torch.Tensor, seq_idx: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(hidden_1TD.shape[1])
        return forward(self, hidden_1TD, seq_idx)

    monkeypatch.setattr(RunningSum, "forward", counted)
    results = []
    obstacles: list[Callable[..., str | None]] = [lambda *_, **__: None, lambda *_, **__: "slow"]
    for obstacle in obstacles:
        monkeypatch.setattr(borders, "kernels_obstacle", obstacle)
        model = torch.nn.Module()
        model.mixer = RunningSum()
        model.get_input_embeddings = lambda: torch.nn.Embedding(3, 8)  # type: ignore[assignment]
        mixers = keep_apart(model, device=CPU)
        assert mixers is not None
        mixers.borders.set(torch.tensor([0, 3, 5, 9, 9, 9], dtype=torch.int32))
        hidden_1TD = torch.arange(72.0).reshape(1, 9, 8)
        results.append(model.mixer(hidden_1TD, cu_seqlens=None, max_seqlen=4))
        assert ("slow" in mixers.text()) == (mixers.ways["RunningSum"] == "alone")
    assert calls == [9, 3, 2, 4]
    assert torch.equal(*results)


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", GPU_HYBRIDS)
def test_gpu_packed_is_alone(model_type: str, measured: Measured) -> None:
    """bfloat16 on packs, with kernels or alone, against float32 of each conversation alone by `transformers`.

    The controls: the whole pack as one sequence. And kernels are used exactly where the packages are installed.
    """
    device = torch.device("cuda", 0)
    needs = AttentionNeeds(head_dims=frozenset({(64, 64)}))
    kernel = choose_attention("auto", device=device, dtype=torch.bfloat16, needs=needs)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**gpu_hybrid_config(model_type, vocab_size=VOCAB))
    causal_lm = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation=register_attention(kernel)
    )
    causal_lm = causal_lm.to(device).train()
    twin = copy.deepcopy(causal_lm).float()
    twin.config._attn_implementation = "eager"
    twin.config.use_cache = twin.generation_config.use_cache = False  # with one, some layers leave out their kernels
    loss = reference_loss(twin, ROWS)
    loss.backward()
    expected = gradients_of(twin)
    model = PackedCausalLM(causal_lm, num_classes=1)
    mixers = model.mixers
    assert mixers is not None
    installed = has_kernels(model_type)
    print(model_type, mixers.text())
    assert set(mixers.ways.values()) == {"kernel" if installed else "alone"}, mixers.text()
    batches = [batch.to(device) for batch in PACKS]
    found_loss, found = packed(model, batches)
    whole = [replace(batch, cu_seqlens_S1=torch.tensor([0, 96], dtype=torch.int32, device=device)) for batch in batches]
    leak = relative_error(packed(model, [replace(b, max_seqlen=96) for b in whole])[1], expected)
    error = relative_error(found, expected)
    measured("gradients of hybrids on packs, bfloat16 on a GPU, against float32 of each conversation alone", error)
    assert relative_error(found_loss, loss) < 1e-2
    assert error < 5e-2
    assert leak > 2 * error
