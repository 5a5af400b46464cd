"""Forward and backward of layers of experts, for each way in which `transformers` multiplies them.

    python benchmarks/experts.py [--shapes NAME ...] [--tokens N] [--layers N] [--steps N] [--device cuda|cpu] [--json]

Sizes are those of published bases; weights are random. Each way is compared with the default of `transformers` in the
same run: time, largest memory, and the gradients of one step, relative, against a loop over experts (`eager`).
Exit code 1 where a way has other gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

WAYS = ("eager", "grouped_mm", "batched_mm")
SHAPES: Mapping[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "tiny": {
        "model_type": "qwen3_moe",
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
}
_TOLERANCES = {torch.bfloat16: 3e-2, torch.float32: 1e-5}


@dataclass(frozen=True, kw_only=True)
class Result:
    """milliseconds: median of a forward and backward pass. speedup: against the default of `transformers`.

    error: largest relative difference of a gradient from the loop's. A way that does not fit has `why` and no numbers.
    """

    shape: str
    way: str
    is_default: bool
    milliseconds: float | None = None
    speedup: float | None = None
    memory_gib: float | None = None
    error: float | None = None
    why: str = ""


def main() -> None:
    """Measure, print and judge."""
    options = _options()
    device = torch.device(options.device)
    results = [found for name in options.shapes for found in measure(name, options, device)]
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(f"{options.layers} layer(s) of experts, {options.tokens} tokens, {where}, torch {torch.__version__}")
        print("\n".join(map(_line, results)))
    limit = _TOLERANCES[_dtype(device)]
    sys.exit(any(result.error is not None and not result.error <= limit for result in results))


def measure(name: str, options: argparse.Namespace, device: torch.device) -> list[Result]:
    """All ways for one base, the loop first, because others are compared with it."""
    layers, default = _layers(SHAPES[name], options.layers, device)
    torch.manual_seed(1)
    hidden = torch.randn(1, options.tokens, SHAPES[name]["hidden_size"], device=device, dtype=_dtype(device))
    rows: list[Result] = []
    truth: list[torch.Tensor] = []
    for way in WAYS:
        is_default = way == default
        try:
            _use(layers, way)
            gradients = _step(layers, hidden)
            truth = truth or gradients
            error = max(_relative(*pair) for pair in zip(gradients, truth, strict=True))
            del gradients
            times, memory = _times(layers, hidden, options.steps, device)
        except torch.OutOfMemoryError:
            rows.append(Result(shape=name, way=way, is_default=is_default, why="out of memory"))
            continue
        milliseconds = 1000 * statistics.median(times)
        rows.append(
            Result(
                shape=name,
                way=way,
                is_default=is_default,
                milliseconds=milliseconds,
                memory_gib=memory,
                error=error,
            )
        )
    base = next((row.milliseconds for row in rows if row.is_default), None)
    return [
        Result(**{**asdict(row), "speedup": base / row.milliseconds if base and row.milliseconds else None})
        for row in rows
    ]


def _layers(shape: Mapping[str, Any], num_layers: int, device: torch.device) -> tuple[list[torch.nn.Module], str]:
    """The MLPs of so many decoder layers, and the way that `transformers` takes by default on this device."""
    import transformers

    config = transformers.AutoConfig.for_model(
        **shape, num_hidden_layers=num_layers, num_attention_heads=4, num_key_value_heads=4, head_dim=16, vocab_size=64
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=_dtype(device))
    default = str(model.config._experts_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return [layer.mlp.to(device) for layer in model.model.layers], default


def _use(layers: list[torch.nn.Module], way: str) -> None:
    for layer in layers:
        layer.experts.config._experts_implementation = way  # type: ignore[union-attr]


def _step(layers: list[torch.nn.Module], hidden: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of all parameters and of the input, of a sum of squares."""
    hidden = hidden.detach().requires_grad_()
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    output = hidden
    for layer in layers:
        result = layer(output)
        output = output + (result[0] if isinstance(result, tuple) else result)
    return list(torch.autograd.grad(output.float().square().mean(), [*parameters, hidden]))


def _times(
    layers: list[torch.nn.Module], hidden: torch.Tensor, steps: int, device: torch.device
) -> tuple[list[float], float | None]:
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for number in range(steps + 2):
        if is_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        _step(layers, hidden)
        if is_gpu:
            torch.cuda.synchronize(device)
        if number >= 2:  # the first are warm-up
            times.append(time.perf_counter() - start)
    return times, torch.cuda.max_memory_allocated(device) / 2**30 if is_gpu else None


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _line(row: Result) -> str:
    start = f"{row.shape:14} {row.way + (' (default)' if row.is_default else ''):22}"
    if row.why:
        return start + row.why
    memory = "" if row.memory_gib is None else f"  {row.memory_gib:5.1f} GiB"
    speedup = "" if row.speedup is None else f"  {row.speedup:5.2f} x the default's speed"
    return f"{start}{row.milliseconds:9.2f} ms{speedup}{memory}  gradients {row.error:.1e} from the loop's"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["qwen3-30b-a3b", "mixtral-8x7b"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
