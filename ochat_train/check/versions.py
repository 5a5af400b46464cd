"""Versions of the installed packages."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ochat_train.check.findings import Finding, ok, problem, warning

_DISTRIBUTION = "ochat-train"
_SHOWN = ("torch", "deepspeed", "transformers")


def check_versions() -> Iterator[Finding]:
    """Whether every package that this one requires is installed in a version that it supports, by its metadata."""
    try:
        metadata = importlib.metadata.metadata(_DISTRIBUTION)
        requirements = [Requirement(text) for text in importlib.metadata.requires(_DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        text = "runs from a folder without being installed, so the versions it needs are not known"
        yield warning("versions", _DISTRIBUTION, text, "install it, for example with `pip install -e .`")
        return
    python = SpecifierSet(str(metadata["Requires-Python"] or ""))
    if platform.python_version() not in python:
        yield problem("versions", "Python", f"{platform.python_version()} is not {python}", "use a supported Python")
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = False
    for requirement in needed:
        found = installed_version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong = True
            text = f"{found or 'not installed'}, but {requirement.specifier or 'any version'} is needed"
            remedy = f'pip install "{requirement.name}{requirement.specifier}"'
            yield problem("versions", requirement.name, text, remedy)
    if not wrong:
        shown = ", ".join(f"{name} {installed_version(name)}" for name in _SHOWN)
        yield ok("versions", "", f"{shown} and the other {len(needed) - len(_SHOWN)} packages are as needed")


def installed_version(name: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
