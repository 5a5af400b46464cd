"""One rank that runs several `ochat` commands one after the other, so that tests pay for start-up once.

    python -m tests.ochat_train.train_worker '[["train", "a.yaml"], ["train", "b.yaml", "--resume", "never"]]'

Exit code: that of the first command that fails, or 0. The process group lives until the last command is done.
"""

from __future__ import annotations

import json
import sys

import torch

from ochat_train import train
from ochat_train.cli import main

if __name__ == "__main__":
    train.stop_ranks = torch.distributed.barrier
    for command in json.loads(sys.argv[1]):
        if status := main(command):
            sys.exit(status)
    torch.distributed.destroy_process_group()
