"""An independent truth for adapters: plain float64 products W + scale * B A, each conversation alone, without PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from data_pipeline.conversation import TokenizedConversation
from tests.support.reference import as_float64, reference_loss
from tests.support.tiny_model import tiny_model

_LEAD = "base_model.model."
_ROWS = ".token_adapter.trainable_tokens_delta"


@torch.no_grad()
def randomize(causal_lm: Any, *, seed: int = 0) -> None:
    """Other values for everything that an adapter trains: B begins at zero, and then A has no gradient."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in causal_lm.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def reference_gradients(
    base: Any,
    tensors: dict[str, torch.Tensor],
    rows: Sequence[TokenizedConversation],
    *,
    scale: float,
    token_ids: Sequence[int] = (),
) -> dict[str, torch.Tensor]:
    """Gradient of the weighted sum by PEFT's names, float64.

    base: the model before the adapter. tensors: its adapter's values by PEFT's names. token_ids: which rows of the
    tables the trained rows are.
    """
    truth = as_float64(base)
    leaves = {name: value.double().clone().requires_grad_() for name, value in tensors.items()}
    weights = dict(truth.named_parameters(remove_duplicate=False))
    for name, a in leaves.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            target = f"{module.removeprefix(_LEAD)}.weight"
            weights[target] = weights[target].detach() + scale * leaves[f"{module}.lora_B.weight"] @ a
            magnitude = leaves.get(f"{module}.lora_magnitude_vector")
            if magnitude is not None:  # DoRA: its paper leaves the gradient of the length out
                lengths = weights[target].detach().norm(dim=1)
                weights[target] = (magnitude / lengths)[:, None] * weights[target]
        if name.endswith(_ROWS):
            target = f"{name.removesuffix(_ROWS).removeprefix(_LEAD)}.weight"
            merged = weights[target].detach().index_copy(0, torch.tensor(list(token_ids)), leaves[name])
            shared = weights[target]
            weights |= {other: merged for other, weight in weights.items() if weight is shared}

    def model(**arguments: Any) -> Any:
        return torch.func.functional_call(truth, weights, kwargs=arguments, tie_weights=False)

    model.parameters = truth.parameters  # type: ignore[attr-defined]
    names = list(leaves)
    found = torch.autograd.grad(reference_loss(model, list(rows)), [leaves[name] for name in names])
    return dict(zip(names, found, strict=True))


def write_base(folder: Path, tokenizer_dir: Path, **changes: Any) -> Path:
    """A base on disk that does not know `<|end_of_turn|>`: the tiny model, with as many rows as a tokenizer has."""
    vocab_size = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).get_vocab_size()
    model = tiny_model(vocab_size=vocab_size, **changes)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_dir / name, folder / name)
    return folder
