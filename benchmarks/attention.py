"""Attention of one layer over one pack, forward and backward: every kernel that runs here, conversations short and
long.

    python benchmarks/attention.py [--mean-lengths 30,200,1300] [--pack-length 8192]

Each kernel is told the longest conversation, as in training, and then, as the baseline, the pack's length as the bound
of all
sequences: `x bound` is how many times slower that is. Heads as in Mistral-7B: 32 for queries, 8 for keys and values,
128 wide.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step import conversation_length
from ochat_train.model.attention.choose import attention_obstacles
from ochat_train.model.attention.kernel import AttentionFunction
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.attention.needs import AttentionNeeds
from ochat_train.model.batch import PackShape

_HEADS, _KEY_HEADS, _HEAD_DIM = 32, 8, 128
_RUNS = 20


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mean-lengths", default="30,200,1300", help="of conversations, in tokens")
    parser.add_argument("--pack-length", type=int, default=8192)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    obstacles = attention_obstacles(
        device=device, dtype=dtype, needs=AttentionNeeds(head_dims=frozenset({(_HEAD_DIM, _HEAD_DIM)}))
    )
    kernels = [name for name, obstacle in obstacles.items() if obstacle is None]
    print(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", f"torch {torch.__version__}", sep=", "
    )
    print(
        f"{'mean':>6}{'longest':>9}{'sequences':>11}  "
        f"{'kernel':<20}{'ms':>9}{'ms, bound is the pack':>23}{'x bound':>9}"
    )
    for mean_length in map(int, arguments.mean_lengths.split(",")):
        lengths = pack_lengths(mean_length, arguments.pack_length)
        shape = PackShape.holding(
            pack_length=arguments.pack_length, longest=max(lengths), max_conversations=len(lengths)
        )
        cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
        for name in kernels:
            found, whole = (
                milliseconds(KERNELS[name].run, cu_seqlens, bound, device, dtype)
                for bound in (shape.max_seqlen, shape.pack_length)
            )
            sizes = f"{mean_length:>6,}{max(lengths):>9,}{len(lengths):>11,}"
            print(f"{sizes}  {name:<20}{found:>9.3f}{whole:>23.3f}{whole / found:>9.2f}")


def pack_lengths(mean_length: int, pack_length: int) -> list[int]:
    """Conversations that fill one pack, the last one cut to what is left."""
    rng, lengths = np.random.default_rng(0), list[int]()
    while sum(lengths) < pack_length:
        lengths.append(min(conversation_length(rng, mean_length, longest=pack_length), pack_length - sum(lengths)))
    return lengths


def milliseconds(
    kernel: AttentionFunction, cu_seqlens: torch.Tensor, max_seqlen: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Forward and backward, after everything has been compiled: the time of kernels on a GPU, of the operators on a
    CPU.

    The host's time does not count: in training it is hidden, as the GPU is behind.
    """
    num_tokens = int(cu_seqlens[-1])
    query, key, value = (
        torch.randn(num_tokens, heads, _HEAD_DIM, device=device, dtype=dtype, requires_grad=True)
        for heads in (_HEADS, _KEY_HEADS, _KEY_HEADS)
    )
    upstream = torch.randn_like(query)

    def run() -> None:
        output = kernel(
            query,
            key,
            value,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            scale=_HEAD_DIM**-0.5,
            window=None,
            dropout=0.0,
            softcap=None,
            sinks_H=None,
        )
        torch.autograd.grad(output, (query, key, value), upstream)

    for _ in range(3):
        run()
    is_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(_RUNS):
            run()
        if is_gpu:
            torch.cuda.synchronize()
    times = found.key_averages()
    microseconds = sum(float(time.self_device_time_total if is_gpu else time.self_cpu_time_total) for time in times)
    return microseconds / _RUNS / 1e3


if __name__ == "__main__":
    main()
