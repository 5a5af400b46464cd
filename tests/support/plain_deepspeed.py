"""The control of the checkpoint tests: DeepSpeed's own saving, in which rank 1 dies before its second shard is written.

python -m tests.support.plain_deepspeed RECIPE SAVE_DIR
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ochat_train.distributed.ranks import start_ranks
from ochat_train.model.build import build_model
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import check_prepared
from ochat_train.training.engine import start_engine

if __name__ == "__main__":
    recipe = load_recipe(Path(sys.argv[1]))
    manifest, ranks = check_prepared(recipe), start_ranks(timeout_seconds=20.0)
    model = build_model(recipe.model, manifest, device=ranks.device, seed=recipe.seed).model
    engine = start_engine(model, recipe, ranks)
    engine.save_checkpoint(sys.argv[2], tag="good")
    torch.distributed.barrier()

    def die(state: Any, path: str) -> None:
        time.sleep(2.0)
        os._exit(1)

    if ranks.rank == 1:
        engine.checkpoint_engine.save = die
    engine.save_checkpoint(sys.argv[2], tag="bad")
