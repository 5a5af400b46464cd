"""AdamW on small states: unpacks a chunk of them, updates, and packs it again.

Made for the flat tensors that DeepSpeed's ZeRO gives an optimizer: a step needs no float32 copy of them, only of a
chunk, or none where the update is compiled into one kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ochat_train.optimizer.codes import (
    BLOCK,
    first_codes,
    first_values,
    joined_master,
    random_bits,
    rounded_bfloat16,
    second_codes,
    second_values,
    split_master,
)

_CHUNKS = {"cuda": 1 << 25, "cpu": 1 << 18}  # numbers updated at once: few launches; what fits into a cache
_MASK = (1 << 64) - 1


class SmallAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay, as torch's) with `optimizer.states` `8bit` or `bfloat16`.

    Parameters that are bfloat16 have 8 more bits as a state (codes.py); float32 ones are updated as they are.
    Arithmetic is float32 throughout.
    seed: decides the rounding. part: which part of each tensor this rank has, where ZeRO cuts them; 0 where it does
    not. compiled: compile the update, for a GPU.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        states: str,
        seed: int,
        part: int = 0,
        compiled: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.states = states
        self._seed, self._part = seed, part
        kernel: Callable[..., None] = _update_8bit if states == "8bit" else _update_bfloat16

        def update(**tensors: torch.Tensor | None) -> None:
            kernel(**tensors, betas=betas, eps=eps)  # constants of the compiled kernel

        self._eager = update
        self._update = torch.compile(update, fullgraph=True) if compiled else update

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "DeepSpeed computes gradients before the update"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_of(parameter, group)

    def _step_of(self, parameter: torch.Tensor, group: Mapping[str, Any]) -> None:
        state = self._state_of(parameter)
        state["step"] += 1
        step, (beta1, beta2), lr = state["step"], group["betas"], group["lr"]
        numbers = (lr * group["weight_decay"], lr / (1 - beta1**step), (1 - beta2**step) ** -0.5)
        device = parameter.device
        assert parameter.grad is not None, "only parameters with a gradient are updated"
        weight, gradient = parameter.detach().view(-1), parameter.grad.detach().view(-1)
        # `full` does not wait for the GPU, as a copy from the host would.
        shared = {
            "sizes": torch.stack([torch.full((), number, dtype=torch.float32, device=device) for number in numbers]),
            "key": torch.full((), _key(self._seed, step, state["number"]), dtype=torch.int64, device=device),
        }
        num = weight.numel()
        most, whole = _CHUNKS.get(device.type, _CHUNKS["cpu"]), num // BLOCK * BLOCK
        for begin in range(0, num, most):
            for start, stop in _blocks_and_rest(begin, min(begin + most, num), whole):
                tensors = _chunk_of(state, weight, gradient, slice(start, stop))
                place = torch.full((), self._part * num + start, dtype=torch.int64, device=device)
                if stop <= whole:
                    self._update(**_as_blocks(tensors), start=place, **shared)
                else:
                    self._update_rest(tensors, start=place, **shared)

    def _update_rest(self, tensors: dict[str, torch.Tensor | None], **shared: torch.Tensor) -> None:
        """Update less than a block, in a block that is filled up with zeros."""
        padded = _as_blocks(tensors)
        self._eager(**padded, **shared)
        for name, tensor in tensors.items():
            if tensor is not None and name != "gradient":
                whole = padded[name]
                assert whole is not None, "made of this tensor"
                tensor.copy_(whole.view(-1)[: tensor.numel()])

    def _state_of(self, parameter: torch.Tensor) -> dict[str, Any]:
        """The states of a parameter; zeros before its first update."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state |= {"step": 0, "number": len(self.state) - 1, **self._zeros(parameter)}
        return state

    def _zeros(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        num, device = parameter.numel(), parameter.device
        zeros: dict[str, torch.Tensor] = {}
        if parameter.dtype == torch.bfloat16:
            zeros["rest"] = torch.zeros(num, dtype=torch.int8, device=device)
        if self.states == "bfloat16":
            names = ("first", "second")
            return zeros | {name: torch.zeros(num, dtype=torch.bfloat16, device=device) for name in names}
        scales = -(-num // BLOCK)
        return zeros | {
            "first": torch.zeros(num, dtype=torch.int8, device=device),
            "first_scales": torch.zeros(scales, dtype=torch.float32, device=device),
            "second": torch.zeros(num, dtype=torch.uint8, device=device),
            "second_scales": torch.zeros(scales, dtype=torch.float32, device=device),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave. Keeps dtypes, where torch would cast every state to its parameter's."""
        super().load_state_dict({**state_dict, "state": {}})
        ids = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(ids, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                is_tensor = isinstance(value, torch.Tensor)
                self.state[parameter][name] = value.to(parameter.device, copy=True) if is_tensor else value

    def set_wide_state(
        self,
        parameter: torch.Tensor,
        *,
        number: int,
        step: int,
        fp32: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
    ) -> None:
        """Store states that are float32[N], rounded to the nearest: weight, rest and moments. The opposite of
        `wide_state`. number: of the parameter, in the order of updates.
        """
        state = self.state[parameter]
        state.clear()
        state |= {"step": step, "number": number, **self._zeros(parameter)}
        device = parameter.device
        weight = parameter.detach().view(-1)
        if "rest" in state:
            # Half of what is dropped is added, so that it is rounded to the nearest.
            half = torch.full((weight.numel(),), 128, device=device)
            rounded, rest = split_master(fp32.to(device), half)
            weight.copy_(rounded)
            state["rest"].copy_(rest)
        else:
            weight.copy_(fp32)
        if self.states == "bfloat16":
            state["first"].copy_(exp_avg)
            state["second"].copy_(exp_avg_sq)
            return
        nums = weight.numel()
        first, first_scales = first_codes(_blocks(exp_avg.to(device)))
        moments = _blocks(exp_avg_sq.to(device))
        second, second_scales = second_codes(moments, torch.full_like(moments, 0.5))
        state["first"].copy_(first.view(-1)[:nums])
        state["second"].copy_(second.view(-1)[:nums])
        state["first_scales"].copy_(first_scales)
        state["second_scales"].copy_(second_scales)


def wide_state(state: Mapping[str, Any], weight: torch.Tensor) -> dict[str, Any]:
    """States of a parameter as `SmallAdamW` keeps them, in float32 and under torch's names: step, exp_avg, exp_avg_sq,
    and `fp32`, the weight that is updated. weight: the parameter, of any shape.
    """
    flat = weight.reshape(-1)
    fp32 = joined_master(flat, state["rest"]) if "rest" in state else flat.float()
    if "first_scales" in state:
        first = first_values(_blocks(state["first"]), state["first_scales"]).view(-1)[: flat.numel()]
        second = second_values(_blocks(state["second"]), state["second_scales"]).view(-1)[: flat.numel()]
    else:
        first, second = state["first"].float(), state["second"].float()
    return {"step": state["step"], "fp32": fp32, "exp_avg": first, "exp_avg_sq": second}


def _update_8bit(
    weight: torch.Tensor,
    rest: torch.Tensor | None,
    gradient: torch.Tensor,
    first: torch.Tensor,
    first_scales: torch.Tensor,
    second: torch.Tensor,
    second_scales: torch.Tensor,
    sizes: torch.Tensor,
    start: torch.Tensor,
    key: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Update a chunk in place. Tensors are [B, BLOCK], scales [B]."""
    bits = random_bits(start, key, weight.shape[0])
    moments = first_values(first, first_scales), second_values(second, second_scales)
    new_first, new_second = _moved(moments, gradient, betas)
    _update_weight(weight, rest, new_first, new_second, sizes, bits, eps)
    for target, source in zip((first, first_scales), first_codes(new_first), strict=True):
        target.copy_(source)
    random = ((bits >> 8) & 0xFFFFFF).float() * 2.0**-24
    for target, source in zip((second, second_scales), second_codes(new_second, random), strict=True):
        target.copy_(source)


def _update_bfloat16(
    weight: torch.Tensor,
    rest: torch.Tensor | None,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    sizes: torch.Tensor,
    start: torch.Tensor,
    key: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Update a chunk in place. Tensors are [B, BLOCK]."""
    bits = random_bits(start, key, weight.shape[0])
    new_first, new_second = _moved((first.float(), second.float()), gradient, betas)
    _update_weight(weight, rest, new_first, new_second, sizes, bits, eps)
    first.copy_(new_first)
    second.copy_(rounded_bfloat16(new_second, (bits >> 8) & 0xFFF))


def _moved(
    moments: tuple[torch.Tensor, torch.Tensor], gradient: torch.Tensor, betas: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both moments after a gradient, float32."""
    gradient = gradient.float()
    (first, second), (beta1, beta2) = moments, betas
    return first * beta1 + gradient * (1 - beta1), second * beta2 + gradient * gradient * (1 - beta2)


def _update_weight(
    weight: torch.Tensor,
    rest: torch.Tensor | None,
    first: torch.Tensor,
    second: torch.Tensor,
    sizes: torch.Tensor,
    bits: torch.Tensor,
    eps: float,
) -> None:
    """sizes: float32[3], learning rate times weight decay; learning rate over the bias correction of the first moment;
    one over the root of that of the second.
    """
    master = weight.float() if rest is None else joined_master(weight, rest)
    master = master - master * sizes[0] - first * sizes[1] / (second.sqrt() * sizes[2] + eps)
    if rest is None:
        weight.copy_(master)
        return
    for target, source in zip((weight, rest), split_master(master, bits & 0xFF), strict=True):
        target.copy_(source)


def _blocks_and_rest(start: int, stop: int, whole: int) -> Iterator[tuple[int, int]]:
    """A range, cut where the whole blocks end, if that is inside it."""
    cuts = [start, *([whole] if start < whole < stop else []), stop]
    yield from itertools.pairwise(cuts)


def _chunk_of(
    state: Mapping[str, Any], weight: torch.Tensor, gradient: torch.Tensor, chunk: slice
) -> dict[str, torch.Tensor | None]:
    """Views of a chunk that begins with a block: weight, gradient, states; None for a state that there is not."""
    scales = slice(chunk.start // BLOCK, -(-chunk.stop // BLOCK))
    views: dict[str, torch.Tensor | None] = {"weight": weight[chunk], "gradient": gradient[chunk], "rest": None}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            views[name] = value[scales if name.endswith("_scales") else chunk]
    return views


def _as_blocks(tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """`_blocks` of all tensors but scales."""
    return {name: tensor if name.endswith("_scales") else _blocks(tensor) for name, tensor in tensors.items()}


def _blocks(tensor: torch.Tensor | None) -> Any:
    """[N] as [B, BLOCK]: a view, or a copy with zeros at the end where N is not whole blocks. None for None."""
    if tensor is None:
        return None
    missing = -tensor.numel() % BLOCK
    whole = torch.cat((tensor, tensor.new_zeros(missing))) if missing else tensor
    return whole.view(-1, BLOCK)


def _key(seed: int, step: int, number: int) -> int:
    """32 bits that decide the rounding of a parameter in a step: splitmix64 of the three."""
    value = 0
    for part in (seed, step, number):
        value = (value + part + 0x9E3779B97F4A7C15) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value >> 32
