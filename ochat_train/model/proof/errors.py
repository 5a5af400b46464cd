"""Errors of `transformers` and of the packages it calls, as errors that name the base and say what can be done."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.errors import UserError

REMEDY = "use another base"

# What `transformers` imports by another name than it is installed by.
_INSTALLED_BY = {
    "causal_conv1d": "causal-conv1d",
    "mamba_ssm": "mamba-ssm",
    "fla": "flash-linear-attention",
    "flash_linear_attention": "flash-linear-attention",
}
_IMPORTED = re.compile(r"\b(causal_conv1d|mamba_ssm|fla|flash_linear_attention)\b")
_MOST_CHARACTERS = 300


@contextlib.contextmanager
def explained(config: Any, doing: str) -> Iterator[None]:
    """Any error inside as a UserError that names the base, the reason and, where one is missing, the package.

    doing: what failed, for example `cannot be built`.
    """
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            "model", f"{config.model_type} {doing}: {_reason(error)}", "free memory of the GPU for the test of the base"
        ) from error
    except Exception as error:  # transformers and remote kernels raise what they like
        raise UserError("model", f"{config.model_type} {doing}: {_reason(error)}", _remedy(error)) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:_MOST_CHARACTERS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _remedy(error: Exception) -> str:
    text = str(error)
    packages = dict.fromkeys(_INSTALLED_BY[name] for name in _IMPORTED.findall(text))
    if packages:
        return f"install {' and '.join(packages)}, or {REMEDY}"
    if isinstance(error, ImportError):
        return f"install what is missing ({error.name}), or {REMEDY}" if error.name else f"install it, or {REMEDY}"
    return REMEDY
