"""Weighted cross-entropy from hidden states, without ever holding the logits of a whole pack.

Only supervised tokens reach the language-model head, a chunk at a time. The forward pass also makes the gradients,
while a chunk's logits are there, and the backward pass only scales them: one pass over the head's weight, not two.

Shape letters: T tokens of a pack, N supervised tokens of a pack, D hidden size, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

CHUNK_TOKENS = 2048  # 2048 x 128,256 float32 logits are 1 GiB, and their softmax is another


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """From the head's results u to logits: z = c * tanh(scale * u / c) with softcap c, z = scale * u without one."""

    scale: float = 1.0
    softcap: float | None = None


_NO_TRANSFORM = LogitTransform()


class HeadRows(NamedTuple):
    """Rows of the head that are trained while its table is frozen (adapter/token_rows.py). K rows.

    ids_K: int64, which. weight_KD: their values, which replace those of the table.
    """

    ids_K: torch.Tensor
    weight_KD: torch.Tensor


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
    bias_V: torch.Tensor | None = None,
    trained: HeadRows | None = None,
    transform: LogitTransform = _NO_TRANSFORM,
    indices_N: torch.Tensor,
    target_ids_T: torch.Tensor,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenScores:
    """Score the predictions of the tokens at `indices_N` under the softmax of `_logits`, in float32.

    hidden_TD, head_VD, bias_V: in the model's dtype. trained: rows that replace those of the head. indices_N:
    int64, into T. target_ids_T: int64. chunk_tokens: logits held at once.
    """
    hidden_ND, target_ids_N = hidden_TD.index_select(0, indices_N), target_ids_T.index_select(0, indices_N)
    vocab_size = len(head_VD)
    head_VD = _with_rows(head_VD, *(trained or (None, None)))
    nll = [hidden_ND.new_zeros(0, dtype=torch.float32)]
    predicted = [target_ids_N.new_zeros(0)]
    for hidden, targets in zip(hidden_ND.split(chunk_tokens), target_ids_N.split(chunk_tokens), strict=True):
        logits = _logits(hidden, head_VD, bias_V, transform)[:, :vocab_size]
        nll.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        predicted.append(logits.argmax(-1))
    return TokenScores(nll_N=torch.cat(nll), predicted_N=torch.cat(predicted))


def weighted_loss_sums(
    hidden_TD: torch.Tensor,
    head_VD: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    trained: HeadRows | None = None,
    transform: LogitTransform = _NO_TRANSFORM,
    indices_N: torch.Tensor,
    target_ids_T: torch.Tensor,
    target_weights_T: torch.Tensor,
    class_ids_T: torch.Tensor,
    num_classes: int,
    chunk_tokens: int = CHUNK_TOKENS,
) -> LossSums:
    """Sum of w_n * -log softmax(z_n)[target_n] over the tokens n at `indices_N`, in nats; z_n: logits of token n.

    z_n = transform(hidden_n @ head.T + bias), as `LogitTransform` says; the gradients are in `_WeightedLoss`.
    indices_N: int64, into T, of the tokens that have a weight, as `PackedBatch.supervised_indices_N`.
    hidden_TD, head_VD and bias_V have the model's dtype. Weights are float32 and stay so, logits are made float32
    before the softmax, and the gradients of head and bias are summed over chunks in float32. A head or bias that is
    frozen costs no gradient. trained: rows that replace those of the head, and get their own gradient.
    chunk_tokens: tokens whose logits are held at once; the result does not depend on it, except for rounding.
    A pack without supervised tokens gives zeros that are still connected to the graph, so that every rank runs the
    same backward pass.
    """
    weighted_nll, per_class = _WeightedLoss.apply(
        hidden_TD.index_select(0, indices_N),
        head_VD,
        bias_V,
        *(trained or (None, None)),
        transform,
        target_ids_T.index_select(0, indices_N),
        target_weights_T.index_select(0, indices_N),
        class_ids_T.index_select(0, indices_N),
        num_classes,
        chunk_tokens,
    )
    return LossSums(weighted_nll=weighted_nll, per_class=per_class)


