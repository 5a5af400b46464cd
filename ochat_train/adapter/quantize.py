"""The base of `adapter.type: qlora`: the linear modules of its decoder layers in 4 bits, everything else as it was.

Embedding, head and norms stay in the dtype of the forward pass. Modules are quantised one after another on the device
where the model will run, so that it never holds more than one of them in 16 bits.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from data_pipeline.errors import UserError
from ochat_train.adapter.nf4 import GROUP, Nf4Linear, QuantisedWeight, dequantise, quantise
from ochat_train.adapter.targets import linear_modules
from ochat_train.model.structure import decoder_layers

_PLACE = "adapter.type"
_REMEDY = "fix that, or use `adapter.type: lora`"
_LARGE = 0.01  # share of a layer's weights from which it matters that a tensor stays in 16 bits
PACKAGE = "bitsandbytes"


def quantise_base(causal_lm: Any, *, device: torch.device, dtype: torch.dtype) -> None:
    """Replace the linear modules of the decoder layers by quantised ones on `device`, in place.

    causal_lm: with its weights, or with those of a base that is stored in 4 bits, which are taken over as they are.
    dtype: of the forward pass. Raises UserError where packages, device or base do not fit.
    """
    if problem := package_obstacle():
        raise qlora_error(problem)
    if problem := layer_obstacle(decoder_layers(causal_lm)):
        raise qlora_error(problem)
    check_kernels(device)
    for name in list(linear_modules(causal_lm)):  # names alone: a module is freed once it is replaced
        module = causal_lm.get_submodule(name)
        quantised = Nf4Linear(_quantised(module, name, device), module.bias, dtype=dtype)
        quantised.train(module.training)
        causal_lm.set_submodule(name, quantised)
    _forget_storage(causal_lm)


def _forget_storage(causal_lm: Any) -> None:
    """Take out what `transformers` remembers of a base that was stored in 4 bits: it would refuse casts, and write into
    config.json that an export is quantised.
    """
    for name in ("is_quantized", "is_loaded_in_4bit", "hf_quantizer", "quantization_method", "hf_device_map"):
        vars(causal_lm).pop(name, None)
    if getattr(causal_lm.config, "quantization_config", None) is not None:
        del causal_lm.config.quantization_config


def qlora_error(obstacle: str) -> UserError:
    """What is said of an obstacle, before a run and at its start."""
    return UserError(_PLACE, f"qlora cannot be used: {obstacle}", _REMEDY)


def package_obstacle() -> str | None:
    """Why the packages of this machine do not allow it; None where they do."""
    if importlib.util.find_spec(PACKAGE) is None:
        return f"the package {PACKAGE} is not installed (pip install {PACKAGE})"
    return None


def layer_obstacle(layers: Any) -> str | None:
    """Why the decoder layers of a base cannot be quantised; None where they can."""
    for number, layer in enumerate(layers):
        linear = {f"{name}.weight" for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
        sizes = {name: parameter.numel() for name, parameter in layer.named_parameters() if parameter.ndim > 1}
        others = [name for name in sizes if name not in linear and sizes[name] > _LARGE * sum(sizes.values())]
        if others:
            return f"{others[0]} of layer {number} is not a linear module, and would stay in 16 bits"
    return None


def check_kernels(device: torch.device) -> None:
    """Raise UserError unless the kernels of bitsandbytes compute on `device` what the layout says, bit for bit."""
    columns, rows = torch.arange(160, device=device, dtype=torch.float32), torch.arange(128, device=device)
    weight = quantise(torch.sin(rows[:, None] * 0.37 + columns * 1.7) * (1 + rows[:, None] % 7))
    try:
        found = dequantise(weight, torch.float32)
    except Exception as error:  # whatever a kernel for another GPU or another CUDA raises
        raise qlora_error(f"the kernels of {PACKAGE} do not run on this device ({error})") from None
    if not torch.equal(found, _plainly_dequantised(weight)):
        raise qlora_error(f"the kernels of {PACKAGE} give other numbers on this device than its layout says")


def _plainly_dequantised(weight: QuantisedWeight) -> torch.Tensor:
    """A weight in NF4 without kernels, float32."""
    from bitsandbytes.functional import get_4bit_type  # type: ignore[import-not-found, unused-ignore]

    constants = weight.constants.view(torch.float32)
    group_scales = constants[257:].repeat_interleave(GROUP)[: len(weight.scales)]
    scales = constants[1:257][weight.scales.int()] * group_scales + constants[0]
    codes = torch.stack([weight.packed >> 4, weight.packed & 15], dim=1).int()
    entries: torch.Tensor = get_4bit_type("nf4", device=weight.packed.device)[codes]
    return (entries.reshape(-1, weight.block) * scales[:, None]).reshape(weight.shape)


def _quantised(module: torch.nn.Linear, place: str, device: torch.device) -> QuantisedWeight:
    state = getattr(module.weight, "quant_state", None)
    if state is not None:
        return _stored(module.weight, state, place, device)
    try:
        return quantise(module.weight.detach().to(device))
    except ValueError as error:
        raise qlora_error(f"{place}: {error}") from None


def _stored(packed: torch.Tensor, state: Any, place: str, device: torch.device) -> QuantisedWeight:
    """The weight of a base that bitsandbytes stored in 4 bits, with the same bits."""
    if getattr(state, "packing_format_for_cpu", False):  # after inference on a CPU
        raise qlora_error(f"{place}: its weights are packed for inference")
    constants, scales = torch.empty(0, dtype=torch.int32, device=device), state.absmax.to(device)
    if state.nested:
        if state.state2.blocksize != GROUP or len(state.state2.code) != 256:
            raise qlora_error(f"{place}: its scales are stored in a layout that is not known")
        numbers = (state.offset.reshape(1), state.state2.code, state.state2.absmax)
        constants = torch.cat([number.float().to(device) for number in numbers]).view(torch.int32)
    else:
        scales = scales.float().view(torch.int32)
    rows, columns = state.shape
    return QuantisedWeight(
        packed=packed.detach().to(device).contiguous().view(torch.uint8).reshape(-1),
        scales=scales,
        constants=constants,
        shape=(rows, columns),
        kind=state.quant_type,
        block=state.blocksize,
    )


def dequantise_base(causal_lm: Any, *, dtype: torch.dtype) -> None:
    """Replace quantised modules by plain ones with the weights that the forward pass used, in `dtype`, in place."""
    for name, module in list(causal_lm.named_modules()):
        if isinstance(module, Nf4Linear):
            with torch.device("meta"):
                plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight = torch.nn.Parameter(module.weight.to(dtype), requires_grad=False)
            plain.bias = None if module.bias is None else torch.nn.Parameter(module.bias.to(dtype), requires_grad=False)
            plain.train(module.training)
            causal_lm.set_submodule(name, plain)
