"""From raw rows to a prepared dataset: composes the steps, in parallel over cores, and keeps the account."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.classes.rewards import survey
from data_pipeline.classes.tagging import class_table
from data_pipeline.errors import Problem, UserError, UserErrors, duplicate_id
from data_pipeline.files import replaced_folder
from data_pipeline.ledger import Ledger
from data_pipeline.prepare.chunk import ChunkResult
from data_pipeline.prepare.condition_rows import HeldOut, condition_rows
from data_pipeline.prepare.counts import ClassCounts
from data_pipeline.prepare.fingerprints import input_fingerprints, sha256_of_text
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.workers import results
from data_pipeline.prepared.dataset import (
    FORMAT_VERSION,
    TOKENIZER_FOLDER,
    ClassRow,
    Manifest,
    PreparedWriter,
    holds_only_prepared_files,
)
from data_pipeline.prompt.chat_folder import check_chat_template, write_tokenizer_folder
from data_pipeline.read.openchat_parquet import tokenized_files


def prepare(
    job: PrepareJob, *, num_workers: int | None = None, progress: Callable[[int], None] = lambda rows: None
) -> tuple[Manifest, bool]:
    """Prepare a dataset into `job.data.prepared_dir`, unless the folder holds it already.

    num_workers: processes; None means one per core. progress: called with the number of rows read since the last call.

    Returns the manifest and whether the folder was reused. Raises UserError for anything a user can mend; an older
    prepared dataset in the folder is then still there.
    """
    prepared_dir = Path(job.data.prepared_dir)
    inputs = input_fingerprints(job)
    fingerprint = sha256_of_text(json.dumps(inputs, sort_keys=True))
    owned = prepared_dir.is_dir() and holds_only_prepared_files(prepared_dir)
    if owned and (old := _current_manifest(prepared_dir)) is not None and old.fingerprint == fingerprint:
        return old, True
    check_chat_template(job.tokenizer, job.template)
    for number, source in enumerate(job.data.sources):
        if source.is_tokenized:  # now, and not after an hour of work on the sources before it
            tokenized_files(source, job.template.name, where=f"data.sources.{number}")
    job = replace(job, rewards=survey(job.data))
    with replaced_folder(prepared_dir, owned=owned) as folder:
        manifest = _write_rows(job, folder, inputs, fingerprint, num_workers or os.cpu_count() or 1, progress)
        write_tokenizer_folder(
            folder / TOKENIZER_FOLDER,
            job.tokenizer,
            job.template,
            inference_condition=manifest.inference_condition,
            max_length_tokens=job.max_length_tokens,
        )
        manifest.save(folder)
    return manifest, False


def _current_manifest(prepared_dir: Path) -> Manifest | None:
    try:
        return Manifest.load(prepared_dir)
    except UserError:  # written by another version: prepared anew
        return None


def _write_rows(
    job: PrepareJob,
    folder: Path,
    inputs: dict[str, str],
    fingerprint: str,
    num_workers: int,
    progress: Callable[[int], None],
) -> Manifest:
    ledger, classes = Ledger(), ClassCounts(table=dict(class_table(job.data, job.rewards)))
    if job.data.condition_dropout:
        classes.condition_id("")  # so that the condition matrix has it
    writer = PreparedWriter(folder)
    seen_ids: set[tuple[int, str]] = set()
    held_out: list[HeldOut] = []
    splits = {split: {"conversations": 0, "tokens": 0, "supervised_tokens": 0} for split in ("train", "validation")}
    for result in results(job, num_workers):
        progress(result.rows.num_rows + result.ledger.num_read)
        kept = _drop_duplicates(result, seen_ids)
        ledger.add(result.ledger)
        ledger.add(_kept_counts(result, kept))
        rows = classes.add(result, kept)
        held_out += _held_out(result, kept, first_row=splits["validation"]["conversations"])
        for split, mask in (("train", kept & ~result.held_out), ("validation", kept & result.held_out)):
            part = rows if mask.all() else rows.filter(pa.array(mask))
            writer.write("train" if split == "train" else "validation", part)
            splits[split]["conversations"] += part.num_rows
            splits[split]["tokens"] += int(part.column("num_tokens").to_numpy().sum())
            splits[split]["supervised_tokens"] += int(part.column("num_supervised_tokens").to_numpy().sum())
    for batch in condition_rows(held_out, classes.condition_ids, classes.ids, job):
        writer.write("conditions", batch)
    writer.close(fingerprint=fingerprint)
    _check_outcome(job, ledger, splits)
    return Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        inputs=inputs,
        template=job.template.name,
        bos_token=job.tokenizer.bos_token,
        added_control_tokens=list(job.tokenizer.added_control_tokens),
        inference_condition=_inference_condition(job, classes.rows()),
        max_length_tokens=job.max_length_tokens,
        vocab_size=job.tokenizer.vocab_size,
        classes=classes.rows(),
        conditions=list(classes.condition_ids),
        splits=splits,
        ledger=ledger.as_json(),
    )


def _inference_condition(job: PrepareJob, classes: Sequence[ClassRow]) -> str:
    """The condition to prompt with: the recipe's; else the template's own if a class has it; else the heaviest class's.

    Classes whose weights stand in their rows are compared by their mean weight per supervised token.
    """
    conditions = [row.condition for row in classes]
    if job.inference_condition is not None:
        if job.inference_condition not in conditions:
            raise UserError(
                "model.inference_condition",
                f"no class has condition `{job.inference_condition}`",
                f"conditions: {conditions}",
            )
        return job.inference_condition
    if job.template.inference_condition in conditions:
        return job.template.inference_condition
    total_tokens = sum(row.supervised_tokens for row in classes)

    def weight(row: ClassRow) -> float:
        if row.weight is not None:
            return row.weight
        return round(row.weight_share * total_tokens / max(row.supervised_tokens, 1), 6)

    return max(classes, key=weight).condition


def _check_outcome(job: PrepareJob, ledger: Ledger, splits: dict[str, dict[str, int]]) -> None:
    fatal = dict(ledger.bad) if job.data.bad_rows == "error" else {}
    if job.data.overlong == "error" and ledger.dropped["overlong"]:
        fatal["overlong"] = ledger.dropped["overlong"]
    if fatal:
        raise UserErrors(
            "data.sources",
            f"{sum(fatal.values())} of {ledger.num_read} rows cannot be used",
            [
                Problem(place=reason, problem="\n  ".join([str(count), *ledger.examples[reason]]))
                for reason, count in sorted(fatal.items())
            ],
            "Repair them, or set `data.bad_rows: drop` (and `data.overlong`) to leave such rows out and count them.",
        )
    if not splits["train"]["conversations"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.dropped.items()) or "the sources are empty"
        raise UserError("data.sources", f"no conversation is left to train on ({ledger.num_read} read; {reasons})")
    if job.data.validation_ratio and not splits["validation"]["conversations"]:
        raise UserError(
            "data.validation_ratio",
            f"{job.data.validation_ratio} of {ledger.num_kept} conversations selects none",
            "raise it, or set it to 0 for no validation",
        )


def _drop_duplicates(result: ChunkResult, seen_ids: set[tuple[int, str]]) -> np.ndarray:
    """bool[rows]: which rows stay. The second conversation with an id of the same source is a bad row."""
    kept = np.ones(result.rows.num_rows, dtype=bool)
    ids = result.rows.column("id")
    for row in np.flatnonzero(result.has_own_id):
        identifier = str(ids[int(row)])
        if (result.source, identifier) in seen_ids:
            kept[row] = False
            result.ledger.num_read += 1
            twice = duplicate_id(identifier)
            result.ledger.drop(twice.reason, result.places[row], str(twice), bad=True)
        seen_ids.add((result.source, identifier))
    return kept


def _held_out(result: ChunkResult, kept: np.ndarray, *, first_row: int) -> list[HeldOut]:
    """The chunk's held-out conversations with their rows in the validation split; first_row: rows that it has so
    far.
    """
    rows = first_row + np.cumsum(kept & result.held_out) - 1
    supervised = result.rows.column("num_supervised_tokens")
    return [
        HeldOut(validation_row=int(rows[row]), tagged=tagged, num_supervised_tokens=supervised[row].as_py())
        for row, tagged in result.held_out_conversations.items()
        if kept[row]
    ]


def _kept_counts(result: ChunkResult, kept: np.ndarray) -> Ledger:
    num_kept = int(np.count_nonzero(kept))
    return Ledger(
        num_read=num_kept,
        num_kept=num_kept,
        num_truncated=int(np.count_nonzero(result.truncated & kept)),
        num_tail_trimmed=int(np.count_nonzero(result.tail_trimmed & kept)),
        num_control_text_kept_plain=int(np.count_nonzero(result.control_text & kept)),
        num_condition_left_out=int(np.count_nonzero(result.condition_left_out & kept)),
    )
