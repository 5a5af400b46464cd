"""Results of `ochat eval` in the model card of an export: metadata that the Hub reads (`model-index`), and a table.

Only results of this very export get in: they name the sha256 of its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from data_pipeline.text_rules import markdown_text, visible_line
from ochat_train.export.card import json_code
from ochat_train.export.layout import CARD, EXPORT_MARK, exported_names, read_mark, weights_sha256
from ochat_train.report.tables import markdown_table
from ochat_train.suites.intervals import Estimate
from ochat_train.suites.lm_eval import HarnessScore
from ochat_train.suites.results import EvalResults, SuiteFacts, SuiteScore
from ochat_train.system.durable import replace_text

_BEGIN, _END = "<!-- results of ochat eval -->", "<!-- end of results of ochat eval -->"
_BEFORE = "\n## Training data\n"  # the section of a new card that the table is put before
_HEAD = (
    *("benchmark", "condition", "score", "95 % interval", "other rules", "answered", "questions"),
    "seen in training",
)
_TASK = {"task_type": "text-generation", "task_name": "Text generation"}
_CONDITION, _DEFAULT = "condition ", "the default condition"  # in the name of a figure
# The Hub keeps one name and one set of arguments for all figures with the same task, dataset and `config`. So our
# figures and those of the harness never share one with each other, nor with those that a person put into the card.
_OURS, _HARNESS = "ochat eval", "lm-evaluation-harness"


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
    has_crlf = "\r\n" in card
    card = card.replace("\r\n", "\n").removeprefix("\ufeff")  # a mark of the byte order hides the metadata
    read = _read(card, place)
    metadata = read.data
    new = list(_entries(results))
    names = {_name_of(entry) for entry in new}
    kept = [entry for entry in metadata.eval_results or [] if _name_of(entry) not in names]
    metadata.model_name = metadata.model_name or _title(card) or results.model.name
    metadata.eval_results = kept + new
    text = f"---\n{metadata.to_yaml()}\n---\n{_with_section(read.text, results)}"
    again = _read(text, place).data
    if again.to_dict() != metadata.to_dict() or not _same_entries(again.eval_results or [], kept + new):
        raise UserError(place, "its metadata with the results reads back as something else", "correct its metadata")
    return text.replace("\n", "\r\n") if has_crlf else text


def _read(card: str, place: Path) -> Any:
    """A card as `huggingface_hub` reads it. Raises UserError where it cannot, or would lose figures."""
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(card)
        values = _metadata_of(card)
    except Exception as error:  # whatever YAML or huggingface_hub say of it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(place, f"the metadata between the `---` lines cannot be read: {reason}") from None
    if len(values.get("model-index") or ()) > 1:
        problem = "its metadata has figures of several models (`model-index`), which would become those of one"
        raise UserError(place, problem, "keep those of this model only")
    return read


def _metadata_of(card: str) -> dict[str, Any]:
    """The metadata as it is written."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    found = REGEX_YAML_BLOCK.search(card)
    return (yaml.safe_load(found[2]) if found else None) or {}


def _same_entries(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether the figures are the same, in any order: the Hub's form puts those of a dataset together."""
    texts = [
        sorted(
            json.dumps({name: value for name, value in vars(entry).items() if value is not None}, default=str)
            for entry in each
        )
        for each in (found, wanted)
    ]
    return texts[0] == texts[1]


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
    """A figure for the metadata. source: what measured it. filter: of answers, or another rule that scored them; empty
    for none. arguments: how it was measured.
    """

    source: str
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
        arguments = {"condition": entry.condition, **entry.arguments}
        yield EvalResult(
            **_TASK,
            dataset_type=entry.dataset,
            dataset_name=entry.title,
            dataset_config=entry.source,
            metric_type=entry.metric,
            metric_value=round(entry.value, 6),
            metric_name=", ".join(filter(None, (entry.metric, entry.filter, _named_condition(entry.condition)))),
            metric_args={name: value for name, value in arguments.items() if value is not None},
        )


def _scores(results: EvalResults) -> Iterator[_Entry]:
    """The score of each suite under each condition, then the scores of the same answers by other rules."""
    for row in results.scores:
        if row.task is not None or row.score is None:
            continue
        facts = results.facts_of(row.suite)
        for rule, estimate in {"": row.score, **row.others}.items():
            yield _Entry(
                source=_OURS,
                dataset=row.suite,
                title=facts.title,
                metric=facts.metric,
                filter=rule,
                condition=row.condition,
                value=estimate.mean,
                arguments={
                    "interval_95": [round(estimate.low, 6), round(estimate.high, 6)],
                    "questions": row.num_scored,
                    "few_shot": results.settings.few_shot,
                    "temperature": results.settings.temperature,
                    "questions_seen_in_training": _seen(results, row),
                },
            )


def _harness_entry(row: HarnessScore) -> _Entry:
    arguments = {"standard_error": row.standard_error, "questions": row.num_questions, "few_shot": row.few_shot}
    return _Entry(
        source=_HARNESS,
        dataset=row.task,
        title=f"{row.task} ({_HARNESS})",
        metric=row.metric,
        filter=row.filter,
        condition=row.condition,
        value=row.value,
        arguments=arguments,
    )


def _named_condition(condition: str | None) -> str:
    """The condition in the name of a figure, on one line that people can read."""
    if condition is None:
        return _DEFAULT
    return f"{_CONDITION}{visible_line(json.dumps(condition, ensure_ascii=False))}"


def _name_of(entry: Any) -> tuple[Any, ...]:
    """What tells an entry of the metadata from others: a newer one with the same takes its place.

    The condition is compared as a value, because its spelling in the name was another one in earlier versions.
    """
    name = entry.metric_name or ""
    if isinstance(entry.metric_args, dict) and (condition := entry.metric_args.get("condition")) is not None:
        return (entry.dataset_type, entry.metric_type, name.partition(f", {_CONDITION}")[0], condition)
    return (entry.dataset_type, entry.metric_type, name)


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
        _others(row, facts),
        "-" if row.answered is None else f"{row.answered:.1%}",
        f"{row.num_scored:,} of {row.num_questions:,}",
        "-" if seen is None else f"{seen:,}",
    )


def _harness_cells(row: HarnessScore) -> tuple[str, ...]:
    error = "" if row.standard_error is None else f" ± {row.standard_error:.4f} (standard error)"
    name = markdown_text(f"{row.task} ({row.metric}, {row.filter})")
    questions = "-" if row.num_questions is None else f"{row.num_questions:,}"
    return (name, _condition(row.condition), f"{row.value:.4f}{error}", "-", "-", "-", questions, "-")


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


def _others(row: SuiteScore, facts: SuiteFacts) -> str:
    """The same answers by other rules."""
    shown = (f"{markdown_text(rule)} {_shown(estimate.mean, facts)}" for rule, estimate in row.others.items())
    return ", ".join(shown) or "-"


def _title(card: str) -> str | None:
    found = re.search(r"^# (.+)$", card, flags=re.MULTILINE)
    return found[1].strip() if found else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(path, f"cannot be read: {error.strerror}", "name a folder that `ochat export` wrote") from None
