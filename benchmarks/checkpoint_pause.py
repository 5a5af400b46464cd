"""How long training stops for a checkpoint: ours (hashed, synced, verified) against DeepSpeed's own save, same engine
and disk.

    python benchmarks/checkpoint_pause.py --hidden 2048 --layers 18 --repeats 3          # about one billion parameters
    python -m deepspeed.launcher.runner --num_gpus 4 benchmarks/checkpoint_pause.py ...

Prints seconds, GB/s and the ratio. DeepSpeed's save is not synced to the disk; a second figure for it adds that.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import transformers  # noqa: E402

from ochat_train.checkpoint.state import Progress, checkpoint_dir  # noqa: E402
from ochat_train.checkpoint.writer import save_checkpoint  # noqa: E402
from ochat_train.distributed.ranks import start_ranks, stop_ranks  # noqa: E402
from ochat_train.model.attention.choose import choose_attention  # noqa: E402
from ochat_train.model.attention.needs import AttentionNeeds  # noqa: E402
from ochat_train.model.attention.register import register_attention  # noqa: E402
from ochat_train.model.batch import PackedBatch  # noqa: E402
from ochat_train.model.config import model_dtype  # noqa: E402
from ochat_train.model.packed import PackedCausalLM  # noqa: E402
from ochat_train.recipe.load import load_recipe  # noqa: E402
from ochat_train.training.engine import start_engine  # noqa: E402
from ochat_train.training.step import train_step  # noqa: E402


def main() -> None:
    """Make an engine with optimizer states, then time both ways of saving."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "checkpoint_pause")
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    ranks = start_ranks()
    changes = {
        "deepspeed.zero_stage": options.stage,
        "train.pack_length_tokens": 1024,
        "train.tokens_per_step": 1024 * ranks.num_ranks,
        "output_dir": options.folder,
        "checkpoint.keep_last": 1,
    }
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", [f"{key}={value}" for key, value in changes.items()])
    config = transformers.AutoConfig.for_model(
        "mistral",
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 7 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 128,
        num_key_value_heads=max(1, options.hidden // 512),
        vocab_size=32_002,
    )
    dtype = model_dtype(recipe.model, ranks.device)
    attention = register_attention(choose_attention("auto", device=ranks.device, dtype=dtype, needs=AttentionNeeds()))
    with ranks.device:
        causal_lm = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention
        ).train()
    engine = start_engine(PackedCausalLM(causal_lm, num_classes=1), recipe, ranks)
    train_step(engine, [one_pack(ranks.device)], denominator=1024.0, learning_rate=1e-4, num_ranks=ranks.num_ranks)
    options.folder.mkdir(parents=True, exist_ok=True)

    def ours(number: int) -> None:
        save_checkpoint(
            engine, ranks, options.folder, progress=Progress(step=number), recipe=recipe, data_fingerprint="x"
        )

    def plain(number: int) -> None:
        engine.save_checkpoint(str(options.folder / "plain"), tag=str(number), save_latest=True)

    def plain_synced(number: int) -> None:
        plain(number)
        os.sync()
        torch.distributed.barrier()

    seconds = {way.__name__: timed(way, options.repeats) for way in (ours, plain, plain_synced)}
    if ranks.is_main:
        folder = checkpoint_dir(options.folder, options.repeats)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        num_parameters, size_gb = sum(parameter.numel() for parameter in causal_lm.parameters()), size / 1e9
        print(
            f"{num_parameters / 1e9:.2f} billion parameters, {ranks.num_ranks} rank(s), ZeRO-{options.stage}, "
            f"{size_gb:.1f} GB"
        )
        for name, best in seconds.items():
            ratio = best / seconds["plain_synced"]
            print(f"{name:>14}: {best:6.2f} s, {size_gb / best:5.2f} GB/s, {ratio:.2f} x plain_synced")
        shutil.rmtree(options.folder)
    stop_ranks()


def timed(save: Callable[[int], None], repeats: int) -> float:
    """The fastest of some saves, in seconds."""
    times = []
    for number in range(1, repeats + 1):
        torch.distributed.barrier()
        start = time.perf_counter()
        save(number)
        times.append(time.perf_counter() - start)
    return min(times)


def one_pack(device: torch.device) -> PackedBatch:
    """A pack of one conversation of 1,024 random tokens."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 32_000, 1024))
    return PackedBatch(
        input_ids_T=ids,
        position_ids_T=torch.arange(1024),
        target_ids_T=ids.roll(-1),
        target_weights_T=torch.ones(1024),
        class_ids_T=torch.zeros(1024, dtype=torch.int64),
        cu_seqlens_S1=torch.tensor([0, 1024, 1024], dtype=torch.int32),
        supervised_indices_N=torch.arange(1024),
        max_seqlen=1024,
        num_tokens=1024,
    ).to(device)


if __name__ == "__main__":
    main()
