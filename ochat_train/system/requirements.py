"""What this package requires, by its metadata, and what of it is not installed."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Sequence
from types import ModuleType

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_pipeline.errors import Problem, UserError, UserErrors

DISTRIBUTION = "ochat-train"


def check_requirements() -> None:
    """Raise UserError where a required package is missing or has a version that is not supported."""
    if unmet := unmet_requirements():
        raise UserErrors("versions", f"{len(unmet)} of the packages are not as needed", unmet)


def requirements() -> Sequence[Requirement] | None:
    """What is required on this machine; None where the package runs from a folder without being installed."""
    try:
        found = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        return None
    return [need for need in found if need.marker is None or need.marker.evaluate({"extra": ""})]


def unmet_requirements() -> list[Problem]:
    """What of it is missing or has another version, the version of Python first."""
    needed = requirements()
    if needed is None:
        return []
    problems = []
    python = SpecifierSet(str(importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""))
    if platform.python_version() not in python:
        text = f"{platform.python_version()} is not {python}"
        problems.append(Problem(place="Python", problem=text, remedy="use a supported Python"))
    for need in needed:
        found = installed_version(need.name)
        if found is None or not need.specifier.contains(found, prereleases=True):
            text = f"{found or 'not installed'}, but {need.specifier or 'any version'} is needed"
            remedy = f'pip install "{need.name}{need.specifier}"'
            problems.append(Problem(place=need.name, problem=text, remedy=remedy))
    return problems


def http_library() -> ModuleType:
    """httpx. Raises UserError where it is not installed."""
    try:
        import httpx
    except ImportError:
        raise UserError("httpx", "is needed to ask a server", 'pip install "ochat-train[serve]"') from None
    return httpx


@functools.cache
def installed_version(name: str) -> str | None:
    """The version of a package, None if it is not installed. Looked up once in a process: it takes 10 ms."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
