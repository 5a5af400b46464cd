"""From raw rows to a prepared dataset: composes the steps and writes."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from data_pipeline.classes.tagging import class_table
from data_pipeline.errors import Problem, UserError
from data_pipeline.prepare.account import Account
from data_pipeline.prepare.chunk import ChunkProcessor
from data_pipeline.prepare.condition_rows import condition_rows
from data_pipeline.prepare.counts import ClassCounts
from data_pipeline.prepare.fingerprints import input_fingerprints, sha256_of_text
from data_pipeline.prepare.inference_condition import inference_condition
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.outcome import check_outcome
from data_pipeline.prepare.survey import survey
from data_pipeline.prepare.workers import over_chunks
from data_pipeline.prepared.dataset import (
    FORMAT_VERSION,
    READER_VERSION,
    TOKENIZER_FOLDER,
    Manifest,
    holds_only_prepared_files,
)
from data_pipeline.prepared.integrity import hashes_of, verify
from data_pipeline.prepared.writer import PreparedWriter
from data_pipeline.prompt.base_template.template import TOKENS_OF_OTHER_TEMPLATE, BaseTemplate
from data_pipeline.prompt.chat_folder import check_chat_template, write_tokenizer_folder
from data_pipeline.read.chunks import ChunkSizes
from data_pipeline.read.conversations import SourceChunk, conversation_chunks
from data_pipeline.read.layout import require_fields_read, resolved
from data_pipeline.read.openchat_parquet import tokenized_files
from data_pipeline.read.sources import check_sources
from data_pipeline.unfinished_folders import remove_abandoned, replaced_folder, unfinished_folders


def prepare(
    job: PrepareJob,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    sizes: ChunkSizes | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Manifest, bool]:
    """Prepare a dataset into `job.data.prepared_dir`, unless the folder holds it already, with every file as it was
    written.

    num_workers: processes; None means one per core. progress: called with the number of rows read since the last call.
    sizes: of the chunks that a worker takes. say: called with why a folder that was made from the same is not reused.

    Returns the manifest and whether the folder was reused. Raises UserError for anything a user can fix; an older
    prepared dataset in the folder is then still there.
    """
    prepared_dir = Path(job.data.prepared_dir)
    num_workers, sizes = num_workers or os.cpu_count() or 1, sizes or ChunkSizes()
    inputs = input_fingerprints(job)
    fingerprint = sha256_of_text(json.dumps(inputs, sort_keys=True))
    owned = prepared_dir.is_dir() and holds_only_prepared_files(prepared_dir)
    if owned and (old := _current_manifest(prepared_dir)) is not None and old.fingerprint == fingerprint:
        problem = _why_not_reused(prepared_dir, old, job)
        if problem is None:
            remove_abandoned(prepared_dir)
            return old, True
        say(f"{problem}: it is prepared again")
    for note in [*check_sources(job.data.sources), *_of_other_hosts(prepared_dir)]:
        say(f"warning: {note}")
    check_chat_template(job.tokenizer, job.template)
    job = replace(job, data=resolved(job.data, say=say))
    _check_tokenized(job)
    require_fields_read(job.data, say=say)
    job = replace(job, rewards=survey(job.data, num_workers=num_workers, sizes=sizes))
    with replaced_folder(prepared_dir, owned=owned) as folder:
        writer = PreparedWriter(folder)
        account = _write_rows(job, writer, num_workers, sizes, progress)
        writer.close(fingerprint=fingerprint)
        check_outcome(job.data, account.tally, account.splits)
        manifest = _manifest(job, account, inputs, fingerprint)
        write_tokenizer_folder(
            folder / TOKENIZER_FOLDER,
            job.tokenizer,
            job.template,
            inference_condition=manifest.inference_condition,
            max_length_tokens=job.max_length_tokens,
        )
        manifest = manifest.sealed(hashes_of(folder))
        manifest.save(folder)
    return manifest, False


def _of_other_hosts(prepared_dir: Path) -> Iterator[Problem]:
    """What another host has written of the same dataset, and may still write."""
    final = prepared_dir.resolve()
    for folder in unfinished_folders(final.parent):
        if folder.name == final.name and folder.host is not None:
            yield Problem(place=str(folder.path), problem=folder.text, remedy=folder.remedy)


def _check_tokenized(job: PrepareJob) -> None:
    """Raise UserError for tokens of another template: now, and not after an hour of work on the sources before them."""
    for number, source in enumerate(job.data.sources):
        if source.is_tokenized and isinstance(job.template, BaseTemplate):
            raise UserError(f"data.sources.{number}", *TOKENS_OF_OTHER_TEMPLATE)
        if source.is_tokenized:
            tokenized_files(source, job.template.name, where=f"data.sources.{number}")


def _current_manifest(prepared_dir: Path) -> Manifest | None:
    try:
        return Manifest.load(prepared_dir)
    except UserError:  # written by another version, so it is prepared again
        return None


def _why_not_reused(prepared_dir: Path, manifest: Manifest, job: PrepareJob) -> str | None:
    """Why a folder that was made from the same inputs must be made again; None where it need not be."""
    if not manifest.files:
        return f"{prepared_dir} was prepared by a version that kept no hashes"
    has_text = not all(source.is_tokenized for source in job.data.sources)
    if has_text and manifest.reader_version < READER_VERSION:
        return f"{prepared_dir} was prepared by a version that read rows by other rules"
    try:
        verify(prepared_dir, manifest)
    except UserError as error:
        return f"{error.place} {error.problem}"
    return None


def _chunks(job: PrepareJob, sizes: ChunkSizes) -> Iterator[SourceChunk]:
    for number, source in enumerate(job.data.sources):
        where = f"data.sources.{number}"
        for chunk in conversation_chunks(source, template=job.template.name, where=where, sizes=sizes):
            yield SourceChunk(source=number, chunk=chunk)


def _write_rows(
    job: PrepareJob, writer: PreparedWriter, num_workers: int, sizes: ChunkSizes, progress: Callable[[int], None]
) -> Account:
    """Write all splits; returns what became of every row."""
    account = Account(classes=ClassCounts(table=dict(class_table(job.data, job.rewards))))
    if job.data.condition_dropout:
        account.classes.condition_id("")  # so that the condition matrix has it
    for result in over_chunks(functools.partial(ChunkProcessor, job), _chunks(job, sizes), num_workers):
        progress(result.tally.num_read)
        for split, rows in account.add(result).items():
            writer.write(split, rows)
    classes = account.classes
    for rows in condition_rows(account.held_out, classes.condition_ids, classes.ids, job):
        writer.write("conditions", rows)
    return account


def _manifest(job: PrepareJob, account: Account, inputs: dict[str, str], fingerprint: str) -> Manifest:
    classes = account.classes.prepared()
    return Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        inputs=inputs,
        template=job.template.name,
        bos_token=job.tokenizer.bos_token,
        added_control_tokens=list(job.tokenizer.added_control_tokens),
        inference_condition=inference_condition(job, classes),
        max_length_tokens=job.max_length_tokens,
        vocab_size=job.tokenizer.vocab_size,
        classes=classes,
        conditions=list(account.classes.condition_ids),
        splits={str(split): counts for split, counts in account.splits.items()},
        ledger=account.tally.result(),
        control_tokens=list(job.template.control_tokens),
        reader_version=READER_VERSION,
    )
