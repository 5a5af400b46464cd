"""A finding, and how checks are run: all of them, whatever one of them meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.errors import UserError

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of `ochat check`. A problem would stop the run; a warning would not, or cannot be decided here."""

    level: Level
    area: str
    finding: str
    remedy: str = ""


def ok(area: str, finding: str) -> Finding:
    """Nothing to do."""
    return Finding(level="ok", area=area, finding=finding)


def warning(area: str, finding: str, remedy: str = "") -> Finding:
    """Worth a look."""
    return Finding(level="warning", area=area, finding=finding, remedy=remedy)


def problem(area: str, finding: str, remedy: str = "") -> Finding:
    """Would stop the run."""
    return Finding(level="problem", area=area, finding=finding, remedy=remedy)


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """The findings of all (area, check) pairs.

    A UserError becomes a problem. Where several checks meet the same one (a tokenizer that is missing), the later ones
    say only that they could not look. Any other exception is a defect of the check and a problem, too: it has not
    looked.
    """
    findings: list[Finding] = []
    areas_of: dict[str, str] = {}
    for area, check in checks:
        try:
            for finding in check():
                findings.append(finding)  # one by one: what was found before an exception counts
        except UserError as error:
            text = str(error)
            if text in areas_of:
                findings.append(warning(area, f"not checked: see the problem of {areas_of[text]}"))
            else:
                areas_of[text] = area
                findings.append(from_error(area, error))
        except Exception as error:
            reason = f"the check itself failed: {type(error).__name__}: {error}"
            findings.append(
                problem(area, reason, "please report this; `ochat plan` and `ochat train` look at it again")
            )
    return findings


def from_error(area: str, error: UserError) -> Finding:
    """A problem from a UserError, whose text ends with the remedy, after the last semicolon."""
    finding, separator, remedy = str(error).rpartition("; ")
    return problem(area, finding, remedy) if separator and "\n" not in remedy else problem(area, str(error))
