"""The model: an unmodified `transformers` causal LM, wrapped so that a pack goes in and loss sums come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.register import register_attention
from ochat_train.model.base_class import text_config
from ochat_train.model.borders import sequence_mixers
from ochat_train.model.config import load_base_config, model_dtype
from ochat_train.model.experts import router_coefficient, router_loss_of
from ochat_train.model.float8 import use_float8
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.proof.base import prove_base
from ochat_train.model.proof.errors import explained
from ochat_train.model.structure import check_head, decoder_layers
from ochat_train.model.weights.load import load_weights
from ochat_train.model.weights.token_rows import (
    ControlTokens,
    UntrainedRows,
    add_token_rows,
    check_pieces,
    set_untrained_rows,
)
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.recipe.sections.model import ModelSettings


class BuiltModel(NamedTuple):
    """A base, ready for `set_up_layers`, and the name of the attention kernel that its layers call.

    untrained_tokens: control tokens whose rows the base had not trained (token_rows.py), for people. new_token_ids:
    those and all other tokens that the base has no row for.
    """

    model: PackedCausalLM
    kernel: str
    untrained_tokens: Sequence[str] = ()
    new_token_ids: Sequence[int] = ()


def build_model(
    settings: ModelSettings,
    manifest: Manifest,
    *,
    device: torch.device,
    seed: int,
    control: ControlTokens | None = None,
    for_qlora: bool = False,
) -> BuiltModel:
    """Prove the base, choose its attention kernel, and load its weights on the CPU, with a row for every token.

    device: where the model will run, which decides kernel and dtype. seed: of the weights of a model from scratch.
    control: tokens of the template, whose rows are set where the base did not train them; None to leave them.
    for_qlora: as in `load_weights`.
    Raises UserError for a base that would be computed wrongly, and for a kernel that cannot run.
    """
    config = load_base_config(settings, manifest.vocab_size)
    if control is not None:
        check_pieces(control, num_rows=text_config(config).vocab_size, base=settings.path)
    kernel = prove_base(config, settings, device=device).kernel
    dtype = model_dtype(settings, device)
    base = load_base(
        settings,
        manifest,
        config,
        dtype=dtype,
        attention=register_attention(kernel),
        seed=seed,
        control=control,
        for_qlora=for_qlora,
    )
    causal_lm = base.causal_lm
    causal_lm.train()
    model = PackedCausalLM(
        causal_lm,
        num_classes=len(manifest.classes),
        max_length_tokens=settings.max_length_tokens,
        device=device,
        router_loss=router_loss_of(causal_lm, settings),
    )
    return BuiltModel(model, kernel, base.untrained_tokens, base.new_token_ids)


class LoadedBase(NamedTuple):
    """A base with its weights and a row for every token. untrained_tokens, new_token_ids: as in `BuiltModel`."""

    causal_lm: Any
    untrained_tokens: Sequence[str]
    new_token_ids: Sequence[int]


def load_base(
    settings: ModelSettings,
    manifest: Manifest,
    config: Any,
    *,
    dtype: torch.dtype,
    attention: str | None,
    seed: int,
    control: ControlTokens | None,
    for_qlora: bool = False,
) -> LoadedBase:
    """Load the weights of a base on the CPU, as a run trains it and as an export of an adapter finds it again.

    config: of `load_base_config`. attention: as `transformers` names it, None for its own choice. seed, control,
    for_qlora: as in `build_model`.
    """
    with explained(config, "cannot be built"):
        causal_lm = load_weights(settings, config, dtype=dtype, attention=attention, seed=seed, for_qlora=for_qlora)
    check_head(causal_lm)
    num_rows = causal_lm.get_input_embeddings().weight.shape[0]
    add_token_rows(causal_lm, vocab_size=manifest.vocab_size)
    untrained: UntrainedRows = UntrainedRows()
    if control is not None and settings.path is not None:
        untrained = set_untrained_rows(causal_lm, control, num_rows=num_rows)
    new_token_ids = sorted({*untrained.ids, *range(num_rows, manifest.vocab_size)})
    return LoadedBase(causal_lm, untrained.texts, new_token_ids)


def is_compiled(
    settings: ModelSettings,
    *,
    kernel: str,
    device: torch.device,
    causal_lm: Any = None,
    adapter: AdapterSettings | None = None,
) -> bool:
    """Whether decoder layers are compiled: as the recipe says, by default on a GPU with a kernel and a base that allow
    it.

    causal_lm: the base, None for one that is known to allow it. adapter: of the recipe. Raises UserError where the
    recipe wants it and the attention kernel, the base or the adapter does not allow it.
    """
    obstacle = None if causal_lm is None else compile_obstacle(causal_lm, settings, adapter)
    if settings.compile and obstacle is not None:
        raise UserError("model.compile", f"true cannot be used: {obstacle}", "model.compile: false")
    compilable = KERNELS[kernel].compilable and obstacle is None
    if settings.compile and not compilable:
        raise UserError(
            "model.compile",
            f"true cannot be used with the attention kernel `{kernel}`",
            f"kernels that fit: {', '.join(sorted(name for name, found in KERNELS.items() if found.compilable))}",
        )
    return device.type == "cuda" and compilable if settings.compile is None else settings.compile


def compile_obstacle(causal_lm: Any, settings: ModelSettings, adapter: AdapterSettings | None) -> str | None:
    """What about a base and the recipe's adapter keeps its layers from being compiled, None if nothing.

    causal_lm: with or without weights and adapter.
    """
    mixer = next(sequence_mixers(causal_lm), None)
    if mixer is not None:
        return f"{type(mixer).__name__} reads the borders of conversations while it runs"
    if adapter is not None:
        if adapter.dora:
            return "DoRA (adapter.dora) changes its modules while they run"
        if adapter.dropout:
            return "with dropout (adapter.dropout) compiled layers would draw other random numbers"
    if router_coefficient(causal_lm.config, settings):
        return "the router loss (model.router_aux_loss) reads router logits, which compiled layers do not hand out"
    return None


def set_up_layers(model: PackedCausalLM, recipe: Recipe, *, checkpointing: Sequence[str], device: torch.device) -> None:
    """Apply float8, compilation and activation checkpointing to the decoder layers, in place.

    recipe: resolved, nothing is `auto`. checkpointing: one of `none`, `matmuls`, `full` per layer.
    """
    layers = decoder_layers(model.causal_lm)
    compiled = bool(recipe.model.compile)
    if recipe.model.float8:
        use_float8(layers, device=device, pack_length=recipe.train.pack_length_tokens, compiled=compiled)
    rank = None if recipe.adapter is None else recipe.adapter.rank
    set_layer_forward(layers, checkpointing=checkpointing, compiled=compiled, rank=rank)
    if not compiled:
        model.count_experts()
