"""Results of `ochat eval` in the model card of an export: metadata that the Hub reads (`model-index`), and a table.

Only results of this very export get in: they name the sha256 of its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from data_pipeline.text_rules import markdown_text
from ochat_train.export.card import json_code
from ochat_train.export.layout import CARD, EXPORT_MARK, exported_names, read_mark, weights_sha256
from ochat_train.report.tables import markdown_table
from ochat_train.suites.intervals import Estimate
from ochat_train.suites.lm_eval import HarnessScore
from ochat_train.suites.results import EvalResults, SuiteFacts, SuiteScore
from ochat_train.system.durable import replace_text

_BEGIN, _END = "<!-- results of ochat eval -->", "<!-- end of results of ochat eval -->"
_BEFORE = "\n## Training data\n"  # the section of a new card that the table is put before
_HEAD = ("benchmark", "condition", "score", "95 % interval", "answered", "questions", "seen in training")
_TASK = {"task_type": "text-generation", "task_name": "Text generation"}


def add_results(folder: Path, results: EvalResults) -> None:
    """Write results into the card of an export; those of an earlier call with the same benchmarks are replaced.

    Whatever else the card holds stays. Raises UserError where the results are not of this export, and where the card's
    metadata cannot be read; then nothing is written.
    """
    files = exported_names(_bytes(folder / EXPORT_MARK))
    if files is None:
        raise UserError(folder / EXPORT_MARK, "lists no files", "export the run again")
    _require_same_weights(weights_sha256(files), results)
    path = folder / CARD
    text = card_with_results(_bytes(path).decode("utf-8"), results, place=path)
    is_untouched = sha256_of_file(path) == files.get(CARD)
    mode = path.stat().st_mode
    replace_text(path, text)
    path.chmod(mode)
    if is_untouched:  # a card that a person edited is not the export's own, and stays known as that
        mark = read_mark(folder)
        mark["files"][CARD] = sha256_of_file(path)
        mode = (folder / EXPORT_MARK).stat().st_mode
        replace_text(folder / EXPORT_MARK, json.dumps(mark, indent=1, ensure_ascii=False) + "\n")
        (folder / EXPORT_MARK).chmod(mode)


def card_with_results(card: str, results: EvalResults, *, place: Path) -> str:
    """The text of a card with results in its metadata and in a table. place: of the card, for messages."""
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(card)
    except Exception as error:  # whatever YAML or huggingface_hub say of it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(place, f"the metadata between the `---` lines cannot be read: {reason}") from None
    metadata = read.data
    new = list(_entries(results))
    names = {_name_of(entry) for entry in new}
    metadata.model_name = metadata.model_name or _title(card) or results.model.name
    metadata.eval_results = [entry for entry in metadata.eval_results or [] if _name_of(entry) not in names] + new
    body = _with_section(card.split("---\n", 2)[2] if card.startswith("---\n") else card, results)
    text = f"---\n{metadata.to_yaml()}\n---\n{body}"
    if ModelCard(text).data.to_dict() != metadata.to_dict():
        raise UserError(place, "its metadata with the results reads back as something else", "correct its metadata")
    return text


def _require_same_weights(sha256: str, results: EvalResults) -> None:
    found = results.model.weights_sha256
    if found is None:
        problem = f"the results are of a server ({results.model.name}), and do not say which weights it has"
        raise UserError("--results", problem, "evaluate the exported folder, and not a server: `ochat eval FOLDER ...`")
    if found != sha256:
        problem = f"the results are of other weights ({found[:12]}) than the export's ({sha256[:12]})"
        raise UserError("--results", problem, "evaluate this export, and give its results")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A figure for the metadata. filter: of answers, empty for none. arguments: how it was measured."""

    dataset: str
    title: str
    metric: str
    filter: str
    condition: str | None
    value: float
    arguments: dict[str, Any]


def _entries(results: EvalResults) -> Iterator[Any]:
    """The figures in the form of the Hub."""
    from huggingface_hub import EvalResult

    for entry in [*_scores(results), *map(_harness_entry, results.harness)]:
        shown = "the default condition" if entry.condition is None else f"condition {json.dumps(entry.condition)}"
        yield EvalResult(
            **_TASK,
            dataset_type=entry.dataset,
            dataset_name=entry.title,
            metric_type=entry.metric,
            metric_value=round(entry.value, 6),
            metric_name=", ".join(filter(None, (entry.metric, entry.filter, shown))),
            metric_args={"condition": entry.condition, **entry.arguments},
        )


