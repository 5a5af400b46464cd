"""What an adapter changes in the memory and the work of a run: counted from the base's shapes, without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ochat_train.adapter.targets import linear_modules, target_modules
from ochat_train.model.base_class import is_tied, text_config
from ochat_train.model.config import num_added_rows
from ochat_train.model.structure import decoder_layers
from ochat_train.recipe.sections.adapter import AdapterSettings

# NF4 with double quantisation (arXiv 2305.14314): 4 bits a weight, an 8-bit constant for each block of 64 weights, and
# a float32 constant for each 256 of those.
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """What memory and work of an adapter depend on.

    num_trained: parameters of A, B and DoRA's lengths, and of rows of tokens that are trained. num_in_products: of
    these, those of matrix products, A and B. num_quantised: weights of the base that are kept in NF4.
    largest_quantised: of these, weights of the largest module, which is made bfloat16 for each of its products.
    input_bytes, product_bytes: what a layer keeps per token in 16-bit precision, the mean over layers: what targeted
    modules read and nothing else keeps, and results of A (with DoRA also those of the base).
    """

    num_trained: int
    num_in_products: int
    num_quantised: int
    largest_quantised: int
    input_bytes: float
    product_bytes: float


def adapter_shape(settings: AdapterSettings | None, model: Any, *, vocab_size: int) -> AdapterShape | None:
    """The shape of an adapter on a base; None for no adapter.

    model: the base without the adapter; it may have no weights. vocab_size: of the tokenizer; rows that the base does
    not have are trained, in embedding and head. Raises UserError for targets that do not fit the base.
    """
    if settings is None:
        return None
    targets = target_modules(model, settings)
    layers = decoder_layers(model)
    modules = dict(model.named_modules())
    linears = [modules[name] for name in targets]
    in_products = sum(settings.rank * (linear.in_features + linear.out_features) for linear in linears)
    lengths = sum(linear.out_features for linear in linears) if settings.dora else 0
    tables = 1 if is_tied(model.config) else 2
    rows = num_added_rows(model, vocab_size) * tables * text_config(model.config).hidden_size
    in_layers = linear_modules(model).values() if settings.type == "qlora" else ()
    sizes = [linear.in_features * linear.out_features for linear in in_layers]
    return AdapterShape(
        num_trained=in_products + lengths + rows,
        num_in_products=in_products,
        num_quantised=sum(sizes),
        largest_quantised=max(sizes, default=0),
        input_bytes=2.0 * _kept_inputs(settings, modules, targets) / len(layers),
        product_bytes=2.0 * (settings.rank * len(linears) + lengths) / len(layers),
    )


def _kept_inputs(settings: AdapterSettings, modules: Mapping[str, Any], targets: Sequence[str]) -> int:
    """Numbers per token that targeted modules read, over all layers.

    A needs what it reads for its gradient; the base's weight does not. Modules of one parent that read as many numbers
    read the same ones: queries, keys and values the norm's result, gate and up projection another's. What attention
    gives is kept by attention, so its projection adds nothing. With dropout every module reads its own numbers.
    """
    if settings.dropout:
        return sum(modules[name].in_features for name in targets)
    groups = {(name.rpartition(".")[0], modules[name].in_features) for name in targets}
    return sum(width for _, width in groups)