class _WeightedLoss(torch.autograd.Function):
    """L = sum_n w_n * nll_n with nll_n = -log p_n[t_n], p_n = softmax(z_n), of the target t_n of token n.

    With scale s and soft cap c the logits are z_n = c * tanh(s * u_n / c), u_n = hidden_n @ head.T + bias. Gradients:

        g_n = dL/du_n = w_n * (p_n - onehot(t_n)) * s * (1 - (z_n / c)^2)
        dL/dhidden_n  = g_n @ head
        dL/dhead      = sum_n g_n.T @ hidden_n
        dL/dbias      = sum_n g_n
        dL/drow_k     = sum_n g_n[id_k] * hidden_n       for trained rows of a frozen head

    Without a cap z_n = s * u_n, and the last factor of g_n is left out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        row_ids_K: torch.Tensor | None,
        rows_KD: torch.Tensor | None,
        transform: LogitTransform,
        target_ids_N: torch.Tensor,
        weights_N: torch.Tensor,
        class_ids_N: torch.Tensor,
        num_classes: int,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """L (float32 scalar) and `LossSums.per_class`; saves the gradients in float32 for the backward pass.

        With m = argmax_v z[v], the negative log-likelihood is computed as

            nll = log(sum_v exp z[v]) - z[t]
                = (z[m] - z[t]) - (z[m] - log(sum_v exp z[v]))
                = shortfall - log p[m]

        p[m] is at least 1/V and has a logarithm, while p[t] can be rounded to 0. Both parts come from what the
        gradient needs anyway, so there is no second pass over [N, V] for a log-softmax.
        """
        vocab_size = len(head_VD)
        head_VD = _with_rows(head_VD, row_ids_K, rows_KD)
        per_class_C5 = torch.zeros(num_classes, 5, dtype=torch.float32, device=hidden_ND.device)
        gradients = _Gradients.of(ctx.needs_input_grad, hidden_ND, head_VD, bias_V, rows_KD)
        for start in range(0, len(hidden_ND), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            targets, weights = target_ids_N[chunk, None], weights_N[chunk]
            logits = _logits(hidden_ND[chunk], head_VD, bias_V, transform)
            logits[:, vocab_size:] = -torch.inf
            predicted = logits.argmax(-1, keepdim=True)
            correct = (predicted == targets)[:, 0]
            shortfall = logits.gather(-1, predicted) - logits.gather(-1, targets)
            softmax = logits.softmax(-1)
            slope = _slope(logits, transform, vocab_size) if gradients is not None else None
            del logits
            nll = (shortfall - softmax.gather(-1, predicted).log())[:, 0]
            columns = torch.stack(
                (nll * weights, weights, correct * weights, torch.ones_like(weights), weights**2), dim=1
            )
            per_class_C5.index_add_(0, class_ids_N[chunk], columns)
            if gradients is not None:
                softmax.scatter_add_(-1, targets, torch.full_like(shortfall, -1.0))
                if slope is not None:
                    softmax.mul_(slope)
                del slope
                factors = weights * transform.scale
                gradient = _product(softmax, factors[:, None], hidden_ND.dtype)  # g
                if gradients.bias_V is not None:
                    gradients.bias_V.addmv_(softmax.t(), factors)
                del softmax
                gradients.hidden_ND[chunk] = _matmul_float32(gradient, head_VD)
                if gradients.head_VD is not None:
                    _add_product(gradients.head_VD, gradient.t(), hidden_ND[chunk])
                if gradients.rows_KD is not None and row_ids_K is not None:
                    _add_product(gradients.rows_KD, gradient[:, row_ids_K].t(), hidden_ND[chunk])
        if gradients is not None:
            ctx.save_for_backward(*gradients.trimmed(vocab_size))
            dtypes = (None if tensor is None else tensor.dtype for tensor in (hidden_ND, head_VD, bias_V, rows_KD))
            ctx.dtypes = tuple(dtypes)
        ctx.mark_non_differentiable(per_class_C5)
        return per_class_C5[:, 0].sum(), per_class_C5

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The saved gradients times the upstream gradient of L, rounded once to the dtypes of what they are for."""
        scale = upstream[0]  # stays float32: as a bfloat16 number it would be off by up to 0.4 %
        hidden_ND, head_VD, bias_V, rows_KD = (
            None if gradient is None else _product(gradient, scale, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden_ND, head_VD, bias_V, None, rows_KD, None, None, None, None, None, None


@dataclass(frozen=True, kw_only=True)
class _Gradients:
    """Gradients of L, float32 until the scale of the backward pass is known; None for what is frozen.

    A product rounded to bfloat16 twice has a larger error than plain eager code.
    """

    hidden_ND: torch.Tensor
    head_VD: torch.Tensor | None
    bias_V: torch.Tensor | None
    rows_KD: torch.Tensor | None

    @classmethod
    def of(
        cls,
        is_needed: Sequence[bool],
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        rows_KD: torch.Tensor | None,
    ) -> _Gradients | None:
        """Nothing added up yet; None where nothing needs a gradient. head_VD: aligned. is_needed: by argument."""
        if not any(is_needed):
            return None
        _, head, bias, _, rows, *_ = is_needed
        return cls(
            hidden_ND=torch.empty_like(hidden_ND, dtype=torch.float32),
            head_VD=torch.zeros_like(head_VD, dtype=torch.float32) if head else None,
            bias_V=hidden_ND.new_zeros(len(head_VD), dtype=torch.float32) if bias else None,
            rows_KD=torch.zeros_like(rows_KD, dtype=torch.float32) if rows and rows_KD is not None else None,
        )

    def trimmed(self, vocab_size: int) -> tuple[torch.Tensor | None, ...]:
        """Gradients of hidden, head, bias and trained rows, without the rows that aligned the head."""
        head_VD, bias_V = (None if found is None else found[:vocab_size] for found in (self.head_VD, self.bias_V))
        return self.hidden_ND, head_VD, bias_V, self.rows_KD


def _logits(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, bias_V: torch.Tensor | None, transform: LogitTransform
) -> torch.Tensor:
    """Logits in float32, [N, V]. head_VD: aligned; its rows without a bias are not meant to be used."""
    logits = _matmul_float32(hidden_ND, head_VD.t())
    if bias_V is not None:
        logits[:, : len(bias_V)] += bias_V
    if transform.scale != 1.0:
        logits *= transform.scale
    if transform.softcap is not None:
        logits.div_(transform.softcap).tanh_().mul_(transform.softcap)
    return logits


def _slope(logits: torch.Tensor, transform: LogitTransform, vocab_size: int) -> torch.Tensor | None:
    """1 - (z / c)^2, written over the logits z; None without a cap. 0 for the columns from `vocab_size` on."""
    if transform.softcap is None:
        return None
    logits[:, vocab_size:] = transform.softcap
    return logits.div_(transform.softcap).square_().neg_().add_(1.0)


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a * b, multiplied in float32 and rounded to `dtype` on writing, without a float32 product in memory."""
    return torch.mul(a, b, out=torch.empty_like(a, dtype=dtype))


def _aligned(head_VD: torch.Tensor) -> torch.Tensor:
    """The head with rows of zeros up to a multiple of 64: products with 32,002 columns take three times as long on an
    H100.
    """
    missing = -len(head_VD) % 64
    return torch.nn.functional.pad(head_VD, (0, 0, 0, missing)) if missing else head_VD


def _with_rows(head_VD: torch.Tensor, row_ids_K: torch.Tensor | None, rows_KD: torch.Tensor | None) -> torch.Tensor:
    """The aligned head, with the rows that are trained instead of its own."""
    aligned_VD = _aligned(head_VD)
    if row_ids_K is None or rows_KD is None:
        return aligned_VD
    if aligned_VD is head_VD:
        return head_VD.index_copy(0, row_ids_K, rows_KD)
    return aligned_VD.index_copy_(0, row_ids_K, rows_KD)


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
