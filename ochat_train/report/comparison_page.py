"""`ochat report RUN RUN ...`: several runs on one page: final numbers, differences of their recipes, curves over each
other, condition matrices side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from ochat_train.evaluation.results import Validation
from ochat_train.report.matrix_section import heat_legend, matrix_section
from ochat_train.report.page import Section, render_page, require_place, text_cells, write_page
from ochat_train.report.pictures import Series, line_chart
from ochat_train.report.run_facts import run_facts
from ochat_train.report.tables import VERDICT_NOTE, number_text, verdict_text
from ochat_train.runs.history import RunHistory, read_run_history
from ochat_train.runs.metrics import StepMetrics

_ALWAYS_DIFFERENT = frozenset({"output_dir"})
_UNSET = "-"
_NOTHING = frozenset({_UNSET, "null"})


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """A run of the comparison. label: its folder's name, or its path where two folders have that name."""

    label: str
    history: RunHistory

    @property
    def validation(self) -> Validation | None:
        """The last validation."""
        return self.history.validations[-1] if self.history.validations else None


def write_comparison(run_dirs: Sequence[Path], out: Path, *, price: float | None) -> None:
    """Write the page of several runs. price: of a GPU-hour, in the user's currency; None: not known.

    Raises UserError for a folder that is not a run or is named twice, a run without steps, a bad `out`.
    """
    seen: set[Path] = set()
    for run_dir in run_dirs:
        if run_dir.resolve() in seen:
            raise UserError(run_dir, "is named twice", "name each run once")
        seen.add(run_dir.resolve())
    runs = [
        NamedRun(label=label, history=read_run_history(run_dir))
        for label, run_dir in zip(_labels(run_dirs), run_dirs, strict=True)
    ]
    prepared_dirs = [Path(run.history.run.recipe.data.prepared_dir) for run in runs]
    require_place(out, option="--out", prepared_dirs=prepared_dirs)
    page = render_page(f"{len(runs)} runs", ", ".join(run.label for run in runs), list(_sections(runs, price=price)))
    write_page(out, page, option="--out")


def _labels(run_dirs: Sequence[Path]) -> list[str]:
    names = [run_dir.resolve().name for run_dir in run_dirs]
    return names if len(set(names)) == len(names) else [str(run_dir) for run_dir in run_dirs]


def _sections(runs: Sequence[NamedRun], *, price: float | None) -> Iterator[Section]:
    yield _numbers(runs, price=price)
    yield _recipes(runs)
    yield from _learnt(runs)
    yield _curves(runs, "Training loss", "nats per token (weighted)", lambda row: row.means.loss)
    yield from _class_losses(runs)
    yield from _held_out_losses(runs)
    yield _curves(runs, "Learning rate", "learning rate", lambda row: row.learning_rate, is_noisy=False)
    yield _curves(runs, "Throughput", "tokens per second", lambda row: row.speed.tokens_per_second)
    yield _curves(runs, "Gradient norm", "2-norm", lambda row: row.grad_norm, logarithmic=True)
    yield from _matrices(runs)


def _numbers(runs: Sequence[NamedRun], *, price: float | None) -> Section:
    """What each run came to, a column a run."""
    numbers = [_numbers_of(run) for run in runs]
    facts = [run_facts(run.history, price=price) for run in runs]
    rows = [
        text_cells([name, *(column.get(name, _UNSET) for column in columns)])
        for columns in (numbers, facts)
        for name in dict.fromkeys(name for column in columns for name in column)
    ]
    head = ["figure", *(run.label for run in runs)]
    return Section(heading="Final numbers", paragraphs=_held_out_notes(runs), head=head, rows=rows)


def _numbers_of(run: NamedRun) -> dict[str, str]:
    shown = {"training loss, last step": number_text(run.history.steps[-1].means.loss, ".4f")}
    if (validation := run.validation) is None:
        return shown
    shown["held-out loss, last"] = f"{number_text(validation.evaluation.loss, '.4f')} (step {validation.step:,})"
    for name, scores in validation.evaluation.classes.items():
        shown[f"held-out nll, {name}"] = number_text(scores.nll, ".4f")
        shown[f"held-out accuracy, {name}"] = number_text(scores.accuracy, ".1%")
    return shown


def _held_out_notes(runs: Sequence[NamedRun]) -> list[str]:
    if len({run.history.run.prepared.fingerprint for run in runs}) == 1:
        return ["All were trained and scored on the same prepared dataset."]
    return [
        "These runs have different prepared datasets. Compare held-out figures only where the same conversations were "
        "held out: with the same sources, data.validation_ratio and data.validation_seed (else seed)."
    ]


