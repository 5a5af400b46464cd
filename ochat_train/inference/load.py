"""The model of an export in memory, on a GPU if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ochat_train.adapter.folder import is_adapter
from ochat_train.inference.adapted import load_with_base
from ochat_train.inference.served_model import export_folder, refuse_base_of_model
from ochat_train.model.base_class import load_exported
from ochat_train.system.library_output import quiet_libraries


def load_model(folder: Path, *, base: str | None = None) -> tuple[Any, Path]:
    """An exported model, or an adapter with its base, and the folder of its tokenizer.

    base: of an adapter, None for the one that it names. Raises UserError for a folder without a model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quiet_libraries()
    folder = export_folder(folder)
    if is_adapter(folder):
        return load_with_base(folder, base=base, device=device)
    refuse_base_of_model(folder, base)
    return load_exported(folder).to(device), folder
