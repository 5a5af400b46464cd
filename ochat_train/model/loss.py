"""Weighted cross-entropy from hidden states, without ever holding the logits of a whole pack.

Only supervised tokens reach the language-model head, a chunk at a time. The forward pass also makes the gradients,
while a chunk's logits are there, and the backward pass only scales them: one pass over the head's weight, not two.

Shape letters: T tokens of a pack, N supervised tokens of a pack, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

CHUNK_TOKENS = 2048  # 2048 x 128,256 float32 logits are 1 GiB, and their softmax is another


class LossSums(NamedTuple):  # a tuple, because DeepSpeed's hooks look for tensors in what a module returns
    """Sums over the supervised tokens of one pack; means are made once, after sums from all ranks are added.

    weighted_nll: float32 scalar, sum of w * -log p(target) in nats, differentiable.
    per_class: float32[C, 5], detached: weighted nll, weight, weighted correct (argmax is the target), supervised
    tokens, squared weight.
    Mixtures of experts only (experts.py): router_loss, float32 scalar, differentiable, as `RouterLoss` gives it.
    expert_counts: int64[L, E], detached, as `ExpertCounter` gives them.
    """

    weighted_nll: torch.Tensor
    per_class: torch.Tensor
    router_loss: torch.Tensor | None = None
    expert_counts: torch.Tensor | None = None


class TokenScores(NamedTuple):
    """How a model does on the supervised tokens of a pack, without gradients.

    nll_N: float32, -log p(target) in nats. predicted_N: int64, the most likely next token.
    """

    nll_N: torch.Tensor
    predicted_N: torch.Tensor


@torch.no_grad()
def token_scores(
    hidden_TD: torch.Tensor,
    head_VD: torch.Tensor,
    *,
    rows_N: torch.Tensor,
    target_ids_T: torch.Tensor,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenScores:
    """Score the predictions of the tokens `rows_N` under softmax(hidden @ head.T), in float32.

    hidden_TD, head_VD: in the model's dtype. rows_N, target_ids_T: int64. chunk_tokens: logits held at once.
    """
    hidden_ND, target_ids_N = hidden_TD.index_select(0, rows_N), target_ids_T.index_select(0, rows_N)
    vocab_size = len(head_VD)
    head_VD = _aligned(head_VD)
    nll = [hidden_ND.new_zeros(0, dtype=torch.float32)]
    predicted = [target_ids_N.new_zeros(0)]
    for hidden, targets in zip(hidden_ND.split(chunk_tokens), target_ids_N.split(chunk_tokens), strict=True):
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
    chunk_tokens: int = CHUNK_TOKENS,
) -> LossSums:
    """Sum of w_n * -log softmax(hidden_n @ head.T)[target_n] over the tokens n in `rows_N`, in nats.

    rows_N: int64, the tokens that have a weight, as `PackedBatch.supervised_rows_N`.
    hidden_TD and head_VD have the model's dtype. Weights are float32 and stay so, logits are made float32 before the
    softmax, and the gradient of the head is summed over chunks in float32.
    chunk_tokens: tokens whose logits are held at once; the result does not depend on it, except for rounding.
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
        chunk_tokens,
    )
    return LossSums(weighted_nll=weighted_nll, per_class=per_class)


class _WeightedLoss(torch.autograd.Function):
    """L = sum_n w_n * nll_n with nll_n = -log p_n[t_n], p_n = softmax(z_n), z_n = hidden_n @ head.T.

    t_n is the target of token n. Its gradients are

        g_n = dL/dz_n = w_n * (p_n - onehot(t_n))
        dL/dhidden_n  = g_n @ head
        dL/dhead      = sum_n g_n.T @ hidden_n
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        target_ids_N: torch.Tensor,
        weights_N: torch.Tensor,
        class_ids_N: torch.Tensor,
        num_classes: int,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """L (float32 scalar) and `LossSums.per_class`; saves dL/dhidden and dL/dhead in float32 for the backward pass.

        With m = argmax_v z[v], the negative log-likelihood is computed as

            nll = log(sum_v exp z[v]) - z[t]
                = (z[m] - z[t]) - (z[m] - log(sum_v exp z[v]))
                = shortfall - log p[m]

        p[m] is at least 1/V and has a logarithm, while p[t] can be rounded to 0. Both parts come from what the
        gradient needs anyway, so there is no second pass over [N, V] for a log-softmax.
        """
        vocab_size = len(head_VD)
        head_VD = _aligned(head_VD)
        per_class_C5 = torch.zeros(num_classes, 5, dtype=torch.float32, device=hidden_ND.device)
        with_gradients = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        # float32 until the scale is known: a product rounded to bfloat16 twice has a larger error than plain eager code
        hidden_gradient_ND = torch.empty_like(hidden_ND, dtype=torch.float32) if with_gradients else None
        head_gradient_VD = torch.zeros_like(head_VD, dtype=torch.float32) if with_gradients else None
        for start in range(0, len(hidden_ND), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden, targets, weights = hidden_ND[chunk], target_ids_N[chunk, None], weights_N[chunk]
            logits = _matmul_float32(hidden, head_VD.t())
            logits[:, vocab_size:] = -torch.inf
            predicted = logits.argmax(-1, keepdim=True)
            correct = (predicted == targets)[:, 0]
            shortfall = logits.gather(-1, predicted) - logits.gather(-1, targets)
            softmax = logits.softmax(-1)
            del logits
            nll = (shortfall - softmax.gather(-1, predicted).log())[:, 0]
            columns = torch.stack(
                (nll * weights, weights, correct * weights, torch.ones_like(weights), weights**2), dim=1
            )
            per_class_C5.index_add_(0, class_ids_N[chunk], columns)
            if hidden_gradient_ND is not None and head_gradient_VD is not None:
                softmax.scatter_add_(-1, targets, torch.full_like(shortfall, -1.0))
                gradient = _product(softmax, weights[:, None], hidden.dtype)  # g
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
        """The saved gradients times the upstream gradient of L, rounded once to the dtypes of hidden and head."""
        hidden_gradient_ND, head_gradient_VD = ctx.saved_tensors
        scale = upstream[0]  # stays float32: as a bfloat16 number it would be off by up to 0.4 %
        hidden_dtype, head_dtype = ctx.dtypes
        gradients = _product(hidden_gradient_ND, scale, hidden_dtype), _product(head_gradient_VD, scale, head_dtype)
        return *gradients, None, None, None, None, None


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a * b, multiplied in float32 and rounded to `dtype` on writing, without a float32 product in memory."""
    return torch.mul(a, b, out=torch.empty_like(a, dtype=dtype))


def _aligned(head_VD: torch.Tensor) -> torch.Tensor:
    """The head with rows of zeros up to a multiple of 64: products with 32,002 columns take three times as long on an
    H100.
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
