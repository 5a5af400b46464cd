"""How long `ochat train` takes from its start to the end of its first step, with much prepared data.

    python benchmarks/startup.py --dir /data/startup --gib 10              # a tiny model: nothing hides the hashing
    python benchmarks/startup.py --dir /data/startup --gib 10 --large      # loads 1.1 billion parameters meanwhile

Three starts: without verifying the data, verifying it for the first time, and again, when its hashes are remembered.
The data is dropped from the page cache before each. With --repeat, the shortest of each counts. Needs the extra `test`;
leaves nothing in --dir.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_pipeline.file_hashes import CACHE_VARIABLE  # noqa: E402
from data_pipeline.prepared.dataset import SCHEMA, Manifest, SplitCounts  # noqa: E402
from data_pipeline.prepared.integrity import hashes_of  # noqa: E402
from data_pipeline.prepared.writer import PreparedWriter  # noqa: E402
from ochat_train.recipe.load import load_recipe  # noqa: E402
from ochat_train.recipe.preparation import prepare_recipe  # noqa: E402
from tests.support.small_recipe import TINY_MODEL, write_small_recipe  # noqa: E402
from tests.support.tokenizers import write_small_tokenizer  # noqa: E402

ROW_TOKENS = 2048
BATCH_ROWS = 512
BYTES_PER_TOKEN = 8  # an id and a weight

# What a start was before data was verified: the same, without the check.
UNVERIFIED = """
import sys
from types import SimpleNamespace
from ochat_train.training import run
run.start_data_check = lambda *arguments: SimpleNamespace(finish=lambda: SimpleNamespace(rows=""))
from ochat_train.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
VERIFIED = "import sys; from ochat_train.cli.main import main; sys.exit(main(sys.argv[1:]))"


def main() -> int:
    """Make the data, start three times, print the seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="folder on the disk to measure")
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="a base of 1.1 billion parameters, loaded from files")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        os.environ[CACHE_VARIABLE] = str(folder / "cache")
        recipe = make_data(folder, gib=options.gib, large=options.large)
        start(recipe, folder, UNVERIFIED)  # fills the caches of Python and of the disk with what is not data
        seconds: dict[str, float] = {}
        cpu_seconds: dict[str, float] = {}
        for _ in range(options.repeat):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for label, program in (("unverified", UNVERIFIED), ("first", VERIFIED), ("second", VERIFIED)):
                wall, cpu = start(recipe, folder, program)
                seconds[label] = min(seconds.get(label, math.inf), wall)
                cpu_seconds[label] = min(cpu_seconds.get(label, math.inf), cpu)
        size = sum(file.stat().st_size for file in (folder / "prepared").rglob("*") if file.is_file())
    result = {"gib": round(size / 2**30, 2)}
    result |= {label: round(value, 1) for label, value in seconds.items()}
    result |= {f"{label}, CPU": round(value, 1) for label, value in cpu_seconds.items()}
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


def make_data(folder: Path, *, gib: float, large: bool) -> Path:
    """A recipe whose training split is replaced by random rows, with a manifest that describes them."""
    tokenizer = write_small_tokenizer(folder / "tokenizer")
    model: dict[str, Any] = {
        "template": "openchat_3.5",
        "max_length_tokens": ROW_TOKENS,
        "tokenizer": str(tokenizer),
    }
    if large:
        make_base(folder / "base")
        model["path"] = str(folder / "base")
    else:
        model["config"] = {**TINY_MODEL, "max_position_embeddings": ROW_TOKENS}
    recipe = write_small_recipe(
        folder,
        tokenizer,
        model=model,
        train={"epochs": 1, "pack_length_tokens": ROW_TOKENS, "tokens_per_step": 4 * ROW_TOKENS, "max_steps": 1},
        deepspeed={"zero_stage": 2},
        validation={"sample_tokens": 0},
    )
    prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    prepared = folder / "prepared"
    manifest = Manifest.load(prepared)
    assert manifest is not None
    num_rows = 0
    (folder / "rows").mkdir()
    writer = PreparedWriter(folder / "rows")
    for batch in batches(round(gib * 2**30), manifest.vocab_size):
        writer.write("train", batch)
        num_rows += batch.num_rows
    writer.close(fingerprint=manifest.fingerprint)
    for file in (folder / "rows" / "train").iterdir():
        file.replace(prepared / "train" / file.name)
    train = SplitCounts(
        conversations=num_rows, tokens=num_rows * ROW_TOKENS, supervised_tokens=num_rows * ROW_TOKENS // 2
    )
    values = {**vars(manifest), "splits": {**manifest.splits, "train": train}}
    Manifest(**values).sealed(hashes_of(prepared)).save(prepared)
    return recipe


def make_base(folder: Path) -> None:
    """A Mistral of 1.1 billion random parameters, 2 GiB of files."""
    import torch
    import transformers

    large = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    shape = {**TINY_MODEL, **large, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32_000}
    config = transformers.AutoConfig.for_model(**{**shape, "max_position_embeddings": ROW_TOKENS})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def batches(num_bytes: int, vocab_size: int) -> Iterator[pa.RecordBatch]:
    """Rows of random tokens, the second half of each supervised."""
    rng = np.random.default_rng(0)
    offsets = np.arange(BATCH_ROWS + 1, dtype=np.int32) * ROW_TOKENS
    weights = np.tile(np.arange(ROW_TOKENS) >= ROW_TOKENS // 2, BATCH_ROWS).astype(np.float32)
    for number in range(max(1, num_bytes // (BATCH_ROWS * ROW_TOKENS * BYTES_PER_TOKEN))):
        ids = rng.integers(0, vocab_size, BATCH_ROWS * ROW_TOKENS, dtype=np.int32)
        columns = {
            "id": pa.array([f"{number}-{row}" for row in range(BATCH_ROWS)]),
            "class_id": np.zeros(BATCH_ROWS, np.int32),
            "condition_id": np.zeros(BATCH_ROWS, np.int32),
            "num_tokens": np.full(BATCH_ROWS, ROW_TOKENS, np.int32),
            "num_supervised_tokens": np.full(BATCH_ROWS, ROW_TOKENS // 2, np.int32),
            "weight_sum": np.full(BATCH_ROWS, ROW_TOKENS / 2),
            "input_ids": pa.ListArray.from_arrays(offsets, ids),
            "loss_weights": pa.ListArray.from_arrays(offsets, weights),
        }
        yield pa.RecordBatch.from_arrays([pa.array(columns[name]) for name in SCHEMA.names], schema=SCHEMA)


def start(recipe: Path, folder: Path, program: str) -> tuple[float, float]:
    """Seconds of a training of one step, and of its CPU time, with prepared data that is on the disk only."""
    for file in (folder / "prepared").rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    began, cpu_before = time.monotonic(), _cpu_of_children()
    command = [sys.executable, "-c", program, "train", str(recipe), "--resume", "never"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return time.monotonic() - began, _cpu_of_children() - cpu_before


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
