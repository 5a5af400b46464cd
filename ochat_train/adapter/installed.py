"""Whether the packages of the extra `adapters` are there."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

from data_pipeline.errors import UserError
from ochat_train.system.requirements import installed_version

PEFT = SpecifierSet(">=0.21")  # as in the extra `adapters` of pyproject.toml


def require_peft() -> None:
    """Raise UserError unless PEFT is installed in a version that fits."""
    found = installed_version("peft")
    if found is None or not PEFT.contains(found, prereleases=True):
        raise UserError(
            "adapter",
            f"an adapter needs the package peft{PEFT}, and {found or 'none'} is installed",
            f'pip install "peft{PEFT}", or install ochat-train with the extra `adapters`',
        )
