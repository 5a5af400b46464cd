"""What every rank imports, for the server that ranks are forked from. No thread may be started here."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401

import ochat_train.cli
import ochat_train.export
import ochat_train.train  # noqa: F401
