"""Attention kernels against a float64 softmax over each conversation alone."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.attention import flex_attention

from data_pipeline.errors import UserError
from ochat_train.model import attention
from ochat_train.model.attention import flex
from ochat_train.model.attention.choose import attention_obstacles, choose_attention
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.needs import AttentionNeeds
from ochat_train.model.attention.sdpa import attention_sdpa
from ochat_train.recipe.sections.model import ModelSettings
from tests.support.measured import Measured
from tests.support.reference import relative_error

LENGTHS = [[1, 2], [5, 1, 17], [64, 200, 3, 33]]
EXACT_KERNELS = {"flex": 5e-6, "sdpa": 5e-6}  # kernels that also run in float32
FILES = tuple(pkgutil.iter_modules(attention.__path__))
COMPILABLE = sorted(name for name, kernel in KERNELS.items() if kernel.compilable)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is special about a model's attention. value_dim: head dimension of the values, by default that of keys."""

    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    head_dim: int = 64
    value_dim: int | None = None

    def __str__(self) -> str:
        """What is not as usual, for the names of tests."""
        usual = Case()
        return ", ".join(f"{name} {value}" for name, value in vars(self).items() if value != getattr(usual, name))

    @property
    def head_dims(self) -> tuple[int, int]:
        return self.head_dim, self.value_dim or self.head_dim

    @property
    def needs(self) -> AttentionNeeds:
        return AttentionNeeds(
            softcap=self.softcap is not None,
            sinks=self.sinks,
            head_dims=frozenset({self.head_dims}),
            is_grouped=True,
        )


SPECIAL = (
    Case(softcap=1.5),
    Case(sinks=True),
    Case(softcap=1.5, sinks=True, window=16),
    Case(sinks=True, window=16, head_dim=24, value_dim=16),
)


