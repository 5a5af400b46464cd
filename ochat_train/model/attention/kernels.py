"""The attention kernels by name, the fastest first: `auto` takes the first that can be used.

Their names are in `KernelName` of `recipe/sections/model.py`, which must not import torch; each is a file beside this.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import get_args

from ochat_train.model.attention.kernel import Kernel
from ochat_train.recipe.sections.model import KernelName

KERNELS: Mapping[str, Kernel] = {name: import_module(f"{__package__}.{name}").KERNEL for name in get_args(KernelName)}
