"""Versions of the installed packages."""

from __future__ import annotations

from collections.abc import Iterator

from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.system.requirements import DISTRIBUTION, installed_version, requirements, unmet_requirements

_SHOWN = ("torch", "deepspeed", "transformers")


def check_versions() -> Iterator[Finding]:
    """Whether every package that this one requires is installed in a version that it supports, by its metadata."""
    needed = requirements()
    if needed is None:
        text = "runs from a folder without being installed, so the versions it needs are not known"
        yield warning("versions", DISTRIBUTION, text, "install it, for example with `pip install -e .`")
        return
    unmet = unmet_requirements()
    for found in unmet:
        yield problem("versions", found.place, found.problem, found.remedy)
    if not unmet:
        shown = ", ".join(f"{name} {installed_version(name)}" for name in _SHOWN)
        yield ok("versions", "", f"{shown} and the other {len(needed) - len(_SHOWN)} packages are as needed")
