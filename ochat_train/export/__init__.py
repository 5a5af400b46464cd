"""From a checkpoint to a Hugging Face folder: weights, tokenizer, model card, and where the base came from.

The package is callable, as its function `export`: `from ochat_train import export` is part of the Python API, and
Python binds the package to that name as soon as anything in it is imported.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, run: Any, out: Any, **options: Any) -> Path:
        from ochat_train.export.export import export

        return export(run, out, **options)


sys.modules[__name__].__class__ = _CallablePackage
