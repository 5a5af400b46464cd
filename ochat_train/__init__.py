"""The C-RLFT trainer: prepared dataset in, trained Hugging Face checkpoint out.

`from ochat_train import load_recipe, prepare, train, export` is the Python API (api.py, docs/python-api.md).

Where two numbers are made: targets are shifted in `model/batch.py`, the loss is scaled in `training/step.py`.
docs/contributing.md says what each package is, follows one conversation from a raw row to an answer, and says how to
add things.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.errors import ReportedError, UserError
    from ochat_train.api import Recipe, TrainedRun, answer, load_recipe, prepare, train
    from ochat_train.export.export import export

__version__ = "0.1.0"
__all__ = [
    "Recipe",
    "ReportedError",
    "TrainedRun",
    "UserError",
    "__version__",
    "answer",
    "export",
    "load_recipe",
    "prepare",
    "train",
]

_ERRORS = ("ReportedError", "UserError")


def __getattr__(name: str) -> Any:
    """A name of the API when it is first used, so that `import ochat_train` stays cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "export":  # a package has this name, and it is callable: see its __init__
        return importlib.import_module("ochat_train.export")
    return getattr(importlib.import_module("data_pipeline.errors" if name in _ERRORS else "ochat_train.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
