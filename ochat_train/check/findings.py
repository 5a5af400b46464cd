"""A finding, and how checks are run: all of them, even if one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.errors import UserError
from data_pipeline.files import cannot_use, is_unusable

Level = Literal["ok", "warning", "problem"]
Check = Callable[[], Iterable["Finding"]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of `ochat check`.

    level: a problem would stop the run; a warning would not, or cannot be decided on this machine.
    area: as in the table of docs/init-and-check.md.
    place: key of the recipe, file, package or device; empty where the area says enough.
    problem: what was found there; for `ok`, what is right.
    remedy: what to do about it, or empty.
    seconds: that parts of what was tried took, for JSON; empty for most.
    """

    level: Level
    area: str
    place: str
    problem: str
    remedy: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def finding(self) -> str:
        """Place and problem as one sentence."""
        return f"{self.place}: {self.problem}" if self.place else self.problem


def ok(area: str, place: object, said: str, *, seconds: Mapping[str, float] | None = None) -> Finding:
    """Nothing to do."""
    return Finding(level="ok", area=area, place=str(place), problem=said, seconds=seconds or {})


def warning(area: str, place: object, said: str, remedy: str = "") -> Finding:
    """Worth a look."""
    return Finding(level="warning", area=area, place=str(place), problem=said, remedy=remedy)


def problem(area: str, place: object, said: str, remedy: str = "") -> Finding:
    """Would stop the run."""
    return Finding(level="problem", area=area, place=str(place), problem=said, remedy=remedy)


def from_error(area: str, error: UserError, *, level: Level = "problem", remedy: str = "") -> list[Finding]:
    """A finding for each problem of an error. remedy: for those that name none."""
    return [
        Finding(
            level=level,
            area=area,
            place=found.place,
            problem=found.problem,
            remedy=found.remedy or remedy,
        )
        for found in error.problems
    ]


def run_checks(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """The findings of all (area, check) pairs.

    A UserError becomes a problem. If several checks meet the same one (a missing tokenizer), the later ones only say
    that they could not look. Any other exception is a defect of the check, and a problem as well: nothing was checked.
    """
    findings: list[Finding] = []
    area_of: dict[tuple[object, ...], str] = {}
    for area, check in checks:
        try:
            for finding in check():
                findings.append(finding)  # one by one: what was found before an exception counts
        except UserError as error:
            findings += _explained(area, error, area_of)
        except OSError as error:
            if not is_unusable(error):
                findings.append(_defect(area, error))
            else:
                findings += _explained(area, cannot_use(error.filename or area, error), area_of)
        except Exception as error:
            findings.append(_defect(area, error))
    return findings


def _explained(area: str, error: UserError, area_of: dict[tuple[object, ...], str]) -> list[Finding]:
    """The findings of an error. area_of: the area that met it first, by its problems."""
    if error.problems in area_of:
        return [warning(area, "", f"not checked: see the problem of {area_of[error.problems]}")]
    area_of[error.problems] = area
    return from_error(area, error)


def _defect(area: str, error: Exception) -> Finding:
    """The finding of an exception that nobody expected."""
    reason = f"the check itself failed: {type(error).__name__}: {error}"
    return problem(area, "", reason, "please report this; `ochat plan` and `ochat train` check the same again")
