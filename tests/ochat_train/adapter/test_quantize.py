"""Weights in 4 bits: the layout of bitsandbytes, what is computed with them, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.errors import UserError
from ochat_train.adapter import nf4
from ochat_train.adapter.build import add_adapter
from ochat_train.adapter.nf4 import Nf4Linear, QuantisedWeight, dequantise, quantise
from ochat_train.adapter.quantize import (
    check_kernels,
    dequantise_base,
    layer_obstacle,
    package_obstacle,
    quantise_base,
)
from ochat_train.adapter.targets import linear_modules
from ochat_train.model.batch import PackShape, pack_batch
from ochat_train.model.layers import set_layer_forward
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.structure import decoder_layers
from ochat_train.model.weights.load import load_weights
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.recipe.sections.model import ModelSettings
from tests.support.measured import Measured
from tests.support.reference import FakeSplit, as_float64, random_conversations, reference_loss, relative_error
from tests.support.tiny_model import VOCAB, tiny_model

CPU = torch.device("cpu")
SETTINGS = AdapterSettings(type="qlora", rank=4)


def random_weight(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) * torch.rand((shape[0], 1), generator=generator)).to(dtype)


@pytest.mark.parametrize("shape", [(64, 96), (512, 160)])
def test_codes_are_those_of_bitsandbytes_and_weights_are_as_close(shape: tuple[int, int]) -> None:
    from bitsandbytes import functional

    weight = random_weight(*shape, dtype=torch.bfloat16)
    packed, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    ours = quantise(weight)
    assert torch.equal(ours.packed, packed.flatten())
    assert (ours.scales.int() - state.absmax.int()).abs().max() <= 1, "a tie between two neighbours"
    codes = functional.get_4bit_type("nf4", device="cpu")
    nibbles = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten().int()
    exact = codes[nibbles].reshape(-1, 64) * weight.float().reshape(-1, 64).abs().amax(dim=1, keepdim=True)
    found = dequantise(ours, torch.float32).reshape(-1, 64)
    assert ((found - exact).norm() / exact.norm()) < 0.02, "scales in 8 bits"
    assert 0.05 < ((found - weight.float().reshape(-1, 64)).norm() / weight.float().norm()) < 0.12, "weights in 4"
    assert torch.equal(dequantise(ours, torch.bfloat16), found.reshape(shape).bfloat16())


def test_the_offset_of_scales_has_no_order() -> None:
    values = torch.tensor([2.0**24, 1.0, 1.0, 3.0] * 1000)
    mixed = values.sort().values
    assert nf4._mean(values) == nf4._mean(mixed) == pytest.approx(float(values.double().mean()), rel=1e-9)
    sums = {float(np.cumsum(tensor.numpy(), dtype=np.float32)[-1]) for tensor in (values, mixed)}
    assert len(sums) == 2, "the control: a sum of float32 has one"
    assert nf4._mean(torch.zeros(3)) == 0.0


def test_weights_without_a_layout_are_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        quantise(torch.zeros(3, 5))
    weight = random_weight(64, 64)
    weight[3, 7] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        quantise(weight)
    assert torch.equal(dequantise(quantise(torch.zeros(4, 64)), torch.float32), torch.zeros(4, 64))


@pytest.mark.gpu
def test_every_device_stores_the_same_bits() -> None:
    weight = random_weight(4096, 1408, dtype=torch.bfloat16)
    ours, theirs = quantise(weight), quantise(weight.cuda())
    for name in ("packed", "scales", "constants"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name).cpu()), name
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantise(ours, dtype), dequantise(theirs, dtype).cpu())
    check_kernels(torch.device("cuda"))


def quantised_model() -> Any:
    model = tiny_model()
    quantise_base(model, device=CPU, dtype=torch.float32)
    return model


ROWS = random_conversations(np.random.default_rng(0), [40, 3, 25], vocab_size=VOCAB)
BATCH = pack_batch(
    FakeSplit(ROWS, [0, 1, 0]), np.array([0, 1, 2]), PackShape(pack_length=80, max_seqlen=80, max_sequences=4)
)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trained = {name: found for name, found in model.named_parameters() if found.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def truth_of(base: Any) -> dict[str, torch.Tensor]:
    """Gradients in float64, each conversation alone."""
    model = as_float64(with_adapter(base))
    return gradients(model, reference_loss(model, ROWS))


def with_adapter(model: Any) -> Any:
    add_adapter(model, SETTINGS)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("checkpointing", ["none", "matmuls", "full"])
def test_gradients_are_those_of_the_dequantised_base_in_float64(checkpointing: str, measured: Measured) -> None:
    model, base = quantised_model(), quantised_model()
    dequantise_base(base, dtype=torch.float32)
    layers = decoder_layers(with_adapter(model))
    set_layer_forward(layers, checkpointing=[checkpointing] * len(layers), compiled=False)
    found = gradients(model, PackedCausalLM(model, num_classes=2)(BATCH).weighted_nll)
    expected = truth_of(base)
    assert found.keys() == expected.keys()
    worst = max(relative_error(found[name], expected[name]) for name in expected)
    measured("qlora: gradients of A and B against float64 on the dequantised base", worst)
    assert worst < 5e-6
    other = truth_of(tiny_model())
    apart = min(relative_error(other[name], expected[name]) for name in expected)
    measured("control: qlora: gradients on the base before it was quantised", apart)
    assert apart > 1e-3


@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "aot_eager"), pytest.param("cuda", "inductor", marks=pytest.mark.gpu)]
)
def test_one_graph_that_keeps_no_weight_for_the_backward_pass(device: str, backend: str) -> None:
    model = tiny_model()
    quantise_base(model, device=torch.device(device), dtype=torch.float32)
    layer = decoder_layers(with_adapter(model).to(device))[0].mlp
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() if tensor.is_floating_point() else 0)
        return tensor

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = compiled(x)
    expected = layer(x)
    assert relative_error(found, expected) < 1e-6
    assert relative_error(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, expected))) < 1e-6
    assert max(sizes) < 32 * 64, "less than a weight"
    dequantise_base(model, dtype=torch.float32)
    plain = decoder_layers(model)[0].mlp
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        torch.compile(plain, fullgraph=True, backend=backend)(x)
    assert max(sizes) >= 32 * 64, "the control: of a plain module it keeps the weight"


def test_a_module_reads_like_a_linear_one_and_has_no_state() -> None:
    plain = torch.nn.Linear(64, 96)
    module = Nf4Linear(quantise(plain.weight), plain.bias, dtype=torch.float32)
    weight = module.weight
    assert list(module.state_dict()) == ["bias"]
    assert [name for name, _ in module.named_parameters()] == ["bias"]
    x = torch.randn(3, 64)
    assert torch.equal(module(x), torch.nn.functional.linear(x, weight, plain.bias))
    torch.nn.Sequential(module).bfloat16()
    assert torch.equal(module.weight, weight), "a cast of the model leaves the numbers alone"


def test_modules_are_freed_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    modules = [weakref.ref(module) for module in linear_modules(model).values()]
    alive: list[int] = []

    def noting(weight: torch.Tensor) -> QuantisedWeight:
        alive.append(sum(module() is not None for module in modules))
        return quantise(weight)

    monkeypatch.setattr("ochat_train.adapter.quantize.quantise", noting)
    quantise_base(model, device=CPU, dtype=torch.float32)
    assert alive[1:] == list(range(14, 0, -1))  # the first is of `check_kernels`


def test_what_cannot_be_quantised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.AutoConfig.for_model(
        "mixtral", vocab_size=99, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_local_experts=4
    )
    with torch.device("meta"):
        experts = transformers.AutoModelForCausalLM.from_config(config)
    assert "experts" in (layer_obstacle(decoder_layers(experts)) or "")
    assert layer_obstacle(decoder_layers(tiny_model())) is None
    assert package_obstacle() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        quantise_base(tiny_model(), device=CPU, dtype=torch.float32)


def test_kernels_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels(CPU)

    def wrong(weight: QuantisedWeight, dtype: torch.dtype) -> torch.Tensor:
        return dequantise(weight, dtype).roll(1)

    monkeypatch.setattr("ochat_train.adapter.quantize.dequantise", wrong)
    with pytest.raises(UserError, match="give other numbers"):
        check_kernels(CPU)


StoredBase = Callable[..., Path]


@pytest.fixture
def stored_base(tmp_path: Path) -> StoredBase:
    """Writes a base that bitsandbytes stored in 4 bits."""

    def write(**options: Any) -> Path:
        tiny_model(hidden_size=64, head_dim=16).save_pretrained(tmp_path / "plain")
        config = transformers.BitsAndBytesConfig(load_in_4bit=True, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "plain", quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
        )
        model.save_pretrained(tmp_path / "stored")
        return tmp_path / "stored"

    return write


def settings_of(folder: Path) -> ModelSettings:
    return ModelSettings(path=str(folder), template="openchat_3.5", max_length_tokens=64)


@pytest.mark.parametrize(
    "options",
    [{"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, {"bnb_4bit_quant_type": "fp4"}],
    ids=["nf4", "fp4"],
)
def test_a_base_that_is_stored_in_4_bits_is_taken_over_bit_for_bit(
    options: dict[str, Any], stored_base: StoredBase
) -> None:
    from bitsandbytes import functional

    folder = stored_base(**options)
    config = transformers.AutoConfig.from_pretrained(folder)
    arguments: dict[str, Any] = {"dtype": torch.float32, "attention": "sdpa", "seed": 0}
    with pytest.raises(UserError, match="qlora"):
        load_weights(settings_of(folder), copy.deepcopy(config), **arguments)
    model = load_weights(settings_of(folder), config, for_qlora=True, **arguments)
    stored = model.model.layers[1].mlp.up_proj.weight
    expected = functional.dequantize_4bit(stored.data, stored.quant_state)
    quantise_base(model, device=CPU, dtype=torch.float32)
    module = model.model.layers[1].mlp.up_proj
    assert torch.equal(module.packed, stored.data.flatten())
    assert torch.equal(module.weight.to(expected.dtype), expected)
    assert not hasattr(model.config, "quantization_config"), "an export is not quantised"
    assert model.float() is model, "transformers refuses it of a quantised model"


def test_other_quantised_bases_are_refused_by_name(stored_base: StoredBase) -> None:
    folder = stored_base()
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UserError, match=r"gptq.*bitsandbytes stored in 4 bits"):
        load_weights(settings_of(folder), config, dtype=torch.float32, attention="sdpa", seed=0, for_qlora=True)