def truth(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor, lengths: list[int], case: Case
) -> torch.Tensor:
    """Softmax attention written out, one conversation and head at a time, with autograd. Shapes [T, H or G, D or E]."""
    outputs, start = [], 0
    group = query.shape[1] // key.shape[1]
    for length in lengths:
        rows = slice(start, start + length)
        distance = (
            torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)[None, :]
        )
        hidden = (distance < 0) if case.window is None else (distance < 0) | (distance >= case.window)
        heads = []
        for head in range(query.shape[1]):
            scores = query[rows, head] @ key[rows, head // group].T * query.shape[2] ** -0.5
            if case.softcap is not None:
                scores = torch.tanh(scores / case.softcap) * case.softcap
            exponentials = scores.exp().masked_fill(hidden, 0.0)
            total = exponentials.sum(1, keepdim=True) + (sinks[head].exp() if case.sinks else 0.0)
            heads.append(exponentials / total @ value[rows, head // group])
        outputs.append(torch.stack(heads, dim=1))
        start += length
    return torch.cat(outputs)


def check(name: str | None, lengths: list[int], case: Case, *, device: str, dtype: torch.dtype) -> tuple[float, ...]:
    """Relative errors of output and gradients (query, key, value, sinks) against float64 of the same inputs.

    name: of the kernel, None for attention written out in `dtype`.
    """
    generator = torch.Generator().manual_seed(0)
    total, (head_dim, value_dim) = sum(lengths), case.head_dims
    shapes = ((total, 4, head_dim), (total, 2, head_dim), (total, 2, value_dim), (4,), (total, 4, value_dim))
    tensors = [torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu_seqlens = torch.tensor(bounds + [total] * 3, dtype=torch.int32, device=device)  # padded with empty sequences
    results = []
    for precision in (torch.float64, dtype):
        query, key, value, sinks = leaves = [tensor.to(precision).requires_grad_() for tensor in tensors[:4]]
        if precision == torch.float64 or name is None:
            output = truth(query, key, value, sinks, lengths, case)
        else:
            output = KERNELS[name].run(
                query,
                key,
                value,
                cu_seqlens=cu_seqlens,
                max_seqlen=max(lengths),
                scale=head_dim**-0.5,
                window=case.window,
                dropout=0.0,
                softcap=case.softcap,
                sinks_H=sinks if case.sinks else None,
            )
        output.backward(tensors[4].to(precision))
        results.append((output, *(leaf.grad for leaf in leaves[: 4 if case.sinks else 3])))
    return tuple(relative_error(found, expected) for expected, found in zip(*results, strict=True))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("case", [Case(), Case(window=16), *SPECIAL], ids=str)
def test_sdpa_equals_float64(lengths: list[int], case: Case, measured: Measured) -> None:
    errors = check("sdpa", lengths, case, device="cpu", dtype=torch.float32)
    measured("attention `sdpa`, float32, output and gradients against float64", max(errors))
    assert max(errors) < 2e-6


def flex_written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    block_mask: Any,
    scale: float,
    enable_gqa: bool,
    score_mod: Any = None,
    return_aux: Any = None,
    kernel_options: Any = None,
) -> Any:
    """What torch's flex_attention computes, with autograd: on a CPU it has no backward pass."""
    group, places = query.shape[1] // key.shape[1], torch.arange(query.shape[2])
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    if score_mod is not None:
        scores = score_mod(scores, 0, 0, places[:, None], places[None, :])
    scores = scores.masked_fill(~block_mask.mask_mod(0, 0, places[:, None], places[None, :]), -torch.inf)
    output = scores.softmax(-1) @ value
    return output if return_aux is None else (output, flex_attention.AuxOutput(lse=scores.logsumexp(-1)))


@pytest.mark.parametrize("case", [Case(), *SPECIAL], ids=str)
def test_flex_equals_float64(case: Case, monkeypatch: pytest.MonkeyPatch, measured: Measured) -> None:
    """What is done with its scores and its log-sum-exp, and their gradients. Its Triton code needs a GPU."""
    monkeypatch.setattr(flex, "_compiled_flex", lambda: (flex_written_out, flex_attention.create_block_mask))
    errors = check("flex", [5, 1, 17], case, device="cpu", dtype=torch.float32)
    measured("attention `flex` without Triton, float32, output and gradients against float64", max(errors))
    assert max(errors) < 2e-6


@pytest.mark.parametrize("case", SPECIAL[2:], ids=str)
def test_flex_is_what_was_written_out(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in of the test above against torch itself, forward: what a score function and a log-sum-exp are."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(23, num, dim, generator=generator)
        for num, dim in zip((4, 2, 2), (case.head_dim, *case.head_dims), strict=True)
    )
    outputs = []
    for function in (flex_written_out, flex_attention.flex_attention):
        monkeypatch.setattr(flex, "_compiled_flex", lambda: (function, flex_attention.create_block_mask))  # noqa: B023
        arguments: dict[str, Any] = {"max_seqlen": 17, "scale": 0.1, "window": case.window, "softcap": case.softcap}
        cu_seqlens = torch.tensor([0, 6, 23], dtype=torch.int32)
        sinks = torch.ones(4) if case.sinks else None
        outputs.append(
            flex.attention_flex(query, key, value, cu_seqlens=cu_seqlens, dropout=0.0, sinks_H=sinks, **arguments)
        )
    assert relative_error(outputs[1], outputs[0]) < 1e-6


@pytest.mark.parametrize(
    ("needed", "dropped"),
    [(Case(softcap=1.5), Case()), (Case(sinks=True), Case()), (Case(softcap=1.5), Case(softcap=3.0))],
)
def test_control_what_is_left_out_is_seen(needed: Case, dropped: Case, measured: Measured) -> None:
    """A kernel that drops sinks or the soft cap, or takes another one, is far from the bounds above."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((30, 4, 64), (30, 2, 64), (30, 2, 64), (4,))
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    error = relative_error(truth(*tensors, [30], dropped), truth(*tensors, [30], needed))
    measured(f"control: attention with {str(dropped) or 'nothing special'} instead of {needed}", error)
    assert error > 1e-2


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
            softcap=None,
            sinks_H=None,
        )
        for borders in ([0, 10, 30], [0, 30])
    )
    expected = truth(query, key, value, torch.zeros(2), [10, 20], Case())
    assert relative_error(apart, expected) < 2e-6
    measured("control: attention across the borders of conversations", relative_error(together, expected))
    assert relative_error(together, expected) > 0.1


@pytest.mark.parametrize("sinks_H", [None, torch.full((2,), -1e9)])
def test_dropout_is_applied_by_the_reference(sinks_H: torch.Tensor | None) -> None:
    query, key, value = (torch.ones(32, 2, 8) for _ in range(3))
    arguments: dict[str, Any] = {"cu_seqlens": torch.tensor([0, 32], dtype=torch.int32), "max_seqlen": 32, "scale": 1.0}
    arguments |= {"window": None, "softcap": None, "sinks_H": sinks_H}
    dropped, whole = (attention_sdpa(query, key, value, dropout=dropout, **arguments) for dropout in (0.5, 0.0))
    assert not torch.allclose(dropped, torch.ones_like(dropped))
    assert torch.allclose(whole, torch.ones_like(whole))


# ---- which kernel a model can use ----

PLAIN = AttentionNeeds(head_dims=frozenset({(128, 128)}))


def test_what_cannot_run_is_refused_with_the_reason() -> None:
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    assert choose_attention("auto", **cpu, needs=AttentionNeeds(dropout=0.1, softcap=True, sinks=True)) == "sdpa"
    with pytest.raises(UserError, match=r"`varlen` cannot be used: it needs a CUDA GPU; usable here: sdpa"):
        choose_attention("varlen", **cpu, needs=PLAIN)


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
        ({"needs": AttentionNeeds(dropout=0.1)}, "it has no dropout, and the model's attention_dropout is 0.1"),
    ],
)
@pytest.mark.parametrize("name", ["flash_attention_4", "flash_attention_3", "varlen"])
def test_the_first_obstacle_of_a_kernel(name: str, changes: dict[str, Any], reason: str) -> None:
    usual = {"device": torch.device("cuda", 0), "dtype": torch.bfloat16, "needs": PLAIN}
    assert KERNELS[name].obstacle(**{**usual, **changes}) == reason


NO_SOFTCAP = "it has no soft-capping of attention scores, and the model needs it"
NO_SINKS = "it has no attention sinks, and the model needs them"
ONE_DIMENSION = "its heads have one dimension, and the model's have 192 for query and key, 128 for value"
SHARED_KEYS = "query heads that share a key head must have one dimension there; these have 192 and 128"
OF_256 = "its head dimension is a multiple of 8 up to 256, and the model's is "
HOPPER_HEADS = "on this GPU it has no heads of {} for query and key with {} for value, as the model has"


def heads(query: int, value: int) -> AttentionNeeds:
    return AttentionNeeds(head_dims=frozenset({(64, 64), (query, value)}))


@pytest.mark.parametrize(
    ("needs", "major", "expected"),
    [
        (PLAIN, 9, {}),
        (AttentionNeeds(softcap=True), 9, {"varlen": NO_SOFTCAP}),
        (AttentionNeeds(sinks=True), 9, dict.fromkeys(("flash_attention_2", "flash_attention_3", "varlen"), NO_SINKS)),
        (heads(192, 128), 9, dict.fromkeys(("flash_attention_2", "flash_attention_3", "varlen"), ONE_DIMENSION)),
        (heads(512, 512), 9, {**dict.fromkeys(("flash_attention_2", "flash_attention_3", "varlen"), OF_256 + "512"),
                              "flash_attention_4": HOPPER_HEADS.format(512, 512)}),
        (replace(heads(192, 128), is_grouped=True), 9, {
            **dict.fromkeys(("flash_attention_2", "flash_attention_3", "varlen"), ONE_DIMENSION),
            "flash_attention_4": SHARED_KEYS,
        }),
        (heads(192, 128), 10, dict.fromkeys(("flash_attention_2", "varlen"), ONE_DIMENSION)),
        (heads(192, 192), 10, {"flash_attention_4": HOPPER_HEADS.format(192, 192)}),
        (heads(256, 256), 10, {}),
        (
            AttentionNeeds(sinks=True, head_dims=frozenset({(256, 256)})),
            10,
            {"flash_attention_4": "on this GPU its heads of 256 have no attention sinks"}
            | dict.fromkeys(("flash_attention_2", "varlen"), NO_SINKS),
        ),
        (
            AttentionNeeds(softcap=True),
            12,
            {"varlen": NO_SOFTCAP}
            | {"flash_attention_4": "on this GPU its backward pass has no soft-capped attention scores and no "
               "attention sinks"},
        ),
        (heads(12, 12), 9, {**dict.fromkeys(("flash_attention_2", "flash_attention_3", "varlen"), OF_256 + "12"),
                            "flash_attention_4": HOPPER_HEADS.format(12, 12),
                            "flex": "its head dimension is at least 16, and the model's is 12"}),
    ],
)  # fmt: skip
def test_what_a_model_needs_rules_kernels_out(
    needs: AttentionNeeds, major: int, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs of compute capability `major`, with all packages installed: which kernels cannot be used, and why."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr("ochat_train.model.attention.kernel._is_installed", lambda module: True)
    found = attention_obstacles(device=torch.device("cuda", 0), dtype=torch.bfloat16, needs=needs)
    if major != 9:
        expected = {**expected, "flash_attention_3": "it needs a Hopper GPU"}
        if needs.sinks:
            expected["flash_attention_3"] = NO_SINKS
    assert {name: obstacle for name, obstacle in found.items() if obstacle} == expected


def test_flash_attention_2_has_no_dropout_with_a_soft_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu: dict[str, Any] = {"device": torch.device("cuda", 0), "dtype": torch.bfloat16}
    needs = AttentionNeeds(dropout=0.1, softcap=True)
    expected = "it has no dropout together with soft-capped attention scores, and the model needs both"
    assert KERNELS["flash_attention_2"].obstacle(**gpu, needs=needs) == expected


# ---- on a GPU ----

LONG = [900, 2_500, 1, 37]
GPU_CASES = [
    *(Case(window=window, head_dim=128) for window in (None, 128)),
    *(Case(head_dim=head_dim, **special) for head_dim in (64, 96, 256) for special in ({}, {"softcap": 1.5})),
    Case(head_dim=128, softcap=1.5, window=128),
    *(Case(head_dim=head_dim, sinks=True, window=window) for head_dim in (64, 128) for window in (None, 128)),
    Case(head_dim=96, sinks=True),
    Case(head_dim=256, sinks=True),
    Case(head_dim=64, softcap=1.5, sinks=True),
    Case(head_dim=192, value_dim=128),
    Case(head_dim=96, value_dim=64, sinks=True, window=128),
]


def skip_if_it_cannot(name: str, case: Case, dtype: torch.dtype) -> None:
    """A package that is missing on this machine, or what the kernel says it does not compute."""
    try:
        choose_attention(name, device=torch.device("cuda", 0), dtype=dtype, needs=case.needs)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("lengths", "case"),
    [(lengths, case) for lengths in (*LENGTHS, [8_192]) for case in GPU_CASES[:2]]
    + [(LONG, case) for case in GPU_CASES],  # packages build their code for every case
    ids=str,
)
@pytest.mark.parametrize("name", COMPILABLE)
def test_gpu_kernels(name: str, lengths: list[int], case: Case, measured: Measured) -> None:
    """bfloat16 kernels and gradients."""
    skip_if_it_cannot(name, case, torch.bfloat16)
    errors = check(name, lengths, case, device="cuda", dtype=torch.bfloat16)
    measured(f"attention `{name}`, bfloat16, output and gradients against float64", max(errors))
    assert_no_worse(errors, lengths, case)


def assert_no_worse(errors: tuple[float, ...], lengths: list[int], case: Case) -> None:
    """Within 1 % of float64 (bfloat16 itself rounds by up to 0.4 %), or no worse than attention written out in
    bfloat16: gradients that cancel, such as those of sinks and of conversations of one token, are off by more.
    """
    plain = check(None, lengths, case, device="cuda", dtype=torch.bfloat16)
    assert all(error < max(1e-2, 1.5 * least) for error, least in zip(errors, plain, strict=True)), (errors, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
@pytest.mark.parametrize("name", EXACT_KERNELS)
def test_gpu_kernels_that_also_run_in_float32(name: str, case: Case, measured: Measured) -> None:
    """The same for kernels of which `flex` is compiled for every shape: one set of lengths."""
    skip_if_it_cannot(name, case, torch.bfloat16)
    errors = check(name, LONG, case, device="cuda", dtype=torch.bfloat16)
    measured(f"attention `{name}`, bfloat16, output and gradients against float64", max(errors))
    assert_no_worse(errors, LONG, case)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("lengths", "case"),
    [(lengths, Case(window=window)) for lengths in LENGTHS for window in (None, 16)]
    + [(LENGTHS[-1], case) for case in SPECIAL],
    ids=str,
)
@pytest.mark.parametrize("name", EXACT_KERNELS)
def test_gpu_kernels_in_float32(name: str, lengths: list[int], case: Case, measured: Measured) -> None:
    skip_if_it_cannot(name, case, torch.float32)
    errors = check(name, lengths, case, device="cuda", dtype=torch.float32)
    measured(f"attention `{name}`, float32 on the GPU, output and gradients against float64", max(errors))
    assert max(errors) < EXACT_KERNELS[name]
