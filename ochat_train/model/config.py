"""The base's configuration: loading it, checking it, and what can be computed from it without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object
from ochat_train.model.base_class import is_tied, is_wrapper, new_model, other_parts, text_config
from ochat_train.model.loss import LogitTransform
from ochat_train.model.rotary_values import check_rotary_values
from ochat_train.model.weights.files import refuse_adapter
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.system.pretrained import (
    config_file_values,
    config_of_values,
    load_config,
    parts_of,
    reason_of,
)

# Config entries that change logits after the head, and how: a factor, a divisor, or the bound of a soft cap. Families
# whose code uses an entry in another way have their own row.
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


def check_precision(settings: ModelSettings, device: torch.device) -> None:
    """Raise UserError for a GPU that does not compute in the dtype of the run."""
    if device.type != "cuda" or model_dtype(settings, device) != torch.bfloat16:
        return
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise UserError(
            f"GPU {device.index or 0}",
            f"compute capability {major}.{minor}: no bfloat16",
            "use an Ampere GPU or later, or model.precision: float32",
        )


def load_base_config(settings: ModelSettings, vocab_size: int) -> Any:
    """The `transformers` config of the base, which may come from the Hub. Raises UserError where it cannot be loaded.

    vocab_size: of the tokenizer, for a model from scratch whose `model.config` names none.
    """
    if settings.config is not None:
        config = config_of_values({"vocab_size": vocab_size, **settings.config}, place="model.config")
        _check_names(settings.config, config)
        return config
    refuse_adapter(settings)
    assert settings.path is not None
    config = load_config(settings.path, revision=settings.revision, place="model.path")
    values = config_file_values(settings.path, revision=settings.revision)
    check_rotary_values(values, config, settings.path)
    _check_padding(config, settings.path)
    _check_dropout(config, settings.path)
    generation = Path(settings.path) / "generation_config.json"
    if generation.is_file():  # `transformers` would leave out a damaged one, and with it what ends an answer
        read_json_object(generation, remedy="fetch the base again, or remove that file")
    return _with_usual_outputs(config)


def _check_names(values: Mapping[str, Any], config: Any) -> None:
    """Raise UserError for a misspelled key of `model.config`, for which `transformers` takes its default silently."""
    aliases = config.attribute_map
    known = sorted({*(field.name for field in fields(config)), *aliases, *aliases.values()})
    for name in values:
        if name not in known and not name.endswith("token_id"):  # wrappers have `boi_token_id` alone
            near = get_close_matches(name, known, n=1, cutoff=0.9)
            if near:
                problem = f"`{name}` is no key of a `{config.model_type}`"
                raise UserError("model.config", problem, f"did you mean `{near[0]}`?")


def _check_padding(config: Any, place: str) -> None:
    """Raise UserError for a padding token that has no row: no model of `transformers` can be made with it."""
    config = text_config(config)
    pad, num_rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(pad, int) and isinstance(num_rows, int) and not -num_rows <= pad < num_rows:
        problem = f"its config.json says `pad_token_id: {pad}`, and the model has {num_rows} rows"
        raise UserError(place, problem, "set `pad_token_id: null` in its config.json; training needs none")


def _check_dropout(config: Any, place: str) -> None:
    """Raise UserError for a dropout outside [0, 1): the proof of a base leaves dropout out, and a step would fail."""
    for name, value in vars(text_config(config)).items():
        is_share = "dropout" in name or name.endswith("pdrop")
        if is_share and isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value < 1:
            problem = f"its config.json says `{name}: {value}`, and a share is at least 0 and below 1"
            raise UserError(place, problem, f"set `{name}: 0.0` in its config.json")


# What a model returns beside its result. `PackedCausalLM` reads the result by its name, and keeps nothing else.
_USUAL_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


def _with_usual_outputs(config: Any) -> Any:
    """The configuration, changed in place: a model of it returns what others return."""
    for part in parts_of(config):
        for name, value in _USUAL_OUTPUTS.items():
            if getattr(part, name, value) != value:
                setattr(part, name, value)
    return config


def check_config(config: Any, settings: ModelSettings) -> None:
    """Raise UserError for a base that is made for shorter texts than the recipe wants."""
    longest = getattr(text_config(config), "max_position_embeddings", None)
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
    config = text_config(config)
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


class LayerWidths(NamedTuple):
    """Numbers per token in a decoder layer, each the mean over the layers, which differ in some families.

    query, key, value, output: of all heads; the output of attention is that before its projection. intermediate: of
    the MLP.
    """

    query: int
    key: int
    value: int
    output: int
    intermediate: int


def layer_widths(config: Any) -> LayerWidths:
    """Widths of the layers of a `transformers` config; a model without attention heads has 0 there."""
    config = text_config(config)
    differ = getattr(config, "is_heterogeneous", False)
    widths = [_widths_of_one(layer) for layer in (config.per_layer_config if differ else [config])]
    return LayerWidths(*(sum(column) // len(widths) for column in zip(*widths, strict=True)))


def _widths_of_one(config: Any) -> LayerWidths:
    """Configs that do not name a head dimension share `hidden_size` over the heads.

    In latent attention (DeepSeek) keys have a part with and one without positions, and values another dimension.
    """
    heads = getattr(config, "num_attention_heads", None) or 0
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    key_dim = value_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    if getattr(config, "qk_nope_head_dim", None):
        key_dim, value_dim = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    return LayerWidths(
        query=heads * key_dim,
        key=key_heads * key_dim,
        value=key_heads * value_dim,
        output=heads * value_dim,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
    )


def model_without_weights(config: Any) -> Any:
    """The causal LM of a `transformers` config on the meta device: it has shapes, but no values and no memory."""
    try:
        with torch.device("meta"):
            return new_model(config)
    except UserError:
        raise
    except Exception as error:  # any kind: sizes that are zero or of a wrong type
        problem = f"transformers cannot make a causal language model of its configuration: {reason_of(error)}"
        raise UserError("model", problem, _REMEDY) from None


def num_parameters(model: Any, vocab_size: int) -> int:
    """Parameters of a model with rows for `vocab_size` tokens."""
    config = text_config(model.config)
    tables = 1 if is_tied(model.config) else 2
    count = sum(parameter.numel() for parameter in model.parameters())
    return int(count + num_added_rows(model, vocab_size) * config.hidden_size * tables)


def num_frozen_parameters(model: Any) -> int:
    """Parameters that a run holds and does not train: those of a wrapper outside its language model and head."""
    return sum(parameter.numel() for parameter in other_parts(model)) if is_wrapper(model.config) else 0


def num_added_rows(model: Any, vocab_size: int) -> int:
    """Tokens that the base has no row for."""
    return int(max(0, vocab_size - text_config(model.config).vocab_size))
