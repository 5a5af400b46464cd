"""Attention kernels against a float64 softmax over each conversation alone."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from data_pipeline.errors import UserError
from ochat_train.model import attention
from ochat_train.model.attention.choose import choose_attention
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.needs import check_attention
from ochat_train.model.attention.register import register_attention
from ochat_train.model.attention.sdpa import attention_sdpa
from ochat_train.recipe.sections import ModelSettings
from tests.support.measured import Measured
from tests.support.reference import relative_error

LENGTHS = [[1, 2], [5, 1, 17], [64, 200, 3, 33]]
EXACT_KERNELS = {"flex": 5e-6, "sdpa": 5e-6}  # kernels that also run in float32
FILES = tuple(pkgutil.iter_modules(attention.__path__))
COMPILABLE = sorted(name for name, kernel in KERNELS.items() if kernel.compilable)


def truth(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], window: int | None
) -> torch.Tensor:
    """Softmax attention written out, one conversation and head at a time, with autograd. Shapes [T, H or G, D]."""
    outputs, start = [], 0
    group = query.shape[1] // key.shape[1]
    for length in lengths:
        rows = slice(start, start + length)
        distance = (
            torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)[None, :]
        )
        hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        heads = []
        for head in range(query.shape[1]):
            scores = query[rows, head] @ key[rows, head // group].T * query.shape[2] ** -0.5
            heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value[rows, head // group])
        outputs.append(torch.stack(heads, dim=1))
        start += length
    return torch.cat(outputs)


def check(
    name: str, lengths: list[int], window: int | None, *, device: str, dtype: torch.dtype, head_dim: int = 64
) -> tuple[float, ...]:
    """Relative errors of output and three gradients against float64 of the same inputs."""
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    shapes = ((total, 4, head_dim), (total, 2, head_dim), (total, 2, head_dim), (total, 4, head_dim))
    tensors = [torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu_seqlens = torch.tensor(bounds + [total] * 3, dtype=torch.int32, device=device)  # padded with empty sequences
    results = []
    for precision in (torch.float64, dtype):
        query, key, value = (tensor.to(precision).requires_grad_() for tensor in tensors[:3])
        if precision == torch.float64:
            output = truth(query, key, value, lengths, window)
        else:
            arguments = {"cu_seqlens": cu_seqlens, "max_seqlen": max(lengths), "scale": head_dim**-0.5}
            output = KERNELS[name].run(query, key, value, **arguments, window=window, dropout=0.0)
        output.backward(tensors[3].to(precision))
        results.append((output, query.grad, key.grad, value.grad))
    return tuple(relative_error(found, expected) for expected, found in zip(*results, strict=True))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [None, 16])
def test_sdpa_equals_float64(lengths: list[int], window: int | None, measured: Measured) -> None:
    errors = check("sdpa", lengths, window, device="cpu", dtype=torch.float32)
    measured("attention `sdpa`, float32, output and gradients against float64", max(errors))
    assert max(errors) < 2e-6


def test_attention_stops_at_the_borders_it_is_given(measured: Measured) -> None:
    query, key, value = (torch.randn(30, 2, 8) for _ in range(3))
    apart, together = (
        attention_sdpa(
            query,
            key,
            value,
            cu_seqlens=torch.tensor(borders, dtype=torch.int32),
            max_seqlen=30,
            scale=8**-0.5,
            window=None,
            dropout=0.0,
        )
        for borders in ([0, 10, 30], [0, 30])
    )
    expected = truth(query, key, value, [10, 20], None)
    assert relative_error(apart, expected) < 2e-6
    measured("control: attention across the borders of conversations", relative_error(together, expected))
    assert relative_error(together, expected) > 0.1


def test_dropout_is_applied_by_the_reference() -> None:
    query, key, value = (torch.ones(32, 2, 8) for _ in range(3))
    cu_seqlens = torch.tensor([0, 32], dtype=torch.int32)
    output = attention_sdpa(
        query, key, value, cu_seqlens=cu_seqlens, max_seqlen=32, scale=1.0, window=None, dropout=0.5
    )
    assert not torch.allclose(output, torch.ones_like(output))


def test_what_cannot_run_is_refused_with_the_reason() -> None:
    assert choose_attention("auto", device=torch.device("cpu"), dtype=torch.float32, dropout=0.1) == "sdpa"
    with pytest.raises(UserError, match=r"`varlen` cannot be used: it needs a CUDA GPU; usable here: sdpa"):
        choose_attention("varlen", device=torch.device("cpu"), dtype=torch.float32, dropout=0.0)


def test_every_kernel_is_in_the_table_under_the_name_of_its_file() -> None:
    modules = {found.name: importlib.import_module(f"{attention.__name__}.{found.name}") for found in FILES}
    records = {name: module.KERNEL for name, module in modules.items() if hasattr(module, "KERNEL")}
    assert records == KERNELS
    assert {name: kernel.name for name, kernel in KERNELS.items()} == {name: name for name in KERNELS}


def test_a_recipe_can_name_every_kernel() -> None:
    """The control: a name of no kernel is an error."""
    settings = {"path": "base", "template": "chatml", "max_length_tokens": 8}
    for name in ("auto", *KERNELS):
        assert ModelSettings.model_validate({**settings, "attention": name}).attention == name
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({**settings, "attention": "kernel"})


def test_reading_a_recipe_imports_no_torch() -> None:
    script = "import sys, ochat_train.recipe.load; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": torch.device("cpu")}, "it needs a CUDA GPU"),
        ({"dtype": torch.float32}, "it needs bfloat16"),
        ({"dropout": 0.1}, "it has no dropout, and the model's attention_dropout is 0.1"),
    ],
)
@pytest.mark.parametrize("name", ["flash_attention_4", "flash_attention_3", "varlen"])
def test_the_first_obstacle_of_a_kernel(name: str, changes: dict[str, Any], reason: str) -> None:
    usual = {"device": torch.device("cuda", 0), "dtype": torch.bfloat16, "dropout": 0.0}
    assert KERNELS[name].obstacle(**{**usual, **changes}) == reason


# ---- what `transformers` passes to an attention function ----

SHAPES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def config_of(model_type: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(model_type, **{**SHAPES, **changes})


@pytest.mark.parametrize(
    "model_type",
    ["mistral", "llama", "qwen2", "qwen3", "gemma", "gemma3_text", "olmo2", "phi3", "granite", "cohere", "cohere2"],
)
def test_families_whose_attention_is_computed_whole(model_type: str) -> None:
    """Checked on shapes, and then run: a pack of two conversations gives the hidden states of each alone."""
    config = config_of(model_type)
    state = torch.random.get_rng_state()
    check_attention(config)
    assert torch.equal(torch.random.get_rng_state(), state), "random weights would change"
    torch.manual_seed(0)
    name = register_attention("sdpa")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=name).base_model.eval()
    ids = torch.randint(1, 100, (1, 12))

    def hidden(ids: torch.Tensor, borders: list[int]) -> torch.Tensor:
        positions = torch.cat([torch.arange(end - start) for start, end in pairwise(borders)])
        cu_seqlens = torch.tensor(borders, dtype=torch.int32)
        found = model(
            input_ids=ids, position_ids=positions[None], use_cache=False, cu_seqlens=cu_seqlens, max_seqlen=12
        )
        return found.last_hidden_state

    with torch.no_grad():
        alone = torch.cat((hidden(ids[:, :5], [0, 5]), hidden(ids[:, 5:], [0, 7])), dim=1)
        assert relative_error(hidden(ids, [0, 5, 12]), alone) < 1e-6


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (config_of("gpt_oss", **EXPERTS), "GptOssAttention of `transformers` needs `s_aux` (attention sinks)"),
        (config_of("gemma2"), "Gemma2Attention of `transformers` needs `softcap` (soft-capped attention scores)"),
        (config_of("nemotron"), "NemotronAttention of `transformers` does not pass `cu_seqlens`"),
        (config_of("stablelm"), "does not take its attention from transformers' registry: packs would mix"),
    ],
)
def test_attention_that_no_kernel_computes_is_refused(config: Any, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        check_attention(config)
    assert caught.value.place == "model"
    assert problem in caught.value.problem
    assert caught.value.remedy.startswith("use another base")


def test_a_model_with_attention_sinks_cannot_run_even_unchecked() -> None:
    config = config_of("gpt_oss", **EXPERTS)
    name = register_attention("sdpa")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=name)
    with pytest.raises(UserError, match="attention sinks"):
        model.base_model(
            input_ids=torch.ones((1, 4), dtype=torch.int64),
            use_cache=False,
            cu_seqlens=torch.tensor([0, 4], dtype=torch.int32),
            max_seqlen=4,
        )


@pytest.mark.parametrize(
    ("keywords", "refused"),
    [
        ({"position_ids": torch.zeros(1, 4), "use_cache": False, "is_causal": True, "softcap": None}, None),
        ({"is_causal": False}, "`is_causal` (attention to later tokens)"),
        ({"indices": torch.zeros(1)}, "`indices` (sparse attention)"),
        ({"not_known_yet": 0}, "`not_known_yet`"),
    ],
)
def test_every_keyword_is_used_harmless_or_refused(keywords: dict[str, Any], refused: str | None) -> None:
    attention = transformers.AttentionInterface()[register_attention("sdpa")]
    query, key, value = (torch.randn(1, 2, 4, 8) for _ in range(3))
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)

    def run() -> Any:
        module = torch.nn.Identity()
        return attention(module, query, key, value, None, scaling=1.0, cu_seqlens=cu_seqlens, max_seqlen=4, **keywords)

    if refused is None:
        assert run()[0].shape == (1, 4, 2, 8)
        return
    with pytest.raises(UserError) as caught:
        run()
    assert f"Identity of `transformers` needs {refused}" in caught.value.problem


# ---- on a GPU ----

LONG = [900, 2_500, 1, 37]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "lengths"),
    [(name, lengths) for name in COMPILABLE for lengths in (*LENGTHS, LONG, [8_192])]
    + [
        (name, LONG) for name in EXACT_KERNELS
    ],  # `flex` is compiled for every shape; the short ones are tested in float32
)
@pytest.mark.parametrize("window", [None, 128])
def test_gpu_kernels(name: str, lengths: list[int], window: int | None, measured: Measured) -> None:
    """bfloat16 kernels and gradients: within 1 % of float64 (bfloat16 itself rounds by up to 0.4 %)."""
    try:
        choose_attention(name, device=torch.device("cuda", 0), dtype=torch.bfloat16, dropout=0.0)
    except UserError as error:
        pytest.skip(str(error))  # the package is not installed on this machine
    errors = check(name, lengths, window, device="cuda", dtype=torch.bfloat16, head_dim=128)
    measured(f"attention `{name}`, bfloat16, output and gradients against float64", max(errors))
    assert max(errors) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("name", EXACT_KERNELS)
def test_gpu_kernels_in_float32(name: str, lengths: list[int], window: int | None, measured: Measured) -> None:
    errors = check(name, lengths, window, device="cuda", dtype=torch.float32)
    measured(f"attention `{name}`, float32 on the GPU, output and gradients against float64", max(errors))
    assert max(errors) < EXACT_KERNELS[name]
