"""Which class of `transformers` a base is, and where its text part is.

Most bases are a language model and nothing else. Some wrap one: their configuration has a `text_config` beside those of
an image or sound encoder. The whole wrapper is loaded and exported; only its text part is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.errors import UserError


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model; the config itself where there is nothing else."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError as error:  # several parts that write text
        raise UserError("model", f"`{config.model_type}`: {error}", "use another base") from None


def is_wrapper(config: Any) -> bool:
    """Whether a base holds more than a language model."""
    return text_config(config) is not config


def auto_class(config: Any) -> Any:
    """The class of `transformers` that makes and loads a base with all of its parts. Raises UserError for a base that
    is not a causal language model.
    """
    import transformers

    choices = [(transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)]
    if is_wrapper(config):
        choices.insert(0, (transformers.AutoModelForImageTextToText, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING))
    for choice, mapping in choices:
        if type(config) in mapping:
            return choice
    raise UserError(
        "model", f"`{config.model_type}` is not a causal language model that `transformers` knows", "use another base"
    )


def new_model(config: Any, **options: Any) -> Any:
    """A base with random weights."""
    return auto_class(config).from_config(config, trust_remote_code=False, **options)


def base_class(config: Any) -> Any:
    """The class of a base's model."""
    with torch.device("meta"):
        return type(new_model(config))


def backbone(causal_lm: Any) -> Any:
    """The language model without its head: from token ids to hidden states."""
    if is_wrapper(causal_lm.config):
        return causal_lm.get_decoder()
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    # a family that does not name it (Llama 4): the one model inside
    inner = [child for child in causal_lm.children() if hasattr(child, "config")]
    if len(inner) != 1:
        raise UserError("model", f"`{causal_lm.config.model_type}` does not have one inner model", "use another base")
    return inner[0]


def frozen_parameters(causal_lm: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and parameters of a wrapper that are neither in its language model nor in the head."""
    trained = [*backbone(causal_lm).parameters(), *causal_lm.get_output_embeddings().parameters()]
    ids = {id(parameter) for parameter in trained}
    return ((name, found) for name, found in causal_lm.named_parameters() if id(found) not in ids)
