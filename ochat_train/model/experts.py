"""Mixtures of experts: the loss that balances their routers, and how many tokens each expert gets.

Shape letters: T tokens of a micro-batch, L layers with experts, E experts of a layer, K experts of a token.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.model.base_class import text_config
from ochat_train.recipe.sections.model import ModelSettings

_PLACE = "model.router_aux_loss"
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")  # in the config.json of different families
_PARAMETERS = ("gate_logits", "num_experts", "top_k", "attention_mask")  # of the function of `transformers`


@dataclass(frozen=True, kw_only=True)
class RouterLoss:
    """The load-balancing loss of a family, as `transformers` computes it, times a coefficient.

    function: the family's own. For a batch of n tokens it is E * sum_e f_e * P_e, where over all layers f_e is the mean
    number of times that a token is sent to expert e (no gradient), and P_e is the mean of its router's softmax
    (Switch Transformer, arXiv 2101.03961, equations 4 to 6). Where all experts get the same it is `top_k`.
    """

    function: Callable[..., torch.Tensor]
    num_experts: int
    top_k: int
    coefficient: float

    def __call__(self, router_logits: Sequence[torch.Tensor], pack_tokens: Sequence[int]) -> torch.Tensor:
        """coefficient * sum over packs of n_p * loss_p, float32 scalar: divided by the tokens of a step it is the mean
        over its packs, by their tokens, on however many GPUs they were.

        router_logits: [T, E] for each layer with experts. pack_tokens: n_p, tokens without padding of each of the packs
        that T is cut into. Each pack is one batch, so that the loss does not depend on how many packs a GPU works
        on at once. Padding counts nowhere.
        """
        total = router_logits[0].new_zeros((), dtype=torch.float32)
        pack_length = len(router_logits[0]) // len(pack_tokens)
        for number, num_tokens in enumerate(pack_tokens):
            if num_tokens == 0:
                continue
            start = number * pack_length  # padding is at the end of a pack
            logits = tuple(layer[start : start + num_tokens].float() for layer in router_logits)
            total = total + num_tokens * self.function(logits, self.num_experts, self.top_k)
        return self.coefficient * total


def router_loss_of(causal_lm: Any, settings: ModelSettings) -> RouterLoss | None:
    """The router loss that a run of this model adds, None for none.

    Raises UserError where the recipe asks for one that `transformers` does not have for this family.
    """
    coefficient = router_coefficient(causal_lm.config, settings)
    if coefficient == 0.0:
        return None
    family = causal_lm.config.model_type
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    places = (causal_lm, text_config(causal_lm.config))
    names = ("num_experts", "num_experts_per_tok")
    counts = [next((found for place in places if (found := getattr(place, name, None))), None) for name in names]
    code = getattr(function, "__code__", None)
    takes = None if code is None else code.co_varnames[: code.co_argcount]
    if takes != _PARAMETERS or not all(isinstance(count, int) and count > 0 for count in counts):
        raise UserError(
            _PLACE,
            f"`transformers` has no load-balancing loss for {family}, so its coefficient cannot be {coefficient:g}",
            f"{_PLACE}: 0",
        )
    return RouterLoss(function=function, num_experts=counts[0], top_k=counts[1], coefficient=coefficient)  # type: ignore[arg-type]


def router_coefficient(config: Any, settings: ModelSettings) -> float:
    """The coefficient of the router loss: the recipe's, or else the config's where its `output_router_logits` is true.

    `transformers` adds the loss only then, so a config with a coefficient alone means none.
    """
    if settings.router_aux_loss is not None:
        return settings.router_aux_loss
    text = text_config(config)
    if not getattr(text, "output_router_logits", False):
        return 0.0
    return float(next((getattr(text, name) for name in _COEFFICIENTS if getattr(text, name, None)), 0.0))


def records_router_logits(config: Any) -> bool:
    """Whether a config has a switch for recording router logits, on or off."""
    return hasattr(text_config(config), "output_router_logits")


def router_logits_of(outputs: Any, num_tokens: int) -> tuple[torch.Tensor, ...]:
    """The router logits, [T, E] for each layer with experts, in what a base model returned for one row of T tokens."""
    recorded = getattr(outputs, "router_logits", None) or ()
    logits = tuple(layer.reshape(-1, layer.shape[-1]) for layer in recorded if layer is not None)
    if not logits or any(len(layer) != num_tokens for layer in logits):
        raise UserError(
            _PLACE, "this model does not hand out the router logits of every token of a pack", f"{_PLACE}: 0"
        )
    return logits


def expert_count(config: Any) -> int:
    """Experts of a layer by its config, 0 for a model without experts; families name this key in three ways."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((count for name in names if (count := getattr(config, name, None))), 0)


