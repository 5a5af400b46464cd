"""The operator around FlashAttention-4: what it gives to the package, and how torch differentiates and compiles it.

The package needs a GPU, so a stand-in with the same arguments computes in plain torch here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from ochat_train.model.attention.flash_attention_4 import attention_flash_4, keep_compiled_kernels
from ochat_train.model.attention.register import register_attention
from tests.support.reference import relative_error

TOKENS, WINDOW, SCALE = 24, 4, 0.2
CU_SEQLENS = torch.tensor([0, 5, 6, 24, 24], dtype=torch.int32)
CASES = [(None, None, None), (1.5, None, None), (None, 1.0, None), (1.5, 1.0, WINDOW)]


def whole(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    *,
    reach: int | None,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [T, H, E] and log-sum-exp [H, T], a sink included: one softmax over the pack, borders as a mask."""
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    conversation = torch.cat([torch.full((end - start,), start) for start, end in pairwise(CU_SEQLENS.tolist())])
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None, :]
    visible = (distance >= 0) & (conversation[:, None] == conversation[None, :])
    if reach is not None:
        visible &= distance <= reach
    scores = torch.einsum("thd,shd->hts", query, key) * SCALE
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks[:, None])
    return torch.einsum("hts,she->the", (scores - lse[..., None]).exp(), value), lse


def forward(
    query: Any, key: Any, value: Any, *, window_size: Any, learnable_sink: Any, softcap: float, **rest: Any
) -> Any:
    assert rest["causal"]
    assert rest["return_lse"]
    assert rest["softmax_scale"] == SCALE
    with torch.no_grad():
        return *whole(query, key, value, learnable_sink, reach=window_size[0], softcap=softcap), None


def backward(
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    upstream: Any,
    lse: Any,
    scale: float,
    causal: bool,
    softcap: float,
    *,
    window_size_left: int | None,
    learnable_sink: Any,
    **rest: Any,
) -> Any:
    """As the package: a fourth gradient only with sinks. It must be given the output and log-sum-exp of its forward."""
    assert causal
    leaves = [x.detach().requires_grad_() for x in (query, key, value, learnable_sink) if x is not None]

    def differentiate() -> tuple[torch.Tensor, ...]:
        tensors = leaves if len(leaves) == 4 else [*leaves, None]
        found, found_lse = whole(*tensors, reach=window_size_left, softcap=softcap)
        assert torch.equal(found, output)
        assert torch.equal(found_lse, lse)
        return torch.autograd.grad(found, leaves, upstream)

    with ThreadPoolExecutor(1) as thread:  # inside an operator there is no autograd, but in another thread there is
        return thread.submit(differentiate).result()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash_attn.cute` with the stand-ins."""
    register_attention("sdpa")  # `transformers` looks for the package when it is imported: only before there is one
    names = ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    modules["flash_attn.cute"].flash_attn_varlen_func = forward
    modules["flash_attn.cute.interface"]._flash_attn_bwd = backward
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def inputs(sink: float | None) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, 4, 8), (TOKENS, 2, 8), (TOKENS, 2, 16))
    tensors = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    return [*tensors, None if sink is None else torch.linspace(-1, sink, 4).requires_grad_()]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    return attention_flash_4(
        query,
        key,
        value,
        cu_seqlens=CU_SEQLENS,
        max_seqlen=18,
        scale=SCALE,
        window=window,
        dropout=0.0,
        softcap=softcap,
        sinks_H=sinks,
    )


def results(function: Callable[..., torch.Tensor], sink: float | None, *settings: Any) -> list[torch.Tensor]:
    """Output and gradients."""
    tensors = inputs(sink)
    output = function(*tensors, *settings)
    output.backward(torch.linspace(-1, 1, output.numel()).view_as(output))
    return [output.detach(), *(x.grad for x in tensors if x is not None and x.grad is not None)]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("softcap", "sink", "window"), CASES)
def test_the_operator_gives_the_package_all_it_needs(
    softcap: float | None, sink: float | None, window: int | None
) -> None:
    reach = None if window is None else window - 1

    def plain(*tensors: Any) -> torch.Tensor:
        return whole(*tensors, reach=reach, softcap=softcap or 0.0)[0]

    found, expected = results(lambda *tensors: attend(*tensors, softcap, window), sink), results(plain, sink)
    assert len(found) == len(expected) == (4 if sink is None else 5)
    assert max(relative_error(value, truth) for value, truth in zip(found, expected, strict=True)) < 1e-6


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("softcap", "sink", "window"), CASES[::3])
def test_the_operator_is_one_node_of_a_compiled_graph(
    softcap: float | None, sink: float | None, window: int | None
) -> None:
    eager = results(attend, sink, softcap, window)
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False)
    found = results(compiled, sink, softcap, window)
    assert all(torch.equal(value, truth) for value, truth in zip(found, eager, strict=True))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("softcap", "sink", "window"), CASES[::3])
def test_what_transformers_calls_is_compiled_without_a_break(
    softcap: float | None, sink: float | None, window: int | None
) -> None:
    """The registered function, with keywords as models pass them, and a check of those that nobody uses."""
    attention = transformers.AttentionInterface()[register_attention("flash_attention_4")]
    module = torch.nn.Identity()

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
        states = (x.transpose(0, 1)[None] for x in (query, key, value))
        settings: dict[str, Any] = {"cu_seqlens": CU_SEQLENS, "max_seqlen": 18, "scaling": SCALE, "dropout": 0.0}
        settings |= {"sliding_window": window, "softcap": softcap, "s_aux": sinks, "use_cache": False}
        return attention(module, *states, None, **settings)[0][0]

    try:
        eager = results(call, sink)
        torch._dynamo.reset()
        found = results(torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False), sink)
    finally:
        register_attention("sdpa")
    expected = results(lambda *tensors: attend(*tensors, softcap, window), sink)
    assert all(torch.equal(value, truth) for value, truth in zip(found, eager, strict=True))
    assert all(torch.equal(value, truth) for value, truth in zip(found, expected, strict=True))


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("case", ["kept", "set by the user", "no folder", "no locks"])
def test_compiled_kernels_are_kept_where_they_can_be(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "FLASH_ATTENTION_CUTE_DSL_CACHE"
    monkeypatch.setenv("OCHAT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv(f"{name}_DIR", "")  # so that both are as before afterwards
    monkeypatch.setenv(f"{name}_ENABLED", "0")
    monkeypatch.delenv(f"{name}_DIR")
    if case != "set by the user":
        monkeypatch.delenv(f"{name}_ENABLED")
    if case == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
    if case == "no folder":
        (tmp_path / "cache").write_text("a file where the folder would be", encoding="utf-8")
    keep_compiled_kernels.__wrapped__(torch.device("cuda", 0))
    found = (os.environ.get(f"{name}_ENABLED"), os.environ.get(f"{name}_DIR"))
    folder = tmp_path / "cache" / "flash_attention_4" / "sm_90"
    assert found == {"kept": ("1", str(folder)), "set by the user": ("0", None)}.get(case, (None, None))
    assert case != "kept" or list(folder.iterdir()) == []
