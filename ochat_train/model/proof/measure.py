"""What comes out of a model on packs and of the same model on each conversation alone, and how far these are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ochat_train.model.base_class import backbone
from ochat_train.model.batch import PackedBatch
from ochat_train.model.loss import LossSums, TokenScores
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.proof.packs import CHANGED, Conversations, packed, places

_NOISE = 1e-2  # of a usual gradient: below that, a gradient is rounding of zeros that cancel


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What a model gives for the conversations.

    hidden: float32[tokens, D] of each conversation. inputs: the gradient at the output of the embedding, alike; empty
    where it was not asked for. gradients: of the parameters, by name; one that got none is not there.
    nll, weighted: float32[supervised tokens] in nats and their weighted sum.
    """

    hidden: list[torch.Tensor]
    inputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]
    weighted: float
    nll: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How far packs and conversations alone are apart; each is relative to the size of what is compared.

    gradients: by parameter. unmatched: parameters that get a gradient in one of the two only.
    leak, gradient_leak: how far the hidden states of other conversations, and the gradients at their embeddings, moved
    when a token of one was changed; 0 for the same bits.
    """

    hidden: float
    gradients: Mapping[str, float]
    unmatched: Sequence[str]
    loss: float
    scores: float
    leak: float
    gradient_leak: float

    @property
    def gradient(self) -> float:
        """The largest of all parameters."""
        return max(self.gradients.values(), default=0.0)

    @property
    def worst_parameter(self) -> str:
        """The one with the largest difference."""
        return max(self.gradients, key=self.gradients.__getitem__, default="")


def on_packs(
    model: PackedCausalLM, conversations: Conversations, device: torch.device, *, for_borders: bool = False
) -> Computed:
    """What the model gives for packs, as training and validation call it.

    for_borders: only what tells whether conversations are kept apart: without gradients of parameters and scores.
    """
    batch = packed(conversations, device)
    causal_lm = model.causal_lm
    with _watched(causal_lm) as seen:
        causal_lm.zero_grad(set_to_none=True)
        sums = model(batch)
        assert isinstance(sums, LossSums)
        sums.weighted_nll.backward()
        inputs = seen.inputs[0].grad
        hidden = seen.last_hidden_TD
    return Computed(
        hidden=[hidden[place] for place in places()],
        inputs=[] if inputs is None else [inputs[0][place] for place in places()],
        gradients={} if for_borders else _gradients(causal_lm),
        weighted=float(sums.weighted_nll.detach()),
        nll=hidden.new_empty(0) if for_borders else _scores(model, batch),
    )


@torch.no_grad()
def _scores(model: PackedCausalLM, batch: PackedBatch) -> torch.Tensor:
    scores = model(batch, score=True)
    assert isinstance(scores, TokenScores)
    return scores.nll_N


def alone(causal_lm: Any, conversations: Conversations, device: torch.device) -> Computed:
    """What a causal LM of `transformers` gives for each conversation by itself, from its own logits."""
    hidden, nll = [], []
    weighted = torch.zeros((), dtype=torch.float64)
    causal_lm.zero_grad(set_to_none=True)
    for row in conversations.rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64)).to(device)
        weights = torch.from_numpy(row.loss_weights[1:].copy()).to(device)
        with _watched(causal_lm) as seen:
            logits = causal_lm(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        hidden.append(seen.last_hidden_TD)
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        total = (losses * weights).sum()
        total.backward()
        weighted += total.detach().double().cpu()
        nll.append(losses.detach()[weights != 0])
    return Computed(
        hidden=hidden,
        inputs=[],
        gradients=_gradients(causal_lm),
        weighted=float(weighted),
        nll=torch.cat(nll),
    )


def differences(packs: Computed, reference: Computed, changed: Computed) -> Differences:
    """How far the three are apart. changed: packs in which a token of conversation `CHANGED` is another one."""
    sizes = [float(gradient.norm()) / gradient.numel() ** 0.5 for gradient in reference.gradients.values()]
    usual = float(np.median([size for size in sizes if size > 0] or [1.0]))
    names = reference.gradients.keys() | packs.gradients.keys()
    with_gradient = [
        {name for name, x in found.gradients.items() if float(x.norm()) > _NOISE * usual * x.numel() ** 0.5}
        for found in (reference, packs)
    ]
    either = [found.gradients.keys() for found in (reference, packs)]
    unmatched = (with_gradient[0] - either[1]) | (with_gradient[1] - either[0])
    return Differences(
        hidden=max(_apart(a, b) for a, b in zip(packs.hidden, reference.hidden, strict=True)),
        gradients={
            name: _apart(packs.gradients[name], reference.gradients[name], least=_NOISE * usual)
            for name in sorted(names - unmatched)
            if name in packs.gradients and name in reference.gradients
        },
        unmatched=sorted(unmatched),
        loss=abs(packs.weighted - reference.weighted) / max(abs(reference.weighted), 1e-30),
        scores=_apart(packs.nll, reference.nll),
        leak=_moved(packs.hidden, changed.hidden),
        gradient_leak=_moved(packs.inputs, changed.inputs),
    )


def _moved(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """How far what belongs to other conversations than `CHANGED` moved, 0 for the same bits."""
    pairs = [pair for number, pair in enumerate(zip(before, after, strict=True)) if number != CHANGED]
    return max((_apart(a, b) for a, b in pairs), default=0.0)


def _apart(a: torch.Tensor, b: torch.Tensor, *, least: float = 1e-30) -> float:
    """|a - b| / |b| with Euclidean norms, not a number where either holds one. least: root mean square of b that
    counts as one.
    """
    a, b = a.double(), b.double()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("nan")
    return float((a - b).norm() / max(float(b.norm()), least * b.numel() ** 0.5))


def _gradients(causal_lm: Any) -> dict[str, torch.Tensor]:
    """Gradients by name; one that is zero everywhere counts as none."""
    found = {name: p.grad for name, p in causal_lm.named_parameters() if p.grad is not None}
    return {name: gradient.detach().clone() for name, gradient in found.items() if bool((gradient != 0).any())}


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """inputs: outputs of the embedding, which keep their gradients. hidden: what the backbone returned."""

    inputs: list[torch.Tensor]
    hidden: list[torch.Tensor]
    head: list[torch.Tensor]

    @property
    def last_hidden_TD(self) -> torch.Tensor:
        """Of the one forward pass that was watched."""
        return (self.hidden or self.head)[0][0]


@contextlib.contextmanager
def _watched(causal_lm: Any) -> Iterator[_Seen]:
    """Notes what the embedding of a causal LM and its backbone return.

    Where the causal LM goes around its backbone, what its head is given stands for that.
    """
    seen = _Seen(inputs=[], hidden=[], head=[])

    def embedded(module: Any, arguments: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
        seen.inputs.append(output)

    def computed(module: Any, arguments: Any, output: Any) -> None:
        seen.hidden.append((output[0] if isinstance(output, tuple) else output.last_hidden_state).detach())

    def given(module: Any, arguments: Any) -> None:
        seen.head.append(arguments[0].detach())

    handles = (
        causal_lm.get_input_embeddings().register_forward_hook(embedded),
        backbone(causal_lm).register_forward_hook(computed),
        causal_lm.get_output_embeddings().register_forward_pre_hook(given),
    )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
