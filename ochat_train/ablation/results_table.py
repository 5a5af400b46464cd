"""The results of an ablation as a table: mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from data_pipeline.look.text import table
from data_pipeline.text_rules import quoted, visible
from ochat_train.ablation.results import AblationResults, ArmScore
from ochat_train.evaluation.questions import ALL_TASKS
from ochat_train.evaluation.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure over seeds. spread: standard deviation, None for a single seed."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds (n - 1), None for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    def text(self, form: str) -> str:
        """Mean and spread, for example `61.2% ± 1.1%`."""
        spread = "" if self.spread is None else f" ± {format(self.spread, form)}"
        return format(self.mean, form) + spread


@dataclass(frozen=True, kw_only=True)
class ArmFigures:
    """What is compared of an arm. accuracy: under the inference condition, None without questions.

    nll: of the held-out answers of the inference class under the inference condition, nats per token. margin: how much
    likelier they are than under the nearest other condition; None where it was not measured. verdicts: whether the
    condition was learnt, by seed; None for an arm that was trained with one condition. benchmarks: suite -> its score
    under the inference condition.
    """

    name: str
    title: str
    conversations: int
    epochs: float
    accuracy: Figure | None
    nll: Figure | None
    margin: Figure | None
    verdicts: Sequence[Verdict | None]
    benchmarks: Mapping[str, Figure]

    @property
    def learnt(self) -> str:
        """The verdicts as text: one word where all seeds agree, else one for each; a dash where there is none."""
        words = [verdict or "-" for verdict in self.verdicts]
        return ", ".join(words if len(set(words)) > 1 else words[:1]) or "-"


def arm_figures(results: AblationResults) -> list[ArmFigures]:
    """The figures of all arms, in their order."""
    condition, name = results.inference_condition, results.inference_class
    rows = []
    for arm_name, arm in results.arms.items():
        scores = list(arm.scores.values())
        margins = [score.evaluation.matrix.learnt.get(name) for score in scores]
        rows.append(
            ArmFigures(
                name=arm_name,
                title=arm.title,
                conversations=arm.conversations,
                epochs=arm.epochs,
                accuracy=_figure([score.accuracy.get(condition, {}).get(ALL_TASKS) for score in scores]),
                nll=_figure([score.evaluation.classes[name].nll for score in scores]),
                margin=_figure([None if learnt is None else learnt.margin for learnt in margins]),
                verdicts=[None if learnt is None else learnt.verdict for learnt in margins],
                benchmarks=_benchmarks(scores, condition),
            )
        )
    return rows


def _benchmarks(scores: Sequence[ArmScore], condition: str) -> dict[str, Figure]:
    found = {}
    for suite in dict.fromkeys(name for score in scores for name in score.benchmarks):
        figure = _figure([score.benchmarks.get(suite, {}).get(condition) for score in scores])
        if figure is not None:
            found[suite] = figure
    return found


def _figure(values: Sequence[float | None]) -> Figure | None:
    """None where any seed lacks its value."""
    known = [value for value in values if value is not None]
    return Figure(values=known) if known and len(known) == len(values) else None


HEAD = ("arm", "conversations", "epochs", "right answers", "held-out nll", "condition margin", "learnt")


def head_of(rows: Sequence[ArmFigures]) -> tuple[str, ...]:
    """The head of the table: HEAD, and a column for each benchmark."""
    return (*HEAD, *dict.fromkeys(suite for row in rows for suite in row.benchmarks))


def cells(row: ArmFigures, head: Sequence[str] = HEAD) -> tuple[str, ...]:
    """A row of the table, under `head_of`."""
    benchmarks = [row.benchmarks[suite].text(".3f") if suite in row.benchmarks else "-" for suite in head[len(HEAD) :]]
    return (
        row.title,
        f"{row.conversations:,}",
        f"{row.epochs:.1f}",
        row.accuracy.text(".1%") if row.accuracy else "-",
        row.nll.text(".4f") if row.nll else "-",
        row.margin.text(".4f") if row.margin else "-",
        row.learnt,
        *benchmarks,
    )


def results_text(results: AblationResults) -> str:
    """The table for a terminal."""
    head = (
        f"{results.recipe}: {results.steps:,} steps, {results.seeds} seed(s); answers under "
        f"{quoted(results.inference_condition)}, nll and margin of held-out {results.inference_class} answers in nats "
        "per token"
    )
    rows = arm_figures(results)
    columns = head_of(rows)
    return visible(head) + "\n" + table(columns, [cells(row, columns) for row in rows])
