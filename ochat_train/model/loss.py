"""Weighted cross-entropy from hidden states, without ever holding the logits of a whole pack.

Only supervised tokens reach the language-model head, a chunk at a time. The gradients are made in the forward pass,
where weights are known, so the backward pass only scales them; one pass over the head's weight instead of two.

Shape letters: T tokens of a pack, N supervised tokens of a pack, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

CHUNK_TOKENS = 2048  # 2048 x 128,256 float32 logits are 1 GiB, and their softmax another


class LossSums(NamedTuple):  # a tuple, because DeepSpeed's hooks look for tensors in what a module returns
    """Sums over the supervised tokens of one pack; means are made once, after sums from all ranks are added.

    weighted_nll: float32 scalar, sum of w * -log p(target) in nats, differentiable.
    per_class: float32[C, 5], detached: weighted nll, weight, weighted correct (argmax is the target), supervised
    tokens, squared weight.
    """

    weighted_nll: torch.Tensor
    per_class: torch.Tensor


class TokenScores(NamedTuple):
    """How a model does on the supervised tokens of a pack, without gradients.

    nll_N: float32, -log p(target) in nats. predicted_N: int64, the most likely next token.
    """

    nll_N: torch.Tensor
    predicted_N: torch.Tensor


@torch.no_grad()
def token_scores(
    hidden_TD: torch.Tensor, head_VD: torch.Tensor, *, rows_N: torch.Tensor, target_ids_T: torch.Tensor
) -> TokenScores:
    """Score the predictions from tokens `rows_N` (int64) under softmax(hidden @ head.T), a chunk at a time, in
    float32.
    """
    hidden_ND, target_ids_N = hidden_TD.index_select(0, rows_N), target_ids_T.index_select(0, rows_N)
    vocab_size = len(head_VD)
    head_VD = _aligned(head_VD)
    nll = [hidden_ND.new_zeros(0, dtype=torch.float32)]
    predicted = [target_ids_N.new_zeros(0)]
    for hidden, targets in zip(hidden_ND.split(CHUNK_TOKENS), target_ids_N.split(CHUNK_TOKENS), strict=True):
        logits = _matmul_float32(hidden, head_VD.t())[:, :vocab_size]
        nll.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        predicted.append(logits.argmax(-1))
    return TokenScores(nll_N=torch.cat(nll), predicted_N=torch.cat(predicted))


def weighted_loss_sums(
    hidden_TD: torch.Tensor,
    head_VD: torch.Tensor,
    *,
    rows_N: torch.Tensor,
    target_ids_T: torch.Tensor,
    target_weights_T: torch.Tensor,
    class_ids_T: torch.Tensor,
    num_classes: int,
) -> LossSums:
    """Weighted negative log-likelihood of the targets under softmax(hidden @ head.T).

    rows_N: int64, the tokens that have a weight; known on the CPU, where finding them does not wait for the GPU.
    hidden_TD and head_VD have the model's dtype; weights are float32 and stay so; logits are made float32 before the
    softmax, and the gradient of the head is accumulated in float32 over chunks.
    A pack without supervised tokens gives zeros that are still connected to the graph, so that every rank runs the
    same backward pass.
    """
    weighted_nll, per_class = _WeightedLoss.apply(
        hidden_TD.index_select(0, rows_N),
        head_VD,
        target_ids_T.index_select(0, rows_N),
        target_weights_T.index_select(0, rows_N),
        class_ids_T.index_select(0, rows_N),
        num_classes,
    )
    return LossSums(weighted_nll=weighted_nll, per_class=per_class)


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        target_ids_N: torch.Tensor,
        weights_N: torch.Tensor,
        class_ids_N: torch.Tensor,
        num_classes: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        vocab_size = len(head_VD)
        head_VD = _aligned(head_VD)
        per_class_C5 = torch.zeros(num_classes, 5, dtype=torch.float32, device=hidden_ND.device)
        with_gradients = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        # float32 until the scale is known: a product rounded to bfloat16 twice has a larger error than plain eager code
        hidden_gradient_ND = torch.empty_like(hidden_ND, dtype=torch.float32) if with_gradients else None
        head_gradient_VD = torch.zeros_like(head_VD, dtype=torch.float32) if with_gradients else None
        for start in range(0, len(hidden_ND), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            hidden, targets, weights = hidden_ND[chunk], target_ids_N[chunk, None], weights_N[chunk]
            logits = _matmul_float32(hidden, head_VD.t())
            logits[:, vocab_size:] = -torch.inf
            predicted = logits.argmax(-1, keepdim=True)
            correct = (predicted == targets)[:, 0]
            shortfall = logits.gather(-1, predicted) - logits.gather(-1, targets)
            # Few passes over [N, V]: the likeliest token's probability, which is never tiny, gives the normalizer.
            softmax = logits.softmax(-1)
            del logits
            nll = (shortfall - softmax.gather(-1, predicted).log())[:, 0]
            columns = torch.stack(
                (nll * weights, weights, correct * weights, torch.ones_like(weights), weights**2), dim=1
            )
            per_class_C5.index_add_(0, class_ids_N[chunk], columns)
            if hidden_gradient_ND is not None and head_gradient_VD is not None:
                # d(w * nll)/d(logits) = w * (softmax - onehot)
                softmax.scatter_add_(-1, targets, torch.full_like(shortfall, -1.0))
                gradient = _product(softmax, weights[:, None], hidden.dtype)
                del softmax
                hidden_gradient_ND[chunk] = _matmul_float32(gradient, head_VD)
                _add_product(head_gradient_VD, gradient.t(), hidden)
        if with_gradients:
            assert head_gradient_VD is not None
            ctx.save_for_backward(hidden_gradient_ND, head_gradient_VD[:vocab_size])
            ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        ctx.mark_non_differentiable(per_class_C5)
        return per_class_C5[:, 0].sum(), per_class_C5

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient_ND, head_gradient_VD = ctx.saved_tensors
        scale = upstream[0]  # float32, and multiplied in float32: as a bfloat16 number it would be off by up to 0.4 %
        hidden_dtype, head_dtype = ctx.dtypes
        gradients = _product(hidden_gradient_ND, scale, hidden_dtype), _product(head_gradient_VD, scale, head_dtype)
        return *gradients, None, None, None, None


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a * b, multiplied in float32 and rounded as it is written: no float32 product in memory."""
    return torch.mul(a, b, out=torch.empty_like(a, dtype=dtype))


def _aligned(head_VD: torch.Tensor) -> torch.Tensor:
    """The head with rows of zeros up to a multiple of 64: products with 32,002 columns run at a third of the speed
    (H100).
    """
    missing = -len(head_VD) % 64
    return torch.nn.functional.pad(head_VD, (0, 0, 0, missing)) if missing else head_VD


def _matmul_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in float32; on CUDA a half-precision product keeps the float32 of its accumulators."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total (float32) += a @ b; on CUDA the kernel of a half-precision product adds its accumulators itself."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.add_(a @ b)
