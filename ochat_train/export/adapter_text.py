"""What a model card says of an adapter."""

from __future__ import annotations

from ochat_train.export.adapted import Differences
from ochat_train.recipe.sections.adapter import AdapterSettings


def adapter_text(adapter: AdapterSettings, *, is_merged: bool, has_token_rows: bool) -> str:
    """What was trained, on which form of the base, and what can read the export.

    has_token_rows: whether the export is an adapter with rows of embedding and head.
    """
    kind = "DoRA" if adapter.dora else "LoRA"
    trained = f"An adapter ({kind}, rank {adapter.rank}) was trained; all other weights are those of the base."
    return " ".join((trained, _of_base(adapter, is_merged=is_merged), *_readers(adapter, is_merged, has_token_rows)))


def _of_base(adapter: AdapterSettings, *, is_merged: bool) -> str:
    if adapter.type == "qlora":
        quantised = "The base was quantised to 4 bits (NF4, double quantisation) while it trained (QLoRA)."
        if is_merged:
            return (
                f"{quantised} The adapter is merged into the dequantised base: the weights are not those of the base."
            )
        return f"{quantised} On a base in 16 bits its answers differ a little from those in training."
    return (
        "This model has the adapter merged into the base." if is_merged else "This repository holds the adapter alone."
    )


def _readers(adapter: AdapterSettings, is_merged: bool, has_token_rows: bool) -> list[str]:
    if is_merged:
        return []
    reasons = ["DoRA"] if adapter.dora else []
    reasons += ["trained rows of new tokens (`trainable_token_indices`)"] if has_token_rows else []
    if reasons:
        return [f"vLLM cannot read {' and '.join(reasons)} in an adapter: serve the merged model there."]
    return [f"vLLM reads it with `--enable-lora --max-lora-rank {_vllm_rank(adapter.rank)}`."]


def _vllm_rank(rank: int) -> int:
    """The smallest largest rank that vLLM can be told, of those that fit."""
    return next((choice for choice in (8, 16, 32, 64, 128, 256, 320, 512) if choice >= rank), rank)


def rounding_text(found: Differences) -> str:
    """What merging did to logits, one sentence. found: with `rounding`."""
    return (
        f"Merged in float32, it gives the logits of base and adapter within {found.equal:.0e} of the largest; rounding "
        f"the weights to {found.dtype} moves them by {found.rounding:.0e} of it."
    )
