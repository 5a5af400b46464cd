"""The weighted cross-entropy against plain float64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.model.config import logit_transform
from ochat_train.model.loss import CHUNK_TOKENS, LogitTransform, token_scores, weighted_loss_sums
from tests.support.measured import Measured
from tests.support.reference import relative_error


def make_inputs(
    num_tokens: int, hidden: int, vocab: int, weights: list[float], *, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor(weights)
    return {
        "hidden_TD": torch.randn(num_tokens, hidden, generator=generator),
        "head_VD": torch.randn(vocab, hidden, generator=generator) / hidden**0.5,
        "target_ids_T": torch.randint(vocab, (num_tokens,), generator=generator),
        "target_weights_T": choices[torch.randint(len(weights), (num_tokens,), generator=generator)],
        "class_ids_T": torch.randint(2, (num_tokens,), generator=generator),
    }


def reference(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss and its gradients in float64, all logits at once."""
    hidden = inputs["hidden_TD"].double().requires_grad_()
    head = inputs["head_VD"].double().requires_grad_()
    nll = torch.nn.functional.cross_entropy(hidden @ head.T, inputs["target_ids_T"], reduction="none")
    total = (nll * inputs["target_weights_T"].double()).sum()
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return total.detach(), hidden.grad, head.grad


def ours(
    inputs: dict[str, torch.Tensor], *, scale: float = 1.0, chunk_tokens: int = CHUNK_TOKENS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = inputs["hidden_TD"].clone().requires_grad_()
    head = inputs["head_VD"].clone().requires_grad_()
    rest = {key: value for key, value in inputs.items() if key not in ("hidden_TD", "head_VD")}
    indices_N = torch.nonzero(rest["target_weights_T"])[:, 0]
    sums = weighted_loss_sums(hidden, head, indices_N=indices_N, **rest, num_classes=2, chunk_tokens=chunk_tokens)
    (sums.weighted_nll * scale).backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return sums.weighted_nll.detach(), hidden.grad, head.grad, sums.per_class


@pytest.mark.parametrize(
    ("num_tokens", "vocab", "weights"),
    [
        (300, 1_000, [0.0, 0.1, 1.0]),
        (300, 1_000, [0.0, 0.001, 100.0]),
        (1, 1_000, [1.0]),
        (40, 32_002, [0.0, 0.1, 1.0]),
        (12, 128_256, [0.1, 1.0]),
    ],
)
def test_equals_float64(num_tokens: int, vocab: int, weights: list[float], measured: Measured) -> None:
    inputs = make_inputs(num_tokens, 64, vocab, weights)
    expected = reference(inputs)
    found = ours(inputs, chunk_tokens=64)  # several chunks, the last one partly full
    for value, truth in zip(found, expected, strict=False):
        measured(
            "loss and its gradients, float32, weights 0.001 to 100, vocabulary to 128,256", relative_error(value, truth)
        )
        assert relative_error(value, truth) < 5e-6


def test_scaling_in_the_backward_pass_is_exact() -> None:
    inputs = make_inputs(100, 32, 500, [0.0, 0.1, 1.0])
    _, hidden, head, _ = ours(inputs)
    _, scaled_hidden, scaled_head, _ = ours(inputs, scale=0.25)
    assert torch.equal(scaled_hidden, hidden * 0.25)
    assert torch.equal(scaled_head, head * 0.25)


def test_no_supervised_token_gives_zeros_with_a_graph() -> None:
    found = ours(make_inputs(10, 16, 50, [0.0]))
    assert all(torch.count_nonzero(tensor) == 0 for tensor in found)


@pytest.mark.parametrize("num_supervised", [0, 5, 5000])
def test_scores_are_the_loss_token_by_token(num_supervised: int) -> None:
    """nll and most likely token of each supervised token, against float64, over several chunks."""
    inputs = make_inputs(6000, 16, 50, [1.0])
    rows = torch.randperm(6000, generator=torch.Generator().manual_seed(1))[:num_supervised].sort().values
    scores = token_scores(inputs["hidden_TD"], inputs["head_VD"], indices_N=rows, target_ids_T=inputs["target_ids_T"])
    logits = (inputs["hidden_TD"].double() @ inputs["head_VD"].double().T)[rows]
    expected = torch.nn.functional.cross_entropy(logits, inputs["target_ids_T"][rows], reduction="none")
    torch.testing.assert_close(scores.nll_N.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.predicted_N, logits.argmax(-1))


def test_sums_per_class() -> None:
    inputs = make_inputs(200, 32, 100, [0.0, 0.1, 1.0])
    per_class = ours(inputs)[3]
    logits = inputs["hidden_TD"].double() @ inputs["head_VD"].double().T
    nll = torch.nn.functional.cross_entropy(logits, inputs["target_ids_T"], reduction="none")
    correct = (logits.argmax(-1) == inputs["target_ids_T"]).double()
    for index in range(2):
        weights = inputs["target_weights_T"].double() * (inputs["class_ids_T"] == index)
        sums = [nll * weights, weights, correct * weights, (weights > 0).double(), weights**2]
        expected = torch.stack([column.sum() for column in sums])
        torch.testing.assert_close(per_class[index].double(), expected, rtol=1e-5, atol=1e-5)


def test_every_token_has_its_own_weight(measured: Measured) -> None:
    """Against the fault of Liger's fused cross-entropy up to 0.8.1: all gradients times grad_output[0]."""
    inputs = make_inputs(300, 64, 1_000, [0.0, 0.1, 1.0])
    expected = reference(inputs)[1:]
    unweighted = {**inputs, "target_weights_T": torch.ones_like(inputs["target_weights_T"])}
    first = inputs["target_weights_T"][0]
    for found, equal, truth in zip(ours(inputs)[1:3], ours(unweighted)[1:3], expected, strict=True):
        assert relative_error(found, truth) < 5e-6
        measured("control: gradients scaled by the first token's weight", relative_error(equal * first, truth))
        assert relative_error(equal * first, truth) > 0.1


# ---- what models do with the results of their head ----

TRANSFORMS = [
    (LogitTransform(softcap=2.0), False),
    (LogitTransform(scale=0.25), False),
    (LogitTransform(), True),
    (LogitTransform(scale=3.0, softcap=5.0), True),
]
Gradients = dict[str, torch.Tensor]


def with_transform(
    transform: LogitTransform, *, biased: bool, precise: bool, vocab: int = 1_000, device: str = "cpu"
) -> tuple[torch.Tensor, Gradients, torch.Tensor]:
    """Loss, its gradients and the nll of each token. precise: plain float64 autograd with all logits at once."""
    inputs = {key: value.to(device) for key, value in make_inputs(300, 64, vocab, [0.0, 0.1, 1.0]).items()}
    bias = torch.randn(vocab, generator=torch.Generator().manual_seed(1)).to(device) if biased else None
    leaves = {"hidden": inputs.pop("hidden_TD"), "head": inputs.pop("head_VD")} | (
        {} if bias is None else {"bias": bias}
    )
    leaves = {name: (x.double() if precise else x.clone()).requires_grad_() for name, x in leaves.items()}
    weights, targets = inputs["target_weights_T"], inputs["target_ids_T"]
    if precise:
        logits = leaves["hidden"] @ leaves["head"].T
        logits = (logits if bias is None else logits + leaves["bias"]) * transform.scale
        if transform.softcap is not None:
            logits = transform.softcap * torch.tanh(logits / transform.softcap)
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        loss = (nll * weights.double()).sum()
    else:
        indices_N, extra = torch.nonzero(weights)[:, 0], {"bias_V": leaves.get("bias"), "transform": transform}
        tensors = leaves["hidden"], leaves["head"]
        sums = weighted_loss_sums(*tensors, **extra, indices_N=indices_N, **inputs, num_classes=2, chunk_tokens=64)
        loss = sums.weighted_nll
        every = torch.arange(len(targets), device=device)
        nll = token_scores(*tensors, **extra, indices_N=every, target_ids_T=targets, chunk_tokens=64).nll_N
    (loss * 0.5).backward()
    return loss.detach(), {name: x.grad for name, x in leaves.items() if x.grad is not None}, nll.detach()


def transform_errors(
    found: tuple[torch.Tensor, Gradients, torch.Tensor], transform: LogitTransform, **case: Any
) -> float:
    """The largest relative error of loss, gradients and scores against float64."""
    loss, gradients, nll = with_transform(transform, precise=True, **case)
    assert gradients.keys() == found[1].keys()
    pairs = [(found[0], loss), (found[2], nll), *((found[1][name], gradients[name]) for name in gradients)]
    return max(relative_error(value, truth) for value, truth in pairs)


@pytest.mark.parametrize(("transform", "biased"), TRANSFORMS)
@pytest.mark.parametrize("vocab", [1_000, 1_024])  # with and without rows that align the head
def test_caps_scales_and_biases_equal_float64(
    transform: LogitTransform, biased: bool, vocab: int, measured: Measured
) -> None:
    found = with_transform(transform, biased=biased, precise=False, vocab=vocab)
    error = transform_errors(found, transform, biased=biased, vocab=vocab)
    measured("loss, gradients and scores with soft cap, scale and bias, float32, against float64", error)
    assert error < 5e-6


@pytest.mark.parametrize(("transform", "biased"), TRANSFORMS)
def test_control_a_loss_without_them_differs(transform: LogitTransform, biased: bool, measured: Measured) -> None:
    dropped = with_transform(LogitTransform(), biased=biased, precise=False)
    if transform == LogitTransform():
        dropped = with_transform(transform, biased=False, precise=False)
        dropped[1]["bias"] = torch.zeros(1_000)
    error = transform_errors(dropped, transform, biased=biased)
    measured("control: loss without the soft cap, scale or bias", error)
    assert error > 1e-2


def test_nothing_changes_without_them() -> None:
    """Not a bit: a transform that does nothing, against none."""
    inputs = make_inputs(300, 64, 1_000, [0.0, 0.1, 1.0])
    found = with_transform(LogitTransform(), biased=False, precise=False)
    expected = ours(inputs, scale=0.5, chunk_tokens=64)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1]["hidden"], expected[1])
    assert torch.equal(found[1]["head"], expected[2])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mistral"}, LogitTransform()),
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, LogitTransform(softcap=30.0)),
        ({"model_type": "gemma3_text", "final_logit_softcapping": None}, LogitTransform()),
        ({"model_type": "recurrent_gemma", "logits_soft_cap": 30.0}, LogitTransform(softcap=30.0)),
        ({"model_type": "cohere", "logit_scale": 0.0625}, LogitTransform(scale=0.0625)),
        ({"model_type": "granite", "logits_scaling": 8.0}, LogitTransform(scale=0.125)),
        ({"model_type": "hyperclovax", "logits_scaling": 8.0}, LogitTransform(scale=8.0)),
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.5}, LogitTransform(scale=0.5)),
    ],
)
def test_the_transform_of_a_config(config: dict[str, Any], expected: LogitTransform) -> None:
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        pytest.skip("this transformers does not know the family")
    assert logit_transform(transformers.AutoConfig.for_model(**config)) == expected


