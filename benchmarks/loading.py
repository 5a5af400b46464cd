"""Tokens per second that one rank's data loading makes: prepared dataset to packed micro-batches, one thread.

    python benchmarks/loading.py --tokens 20000000

Baseline: rows through `datasets` (as Python lists), joined to packs with torch. The same packs in the same order.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402

from data_pipeline.plan.plan import TrainingPlan  # noqa: E402
from data_pipeline.prepared.dataset import SCHEMA, PreparedSplit  # noqa: E402
from data_pipeline.prepared.writer import PreparedWriter  # noqa: E402
from ochat_train.training.batches import run_steps_of_rank  # noqa: E402
from ochat_train.training.prefetch import StepPrefetcher  # noqa: E402

_PACK = 8192


def main() -> None:
    """Write a dataset, load it both ways, print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--mean-length", type=int, default=1300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "prepared", arguments.tokens, arguments.mean_length)
        split = PreparedSplit(Path(folder) / "prepared", "train")
        plan = TrainingPlan(split, capacity=_PACK, packs_per_step=16, seed=0, epochs=1, max_steps=None)
        steps = run_steps_of_rank(
            split,
            plan,
            first_step=0,
            rank=0,
            num_ranks=1,
            packs_per_micro_batch=1,
            loss_denominator="epoch",
            num_classes=1,
            pin=False,
        )
        ours = StepPrefetcher(steps, depth=8)
        rows = datasets.load_from_disk(str(Path(folder) / "prepared"))["train"]
        speeds = {}
        for name, batches in (
            ("ours", (batch.num_tokens for step in ours for batch in step.micro_batches)),
            ("datasets", plain(rows, plan)),
        ):
            start = time.perf_counter()
            num_tokens = sum(batches)
            speeds[name] = num_tokens / (time.perf_counter() - start)
        ours.close()
    for name, speed in speeds.items():
        print(f"{name:>9}: {speed / 1e6:6.2f} million tokens/s, {speed / speeds['datasets']:.1f} x datasets")


def plain(rows: datasets.Dataset, plan: TrainingPlan) -> Iterator[int]:
    """The obvious way: a row is a dictionary of lists, a pack a concatenation of tensors."""
    epoch = plan.epoch(0)
    for pack in range(len(epoch.packs)):
        found = [rows[int(row)] for row in epoch.rows(pack)]
        ids = torch.cat([torch.tensor(row["input_ids"]) for row in found])
        weights = torch.cat([torch.tensor(row["loss_weights"]) for row in found])
        torch.nn.functional.pad(torch.stack((ids.float(), weights)), (0, _PACK - len(ids)))
        yield len(ids)


def write_dataset(folder: Path, num_tokens: int, mean_length: int) -> None:
    """Random ids with log-normal lengths."""
    rng = np.random.default_rng(0)
    sigma = 0.8
    lengths = (
        rng.lognormal(np.log(mean_length) - sigma**2 / 2, sigma, num_tokens // mean_length).clip(16, _PACK).astype(int)
    )
    writer = PreparedWriter(folder)
    for part in np.array_split(lengths, max(1, len(lengths) // 1000)):
        weights = [rng.choice(np.array([0.0, 0.1, 1.0], dtype=np.float32), length) for length in part]
        columns = (
            [str(number) for number in range(len(part))],
            [0] * len(part),
            [0] * len(part),
            part,
            [int((row > 0).sum()) for row in weights],
            [float(row.sum(dtype=np.float64)) for row in weights],
            [rng.integers(0, 32_000, length, dtype=np.int32) for length in part],
            weights,
        )
        values = dict(zip(SCHEMA.names, columns, strict=True))
        writer.write("train", pa.RecordBatch.from_pydict(values, schema=SCHEMA))
    writer.close(fingerprint="0" * 16)


if __name__ == "__main__":
    main()
