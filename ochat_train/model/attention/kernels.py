"""The table of attention kernels.

To add one: a file beside this one with its `Kernel`, its place below, its name in the recipe's `model.attention`
(`recipe/sections.py`; a test compares the two).
"""

from __future__ import annotations

from collections.abc import Mapping

from ochat_train.model.attention.flash_2 import FLASH_2
from ochat_train.model.attention.flash_3 import FLASH_3
from ochat_train.model.attention.flash_4 import FLASH_4
from ochat_train.model.attention.flex import FLEX
from ochat_train.model.attention.kernel import Kernel
from ochat_train.model.attention.sdpa import SDPA
from ochat_train.model.attention.varlen import VARLEN

# The fastest first: `auto` takes the first that can be used.
KERNELS: Mapping[str, Kernel] = {kernel.name: kernel for kernel in (FLASH_4, FLASH_3, FLASH_2, VARLEN, FLEX, SDPA)}