def test_logits_that_are_left_out_are_refused() -> None:
    config = transformers.AutoConfig.for_model("mistral", vocab_size=100, unpadded_vocab_size=90)
    with pytest.raises(UserError, match=r"mistral leaves out the logits from `unpadded_vocab_size` \(90\) on"):
        logit_transform(config)


@pytest.mark.gpu
@pytest.mark.parametrize(("transform", "biased"), TRANSFORMS)
def test_caps_scales_and_biases_on_a_gpu(transform: LogitTransform, biased: bool, measured: Measured) -> None:
    case: dict[str, Any] = {"biased": biased, "vocab": 32_002, "device": "cuda"}
    error = transform_errors(with_transform(transform, precise=False, **case), transform, **case)
    measured("loss, gradients and scores with soft cap, scale and bias, float32 on the GPU, against float64", error)
    assert error < 5e-6


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [32_002, 128_256])
def test_bfloat16_is_no_worse_than_eager(vocab: int, measured: Measured) -> None:
    """Error against float64 of the same bfloat16 inputs: at most that of plain eager bfloat16 with autograd."""
    inputs = make_inputs(4_096, 1_024, vocab, [0.0, 0.1, 1.0])
    inputs["hidden_TD"], inputs["head_VD"] = inputs["hidden_TD"].bfloat16(), inputs["head_VD"].bfloat16()
    inputs = {key: value.cuda() for key, value in inputs.items()}
    expected = reference(inputs)
    hidden, head = inputs["hidden_TD"].clone().requires_grad_(), inputs["head_VD"].clone().requires_grad_()
    nll = torch.nn.functional.cross_entropy((hidden @ head.T), inputs["target_ids_T"], reduction="none")
    eager = (nll * inputs["target_weights_T"]).sum()
    eager.backward()
    for name, found, plain, truth in zip(
        ("loss", "hidden", "head"), ours(inputs), (eager, hidden.grad, head.grad), expected, strict=False
    ):
        measured(f"loss in bfloat16, {name}, against float64", relative_error(found, truth))
        measured(f"loss in bfloat16, {name}, plain eager bfloat16 against float64", relative_error(plain, truth))
        assert relative_error(found, truth) <= relative_error(plain, truth) * 1.05
