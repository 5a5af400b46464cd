"""All suites: one row for each, in the order of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.look.text import aligned
from data_pipeline.text_rules import did_you_mean
from ochat_train.suites import gsm8k, held_out, humaneval, math, mt_bench, openchat
from ochat_train.suites.data import SuiteData
from ochat_train.suites.suite import Suite, SuiteKind, SuiteOptions

SUITES: tuple[SuiteKind, ...] = (
    *openchat.SUITES,
    gsm8k.SUITE,
    math.SUITE,
    humaneval.SUITE,
    held_out.SUITE,
    mt_bench.SUITE,
)
# Names that stand for several suites: all of them that the data holds.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "openchat": (*(kind.name for kind in openchat.SUITES), gsm8k.NAME, math.NAME),
}


def make_suites(names: Sequence[str], data: Sequence[str], options: SuiteOptions) -> list[Suite]:
    """The suites with these names, in the order of the table.

    names: of suites or groups. data: `PATH` for every suite, or `SUITE=PATH` for one. Raises UserError for an unknown
    name, and for a suite without its data.
    """
    by_name = {kind.name: kind for kind in SUITES}
    places = _places(data)
    chosen: set[str] = set()
    for name in names:
        if name in GROUPS:
            chosen |= _members(name, by_name, places)
        elif name in by_name:
            chosen.add(name)
        else:
            known = ", ".join([*by_name, *GROUPS])
            raise UserError(
                "--suite", f"{name} is no suite", did_you_mean(name, [*by_name, *GROUPS]) or f"one of {known}"
            )
    return [_made(kind, replace(options, data=_data_of(kind, places))) for kind in SUITES if kind.name in chosen]


def _made(kind: SuiteKind, options: SuiteOptions) -> Suite:
    suite = kind.make(options)
    if not suite.questions:
        place = "--data" if options.data is None else options.data.path
        raise UserError(place, f"holds no question of the suite {kind.name}", "name the benchmark's own files")
    return suite


def _members(group: str, by_name: Mapping[str, SuiteKind], places: Sequence[tuple[str | None, SuiteData]]) -> set[str]:
    found = {name for name in GROUPS[group] if _data_of(by_name[name], places, only_if_in=True) is not None}
    if not found:
        where = ", ".join(str(data.path) for _, data in places) or "--data"
        raise UserError(where, f"holds no questions of the suite {group}", "name the folder or tar archive with --data")
    return found


def _data_of(
    kind: SuiteKind, places: Sequence[tuple[str | None, SuiteData]], *, only_if_in: bool = False
) -> SuiteData | None:
    """The data of a suite: what was named for it, otherwise the first that holds its questions, otherwise the first."""
    for name, data in places:
        if name == kind.name:
            return data
    free = [data for name, data in places if name is None]
    holding = next((data for data in free if kind.is_in(data)), None)
    return holding or (None if only_if_in or not free else free[0])


def _places(data: Sequence[str]) -> list[tuple[str | None, SuiteData]]:
    """Pairs of a suite's name, None for all, and its data."""
    names = {kind.name for kind in SUITES}
    places: list[tuple[str | None, SuiteData]] = []
    for text in data:
        name, equals, path = text.partition("=")
        if equals and name in names:
            places.append((name, SuiteData(Path(path), suite=name)))
        else:
            places.append((None, SuiteData(Path(text))))
    return places


def suites_text() -> str:
    """All suites and groups, a line each."""
    rows = [[kind.name, kind.summary] for kind in SUITES]
    rows += [[name, f"those of these that the data holds: {', '.join(members)}"] for name, members in GROUPS.items()]
    return "\n".join(aligned(rows))
