"""What every rank imports, for the server that ranks are forked from. No thread may be started here."""

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"

# Named one by one, because these libraries, like `ochat`, import most of their parts when they are first used.
import datasets  # noqa: F401
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
import numpy as np
import transformers.generation.utils
import transformers.modeling_utils
import transformers.models.mistral.modeling_mistral  # noqa: F401

import ochat_train.cli.main
import ochat_train.export.export
import ochat_train.training.run  # noqa: F401
from data_pipeline.plan.packing import pack
from ochat_train.system.requirements import check_requirements

check_requirements()  # looks up versions of packages
pack(np.array([1]), capacity=1, rng=np.random.default_rng(0))  # loads what numba has compiled
gc.freeze()  # ranks collect garbage among their own objects only