def _scores(results: EvalResults) -> Iterator[_Entry]:
    for row in results.scores:
        if row.task is not None or row.score is None:
            continue
        facts = results.facts_of(row.suite)
        arguments: dict[str, Any] = {
            "interval_95": [round(row.score.low, 6), round(row.score.high, 6)],
            "questions": row.num_scored,
            "few_shot": results.settings.few_shot,
            "temperature": results.settings.temperature,
        }
        if (seen := _seen(results, row)) is not None:
            arguments["questions_seen_in_training"] = seen
        yield _Entry(
            dataset=row.suite,
            title=facts.title,
            metric=facts.metric,
            filter="",
            condition=row.condition,
            value=row.score.mean,
            arguments=arguments,
        )


def _harness_entry(row: HarnessScore) -> _Entry:
    arguments = {"standard_error": row.standard_error, "questions": row.num_questions, "few_shot": row.few_shot}
    return _Entry(
        dataset=row.task,
        title=f"{row.task} (lm-evaluation-harness)",
        metric=row.metric,
        filter=row.filter,
        condition=row.condition,
        value=row.value,
        arguments={key: value for key, value in arguments.items() if value is not None},
    )


def _name_of(entry: Any) -> tuple[Any, ...]:
    """What tells an entry of the metadata from others: a newer one with the same takes its place."""
    return (entry.dataset_type, entry.metric_type, entry.metric_name)


def _with_section(body: str, results: EvalResults) -> str:
    """The text below the metadata with the table in it, in the place of an earlier one."""
    section = _section(results)
    if _BEGIN in body and _END in body:
        start, stop = body.index(_BEGIN), body.index(_END) + len(_END)
        return body[:start] + section + body[stop:]
    if _BEFORE in body:
        return body.replace(_BEFORE, f"\n{section}\n{_BEFORE}", 1)
    return f"{body.rstrip()}\n\n{section}\n"


def _section(results: EvalResults) -> str:
    rows = [_cells(row, results) for row in results.scores if row.task is None]
    rows += [_harness_cells(row) for row in results.harness]
    settings = results.settings
    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    versions = {**results.versions, **results.engine_versions}
    named = ", ".join(f"{markdown_text(name)} {markdown_text(version)}" for name, version in versions.items())
    text = (
        f"Answers of this model ({how}, {settings.few_shot} examples) by `ochat eval`, engine "
        f"{markdown_text(results.engine)}; {named}. Shares of right answers with 95 % intervals; *answered* is the "
        "share in which the benchmark's rule found an answer."
    )
    return f"{_BEGIN}\n## Benchmarks\n\n{markdown_table(_HEAD, rows)}\n\n{text}\n{_END}"


def _cells(row: SuiteScore, results: EvalResults) -> tuple[str, ...]:
    facts, seen = results.facts_of(row.suite), _seen(results, row)
    return (
        markdown_text(facts.title),
        _condition(row.condition),
        _shown(row.score.mean if row.score else None, facts),
        _interval(row.score, facts),
        "-" if row.answered is None else f"{row.answered:.1%}",
        f"{row.num_scored:,} of {row.num_questions:,}",
        "-" if seen is None else f"{seen:,}",
    )


def _harness_cells(row: HarnessScore) -> tuple[str, ...]:
    error = "" if row.standard_error is None else f" ± {row.standard_error:.4f} (standard error)"
    name = markdown_text(f"{row.task} ({row.metric}, {row.filter})")
    questions = "-" if row.num_questions is None else f"{row.num_questions:,}"
    return (name, _condition(row.condition), f"{row.value:.4f}{error}", "-", "-", questions, "-")


def _seen(results: EvalResults, row: SuiteScore) -> int | None:
    found = [
        each.num_seen for each in results.contamination if (each.suite, each.condition) == (row.suite, row.condition)
    ]
    return found[0] if found else None


def _condition(condition: str | None) -> str:
    return "default" if condition is None else json_code(condition)


def _shown(value: float | None, facts: SuiteFacts) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if facts.highest == 1.0 else f"{value:.2f}"


def _interval(score: Estimate | None, facts: SuiteFacts) -> str:
    return "-" if score is None else f"{_shown(score.low, facts)} to {_shown(score.high, facts)}"


def _title(card: str) -> str | None:
    found = re.search(r"^# (.+)$", card, flags=re.MULTILINE)
    return found[1].strip() if found else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", "name a folder that `ochat export` wrote") from None
