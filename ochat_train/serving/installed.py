"""Whether the packages of the extra `serve` are there."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from data_pipeline.errors import UserError
from ochat_train.system.requirements import installed_version

# As in the extra `serve` of pyproject.toml; a test compares them.
NEEDED = {"starlette": ">=0.45", "uvicorn": ">=0.34", "httpx": ">=0.28", "prometheus-client": ">=0.21"}
FASTER = {"aiohttp": ">=3.11", "httptools": ">=0.6", "uvloop": ">=0.21"}  # the same answers without them, more slowly


def require_serving() -> None:
    """Raise UserError unless all of them are installed in versions that fit."""
    missing = [f"{name}{versions}" for name, versions in NEEDED.items() if not _is_there(name, versions)]
    if missing:
        shown = " ".join(f'"{need}"' for need in missing)
        remedy = f"pip install {shown}, or install ochat-train with the extra `serve`"
        raise UserError("ochat serve", f"needs packages that are not installed: {', '.join(missing)}", remedy)


def slower_note() -> str | None:
    """One line where packages are missing without which the server only takes longer; None where all are there."""
    missing = [name for name, versions in FASTER.items() if not _is_there(name, versions)]
    if not missing:
        return None
    needs = " ".join(f'"{name}{FASTER[name]}"' for name in missing)
    return f"the server spends about twice the time on each token without {', '.join(missing)}: pip install {needs}"


def _is_there(name: str, versions: str) -> bool:
    found = installed_version(name)
    return found is not None and SpecifierSet(versions).contains(found, prereleases=True)
