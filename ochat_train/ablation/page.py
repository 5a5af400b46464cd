"""The results of an ablation as one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipeline.text_rules import quoted
from ochat_train.ablation.table import HEAD, ArmFigures, Figure, arm_figures, cells
from ochat_train.report.matrix_section import matrix_section
from ochat_train.report.page import Section, render_page, text_cells
from ochat_train.report.pictures import bar_chart

_HOW_TO_READ = (
    "Every arm takes the same steps from the same base with the same seeds; an arm with fewer conversations goes over "
    "them more often. All are asked the same held-out questions under the inference condition and scored on the same "
    "held-out conversations. Mean ± standard deviation over seeds. Condition margin: how much likelier the answers of "
    "the inference class are under its own condition than under the nearest other one, in nats per token."
)


def ablation_page(results: dict[str, Any]) -> str:
    """The page of results.json, as text."""
    subtitle = f"{len(results['arms'])} arms, {results['seeds']} seed(s), {results['steps']:,} steps each"
    return render_page(f"Ablation: {results['recipe']}", subtitle, list(_sections(results)))


def results_picture(results: dict[str, Any]) -> str:
    """Right answers of all arms as SVG for a page, or where there are no questions the held-out nll."""
    rows = arm_figures(results)
    condition, name = results["inference_condition"], results["inference_class"]
    accuracy = _bars(rows, lambda row: row.accuracy, unit=f"share of right answers under {quoted(condition)}")
    return accuracy or _bars(rows, lambda row: row.nll, unit=f"nats per token of held-out {name} answers")


def _sections(results: dict[str, Any]) -> Iterator[Section]:
    rows = arm_figures(results)
    yield Section(heading="Arms", paragraphs=[_HOW_TO_READ], head=HEAD, rows=[text_cells(cells(row)) for row in rows])
    condition = results["inference_condition"]
    accuracy = _bars(rows, lambda row: row.accuracy, unit=f"share of right answers under {quoted(condition)}")
    if accuracy:
        yield Section(heading="Right answers", svg=accuracy)
        yield from _tasks(results)
    nll = _bars(rows, lambda row: row.nll, unit=f"nats per token of held-out {results['inference_class']} answers")
    if nll:
        yield Section(heading="Held-out nll", svg=nll)
    yield from _matrices(results)
    yield Section(heading="All figures", preformatted=json.dumps(results, indent=1, ensure_ascii=False), folded=True)


def _matrices(results: dict[str, Any]) -> Iterator[Section]:
    """The condition matrix of every arm, after the training with the first seed."""
    for arm in results["arms"].values():
        seed, score = min(arm["scores"].items(), key=lambda entry: int(entry[0]))
        own = {name: entry["condition"] for name, entry in score["learnt"].items()}
        yield matrix_section(
            f"Condition matrix: {arm['title']}, seed {seed}",
            score["matrix"],
            conditions=score["conditions"],
            own_conditions=own,
            learnt=score["learnt"],
        )


def _bars(rows: Sequence[ArmFigures], pick: Callable[[ArmFigures], Figure | None], *, unit: str) -> str:
    known = [(row.title, figure) for row in rows if (figure := pick(row)) is not None]
    if not known:
        return ""
    figures = [figure for _, figure in known]
    return bar_chart([title for title, _ in known], [f.mean for f in figures], [f.spread for f in figures], unit=unit)


def _tasks(results: dict[str, Any]) -> Iterator[Section]:
    """Right answers task by task, where there is more than one."""
    condition = results["inference_condition"]
    tables = {
        arm["title"]: [score["accuracy"][condition] for score in arm["scores"].values()]
        for arm in results["arms"].values()
    }
    tasks = [task for task in next(iter(tables.values()))[0] if task != "all"]
    if len(tasks) > 1:
        rows = [
            text_cells([title, *(Figure(values=[score[task] for score in scores]).text(".1%") for task in tasks)])
            for title, scores in tables.items()
        ]
        yield Section(heading="Right answers by task", head=["arm", *tasks], rows=rows)
