"""`train_worker` with the Hub of its environment: it is forked from a process that has read another one already."""

from __future__ import annotations

import os
import runpy

from huggingface_hub import constants

if __name__ == "__main__":
    constants.ENDPOINT = os.environ["HF_ENDPOINT"]
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    runpy.run_module("tests.support.train_worker", run_name="__main__", alter_sys=True)
