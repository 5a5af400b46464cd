"""The base's configuration: loading it, checking it, and what can be computed from it without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.loss import LogitTransform
from ochat_train.recipe.sections import ModelSettings

# Config entries that change logits after the head, and how: a factor, a divisor, or the bound of a soft cap. Families
# whose code uses an entry in another way have a row of their own.
_LOGIT_TRANSFORMS: Mapping[str, str] = {
    "final_logit_softcapping": "softcap",  # Gemma 2 to 4, VaultGemma, nanochat
    "logits_soft_cap": "softcap",  # RecurrentGemma
    "output_logit_soft_cap": "softcap",  # xLSTM
    "logit_scale": "factor",  # Cohere
    "lm_head_multiplier": "factor",  # Falcon-H1
    "logits_scaling": "divisor",  # Granite; MiniCPM3 divides the hidden states, which is the same
}
_OTHER_LOGIT_TRANSFORMS: Mapping[str, Mapping[str, str]] = {
    "hyperclovax": {"logits_scaling": "factor"},
}
_REMEDY = "use another base"


def model_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """The dtype of weights in the forward pass. The optimizer keeps float32 master weights in any case."""
    if settings.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def load_base_config(settings: ModelSettings, vocab_size: int) -> Any:
    """The `transformers` config of the base, which may come from the Hub. Raises UserError where it cannot be loaded.

    vocab_size: of the tokenizer, for a model from scratch whose `model.config` names none.
    """
    import transformers

    if settings.config is not None:
        values = dict(settings.config)
        values.setdefault("vocab_size", vocab_size)
        try:
            return transformers.AutoConfig.for_model(**values)
        except Exception as error:
            raise UserError("model.config", f"{error}") from None
    try:
        return transformers.AutoConfig.from_pretrained(settings.path, revision=settings.revision)
    except Exception as error:
        raise UserError("model.path", f"{settings.path}: cannot be loaded: {error}") from None


def check_config(config: Any, settings: ModelSettings) -> None:
    """Raise UserError for a base that is made for shorter texts than the recipe wants."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and settings.max_length_tokens > longest:
        raise UserError(
            "model.max_length_tokens",
            f"{settings.max_length_tokens} is more than the base's max_position_embeddings {longest}",
            f"use at most {longest}",
        )


def logit_transform(config: Any) -> LogitTransform:
    """What the base does with the results of its head, from the entries of its text config.

    Raises UserError for a base that leaves out columns of its logits.
    """
    config = config.get_text_config()
    unpadded = getattr(config, "unpadded_vocab_size", None)
    if unpadded is not None and unpadded < config.vocab_size:
        problem = f"{config.model_type} leaves out the logits from `unpadded_vocab_size` ({unpadded}) on"
        raise UserError("model", f"{problem}, which the loss does not", _REMEDY)
    kinds = {**_LOGIT_TRANSFORMS, **_OTHER_LOGIT_TRANSFORMS.get(config.model_type, {})}
    scale, softcap = 1.0, None
    for key, kind in kinds.items():
        value = getattr(config, key, None)
        if value is None:
            continue
        if kind == "softcap":
            softcap = float(value)
        else:
            scale *= float(value) if kind == "factor" else 1.0 / float(value)
    return LogitTransform(scale=scale, softcap=softcap)


def head_dimension(config: Any) -> int:
    """Numbers in a query, key or value of one head; configs that do not name it share `hidden_size` over the heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def model_without_weights(config: Any) -> Any:
    """The causal LM of a `transformers` config on the meta device: it has shapes, but no values and no memory."""
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def num_parameters(model: Any, vocab_size: int) -> int:
    """Parameters of a model with rows for `vocab_size` tokens."""
    tables = 1 if model.config.tie_word_embeddings else 2
    count = sum(parameter.numel() for parameter in model.parameters())
    return int(count + num_added_rows(model, vocab_size) * model.config.hidden_size * tables)


def num_added_rows(model: Any, vocab_size: int) -> int:
    """Tokens that the base has no row for."""
    return int(max(0, vocab_size - model.config.vocab_size))
