"""Which class of `transformers` a base is, and where its text part is.

Most bases are a language model and nothing else. Some wrap one: their configuration has a `text_config` beside those of
an image or sound encoder. The whole wrapper is loaded and exported; only its text part is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.system.pretrained import load_config, reason_of


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model; the config itself where there is nothing else."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError as error:  # several parts that write text
        raise UserError("model", f"`{config.model_type}`: {error}", "use another base") from None


def is_wrapper(config: Any) -> bool:
    """Whether a base holds more than a language model."""
    return text_config(config) is not config


def is_tied(config: Any) -> bool:
    """Whether a config makes embedding and head one tensor: that of a wrapper decides, where it says so."""
    own = getattr(config, "tie_word_embeddings", None)
    return bool(text_config(config).tie_word_embeddings if own is None else own)


def auto_class(config: Any) -> Any:
    """The class of `transformers` that makes and loads a base with all of its parts. Raises UserError for a base that
    is not a causal language model.
    """
    return _auto_class(config)[0]


def _auto_class(config: Any) -> tuple[Any, Any]:
    """The same, and its table of model classes by the class of their config."""
    import transformers

    choices = [(transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING)]
    if is_wrapper(config):
        choices.insert(0, (transformers.AutoModelForImageTextToText, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING))
    for choice, mapping in choices:
        if type(config) in mapping:
            return choice, mapping
    raise UserError(
        "model", f"`{config.model_type}` is not a causal language model that `transformers` knows", "use another base"
    )


def import_model_class(config: Any) -> None:
    """Load the code of a base's model, which takes seconds the first time. Raises what `transformers` raises."""
    _auto_class(config)[1][type(config)]


def new_model(config: Any, **options: Any) -> Any:
    """A base with random weights."""
    return auto_class(config).from_config(config, trust_remote_code=False, **options)


def load_exported(folder: Path) -> Any:
    """An exported model with all of its parts, in the dtype of its files, on the CPU, in evaluation mode.

    Raises UserError where it cannot be loaded.
    """
    config = load_config(folder, revision=None, place=str(folder))
    try:
        model = auto_class(config).from_pretrained(
            folder, config=config, dtype="auto", use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # any kind: damaged files, sizes that are not those of the configuration
        problem = f"the model cannot be loaded: {type(error).__name__}: {reason_of(error)}"
        raise UserError(folder, problem, "export the run again") from None
    return model.eval()


def backbone(causal_lm: Any) -> Any:
    """The language model without its head: from token ids to hidden states."""
    if is_wrapper(causal_lm.config):
        decoder = causal_lm.get_decoder()
        if decoder.get_output_embeddings() is None:
            return decoder
        causal_lm = decoder  # Llama 4 wraps a language model with its head
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    # a family that does not name it (Llama 4): the one model inside
    inner = [child for child in causal_lm.children() if hasattr(child, "config")]
    if len(inner) != 1:
        raise UserError("model", f"`{causal_lm.config.model_type}` does not have one inner model", "use another base")
    return inner[0]


def other_parts(causal_lm: Any) -> list[torch.nn.Parameter]:
    """Parameters of a wrapper that are neither in its language model nor in the head; none for any other base."""
    trained = [*backbone(causal_lm).parameters(), *causal_lm.get_output_embeddings().parameters()]
    ids = {id(parameter) for parameter in trained}
    return [parameter for parameter in causal_lm.parameters() if id(parameter) not in ids]


def freeze_other_parts(causal_lm: Any) -> None:
    """Train nothing but the language model and its head."""
    for parameter in other_parts(causal_lm) if is_wrapper(causal_lm.config) else ():
        parameter.requires_grad_(False)


def trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters that a run changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
