"""The results of an ablation as one page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from data_pipeline.text_rules import quoted
from ochat_train.ablation.results import AblationResults
from ochat_train.ablation.results_table import Figure, arm_figures, cells, head_of
from ochat_train.evaluation.questions import ALL_TASKS
from ochat_train.report.matrix_section import matrix_section, verdict_lines
from ochat_train.report.page import Section, render_page, text_cells
from ochat_train.report.pictures import Picture, bar_chart
from ochat_train.report.tables import VERDICT_NOTE

_HOW_TO_READ = (
    "Every arm takes the same steps from the same base with the same seeds; an arm with fewer conversations goes over "
    "them more often. All are asked the same held-out questions under the inference condition and scored on the same "
    "held-out conversations. Mean ± standard deviation over seeds. Condition margin: how much likelier the answers of "
    "the inference class are under its own condition than under the nearest other one, in nats per token. Learnt: "
    f"{VERDICT_NOTE} A dash: the arm was trained with one condition, so the others are new to it."
)


def ablation_page(results: AblationResults) -> str:
    """The page of an ablation, as text."""
    subtitle = f"arms: {len(results.arms)}, seeds: {results.seeds}, {results.steps:,} steps each"
    return render_page(f"Ablation: {results.recipe}", subtitle, list(_sections(results)))


def results_picture(results: AblationResults) -> Picture | None:
    """Right answers of all arms, or where there are no questions the held-out nll; None where that is not finite."""
    return _accuracy_chart(results) or _nll_chart(results)


def _sections(results: AblationResults) -> Iterator[Section]:
    figures = arm_figures(results)
    head = head_of(figures)
    rows = [text_cells(cells(row, head)) for row in figures]
    yield Section(heading="Arms", paragraphs=[_HOW_TO_READ], head=head, rows=rows)
    if accuracy := _accuracy_chart(results):
        yield Section(heading="Right answers", pictures=[accuracy])
        yield from _tasks(results)
    if nll := _nll_chart(results):
        yield Section(heading="Held-out nll", pictures=[nll])
    yield from _matrices(results)
    text = json.dumps(results.to_json(), indent=1, ensure_ascii=False)
    yield Section(heading="All figures", preformatted=text, folded=True)


def _accuracy_chart(results: AblationResults) -> Picture | None:
    figures = [(row.title, row.accuracy) for row in arm_figures(results)]
    return _bars(figures, unit=f"share of right answers under {quoted(results.inference_condition)}")


def _nll_chart(results: AblationResults) -> Picture | None:
    figures = [(row.title, row.nll) for row in arm_figures(results)]
    return _bars(figures, unit=f"nats per token of held-out {results.inference_class} answers")


def _bars(titled: Sequence[tuple[str, Figure | None]], *, unit: str) -> Picture | None:
    """A bar for each arm that has the figure; None where none has."""
    known = [(title, figure) for title, figure in titled if figure is not None]
    if not known:
        return None
    titles = [title for title, _ in known]
    return bar_chart(titles, [figure.mean for _, figure in known], [figure.spread for _, figure in known], unit=unit)


def _tasks(results: AblationResults) -> Iterator[Section]:
    """Right answers task by task, where there is more than one."""
    condition = results.inference_condition
    by_arm = {arm.title: [score.accuracy[condition] for score in arm.scores.values()] for arm in results.arms.values()}
    tasks = [task for task in next(iter(by_arm.values()))[0] if task != ALL_TASKS]
    if len(tasks) < 2:
        return
    rows = []
    for title, ratios in by_arm.items():
        figures = [Figure(values=[ratio[task] for ratio in ratios]) for task in tasks]
        rows.append(text_cells([title, *(figure.text(".1%") for figure in figures)]))
    yield Section(heading="Right answers by task", head=["arm", *tasks], rows=rows)


def _matrices(results: AblationResults) -> Iterator[Section]:
    """The condition matrix of every arm, after the training with the first seed."""
    for arm in results.arms.values():
        seed = min(arm.scores)
        matrix = arm.scores[seed].evaluation.matrix
        own = {name: entry.condition for name, entry in matrix.learnt.items()}
        heading = f"Condition matrix: {arm.title}, seed {seed}"
        yield matrix_section(heading, matrix, own_conditions=own, notes=verdict_lines(matrix))
