"""What every rank imports, for the server that ranks are forked from. No thread may be started here."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"

# What training, exporting and preparing import late: more than two seconds a process.
import datasets  # noqa: F401
import deepspeed  # noqa: F401
import torch._dynamo  # noqa: F401
import transformers.conversion_mapping
import transformers.integrations.flash_attention
import transformers.models.mistral.modeling_mistral  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401

import ochat_train.cli
import ochat_train.export
import ochat_train.train  # noqa: F401
