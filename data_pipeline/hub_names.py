"""Names of repositories on the Hugging Face Hub, as opposed to folders."""

from __future__ import annotations

import re
from pathlib import Path


def is_hub_id(name: str) -> bool:
    """Whether a model is looked for on the Hub: its name is ORG/NAME, and there is no folder of that name."""
    return not Path(name).exists() and not name.startswith((".", "/", "~")) and name.count("/") == 1


_HUB_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"


def hub_name_problem(name: str) -> str | None:
    """Why a text is not the name of a repository on the Hub (`ORG/NAME`); None if it is."""
    if (
        re.fullmatch(f"{_HUB_NAME}/{_HUB_NAME}", name)
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    ):
        return None
    return "not the name of a repository on the Hub; write ORG/NAME, with letters, digits, `-`, `_` and `.`"