def expert_layers(model: torch.nn.Module) -> list[Any]:
    """The modules that hold the experts of a layer and are told which tokens go to which, in order of the layers.

    `transformers` marks them with `use_experts_implementation`; their forward takes hidden states [T, D], the experts
    of each token [T, K] and the weights of these [T, K].
    """
    return [module for module in model.modules() if hasattr(module, "has_gate") and hasattr(module, "num_experts")]


@dataclass
class ExpertCounter:
    """Counts the tokens of each expert while a model computes a micro-batch. One for a model.

    layers: of `expert_layers`, all with E experts; not in compiled code.
    """

    layers: Sequence[Any]
    _counts_LE: torch.Tensor | None = field(default=None, init=False)
    _is_token_T: torch.Tensor | None = field(default=None, init=False)
    _counted: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        for number, layer in enumerate(self.layers):
            name = list(inspect.signature(layer.forward).parameters)[1]
            layer.register_forward_pre_hook(partial(self._count, number, name), with_kwargs=True)

    @classmethod
    def of(cls, causal_lm: torch.nn.Module) -> ExpertCounter | None:
        """The counter of a model, None for one without experts, and where layers have different numbers of them."""
        layers = expert_layers(causal_lm)
        return cls(layers) if len({layer.num_experts for layer in layers}) == 1 else None

    @contextmanager
    def counting(self, pack_tokens: Sequence[int], num_tokens: int, device: torch.device) -> Iterator[None]:
        """Count inside, and not what is computed again in the backward pass.

        pack_tokens: as in `RouterLoss`. num_tokens: T.
        """
        num_experts: Any = self.layers[0].num_experts
        # one column more: some routers send a token to no expert by a number that no expert has
        self._counts_LE = torch.zeros(len(self.layers), num_experts + 1, dtype=torch.int64, device=device)
        position = torch.arange(num_tokens // len(pack_tokens), device=device)
        self._is_token_T = torch.cat([position < tokens for tokens in pack_tokens]).long()
        self._counted.clear()
        try:
            yield
        finally:
            self._is_token_T = None

    def counts_LE(self) -> torch.Tensor | None:
        """int64[L, E]: how many tokens each expert got of the last micro-batch, without padding; a token counts for
        each expert that it was sent to. None where a layer did not get all tokens.
        """
        if self._counts_LE is None or len(self._counted) < len(self.layers):
            return None
        return self._counts_LE[:, :-1]

    @torch.no_grad()
    def _count(self, number: int, name: str, _: torch.nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if self._counts_LE is None or self._is_token_T is None:
            return
        choices_TK = kwargs[name] if name in kwargs else args[1]
        if choices_TK.dim() != 2 or len(choices_TK) != len(self._is_token_T):
            return
        ones_TK = self._is_token_T[:, None].expand(choices_TK.shape)
        row_E = self._counts_LE[number]
        row_E.scatter_add_(0, choices_TK.reshape(-1).clamp(0, len(row_E) - 1), ones_TK.reshape(-1))
        self._counted.add(number)