def _recipes(runs: Sequence[NamedRun]) -> Section:
    recipes = [dict(_leaves(run.history.run.recipe.model_dump(mode="json", by_alias=True))) for run in runs]
    rows = [text_cells([key, *values]) for key, values in differences(recipes).items()]
    text = "Only keys that differ." if rows else "The recipes are the same."
    head = ["key", *(run.label for run in runs)]
    return Section(heading="Recipes", paragraphs=[text], head=head, rows=rows)


def differences(recipes: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Keys whose values are not the same in all recipes, with the value in each; `-` where a recipe lacks the key,
    which is the same as null.

    recipes: values as text by their full key. `output_dir` is left out: it always differs.
    """
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in _ALWAYS_DIFFERENT)
    found = {key: [recipe.get(key, _UNSET) for recipe in recipes] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if len({None if value in _NOTHING else value for value in values}) > 1
    }


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Full key and text of every value of a recipe."""
    if isinstance(value, dict | list) and value:
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in entries:
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _learnt(runs: Sequence[NamedRun]) -> Iterator[Section]:
    names = dict.fromkeys(name for run in runs if run.validation for name in run.validation.evaluation.classes)
    if not names:
        return
    rows = [text_cells([name, *(_verdict(run, name) for run in runs)]) for name in names]
    note = VERDICT_NOTE[0].upper() + VERDICT_NOTE[1:]
    head = ["class", *(run.label for run in runs)]
    yield Section(heading="Was the conditioning learnt?", paragraphs=[note], head=head, rows=rows)


def _verdict(run: NamedRun, class_name: str) -> str:
    if run.validation is None or class_name not in run.validation.evaluation.classes:
        return _UNSET
    return verdict_text(run.validation.evaluation, class_name)


def _curves(
    runs: Sequence[NamedRun],
    heading: str,
    unit: str,
    value_of: Callable[[StepMetrics], float | None],
    *,
    logarithmic: bool = False,
    is_noisy: bool = True,
) -> Section:
    series = [
        Series(
            label=run.label,
            x=[row.step for row in run.history.steps],
            y=[value_of(row) for row in run.history.steps],
            number=number,
            is_noisy=is_noisy,
        )
        for number, run in enumerate(runs)
    ]
    return Section(heading=heading, pictures=[line_chart(series, unit=unit, logarithmic=logarithmic)])


def _class_losses(runs: Sequence[NamedRun]) -> Iterator[Section]:
    """A chart for each class that more than one run has."""
    last = [run.history.steps[-1].means.classes for run in runs]
    for name in dict.fromkeys(name for classes in last for name in classes):
        having = [run for run, classes in zip(runs, last, strict=True) if name in classes]
        if len(having) < 2:
            continue
        series = []
        for number, run in enumerate(runs):
            rows = [row for row in run.history.steps if name in row.means.classes]
            losses = [row.means.classes[name].loss for row in rows]
            if run in having:
                series.append(Series(label=run.label, x=[row.step for row in rows], y=losses, number=number))
        chart = line_chart(series, unit="nats per token (weighted)")
        yield Section(heading=f"Training loss of class {name}", pictures=[chart])


def _held_out_losses(runs: Sequence[NamedRun]) -> Iterator[Section]:
    series = [
        Series(
            label=run.label,
            x=[row.step for row in run.history.validations],
            y=[row.evaluation.loss for row in run.history.validations],
            number=number,
            points=True,
        )
        for number, run in enumerate(runs)
        if run.history.validations
    ]
    if series:
        yield Section(heading="Held-out loss", pictures=[line_chart(series, unit="nats per token (weighted)")])


def _matrices(runs: Sequence[NamedRun]) -> Iterator[Section]:
    columns = []
    for run in runs:
        if run.validation is None or not run.validation.evaluation.matrix.nll:
            continue
        own = {row.name: row.condition for row in run.history.run.prepared.classes}
        heading = f"{run.label}, step {run.validation.step:,}"
        section = matrix_section(heading, run.validation.evaluation.matrix, own_conditions=own)
        columns.append(Section(heading=heading, head=section.head, rows=section.rows))
    if columns:
        text = "Nats per token of each class's held-out answers under each condition; the less colour, the likelier."
        yield Section(heading="Condition matrices", paragraphs=[text], legend=heat_legend(), columns=columns)
