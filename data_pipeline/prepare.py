"""From raw rows to a prepared dataset: composes the steps, in parallel over cores, and keeps the account."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline import sources
from data_pipeline.chat_folder import check_chat_template, write_tokenizer_folder
from data_pipeline.chunk_work import ChunkProcessor, ChunkResult, PrepareJob
from data_pipeline.classes.rewards import survey
from data_pipeline.classes.tagging import ConversationClass, class_table
from data_pipeline.condition_rows import HeldOut, condition_rows
from data_pipeline.dataset import (
    FORMAT_VERSION,
    TOKENIZER_FOLDER,
    ClassRow,
    Manifest,
    PreparedWriter,
    holds_only_prepared_files,
)
from data_pipeline.errors import UserError, duplicate_id
from data_pipeline.files import replaced_folder
from data_pipeline.ledger import Ledger
from data_pipeline.openchat_parquet import BatchChunk, tokenized_chunks, tokenized_files
from data_pipeline.sources import Chunk
from data_pipeline.text_rules import quoted


@dataclass(kw_only=True)
class WeightSums:
    """Weights of conversations: their range, and how many equal ones would be worth as much."""

    smallest: float | None = None
    largest: float | None = None
    total: float = 0.0
    squares: float = 0.0

    def add(self, weights: np.ndarray) -> None:
        """Add float64[conversations]."""
        if len(weights):
            self.smallest = float(min(weights.min(), np.inf if self.smallest is None else self.smallest))
            self.largest = float(max(weights.max(), -np.inf if self.largest is None else self.largest))
            self.total, self.squares = self.total + float(weights.sum()), self.squares + float((weights**2).sum())

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2."""
        return self.total**2 / self.squares if self.squares else 0.0


@dataclass(kw_only=True)
class _ClassCounts:
    """Ids of classes and of conditions in order of appearance (the recipe's first), and what each class holds."""

    table: dict[str, ConversationClass]
    ids: dict[str, int] = field(default_factory=dict)
    condition_ids: dict[str, int] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # conversations, tokens, supervised tokens, weight
    weights: dict[str, WeightSums] = field(default_factory=dict)  # of conversations

    def __post_init__(self) -> None:
        for name in self.table:
            self._register(name)

    def _register(self, name: str) -> None:
        self.ids[name] = len(self.ids)
        self.counts[name] = np.zeros(4)
        self.weights[name] = WeightSums()
        self.condition_id(self.table[name].condition)

    def condition_id(self, condition: str) -> int:
        """The id of a condition, a new one where it has none."""
        return self.condition_ids.setdefault(condition, len(self.condition_ids))

    def add(self, result: ChunkResult, kept: np.ndarray) -> pa.RecordBatch:
        """Count the kept rows and return all rows with their class and condition ids."""
        for name, condition in result.conditions.items():
            known = self.table.setdefault(name, ConversationClass(name=name, condition=condition, weight=None))
            if known.condition != condition:
                raise UserError(
                    f"data.classes.{name}: the class has condition {quoted(known.condition)}, but OpenChat rows whose "
                    f"condition is {quoted(condition)} have no `class`: rename the class or give that source a `class`"
                )
            if name not in self.ids:
                self._register(name)
        class_ids = np.array([self.ids[name] for name in result.class_names], dtype=np.int32)
        numbers = [result.rows.column(c).to_numpy() for c in ("num_tokens", "num_supervised_tokens", "weight_sum")]
        for name in set(result.class_names):
            mask = (class_ids == self.ids[name]) & kept
            self.counts[name] += [np.count_nonzero(mask), *(column[mask].sum() for column in numbers)]
            self.weights[name].add(numbers[2][mask] / numbers[1][mask])
        condition_ids = [self.condition_id(condition) for condition in result.row_conditions]
        rows = result.rows.add_column(1, "class_id", pa.array(class_ids))
        return rows.add_column(2, "condition_id", pa.array(condition_ids, pa.int32()))

    def rows(self) -> list[ClassRow]:
        """The class table with counts. Classes without a conversation stay in it, so that they are seen."""
        total_weight = sum(counts[3] for counts in self.counts.values())
        return [
            ClassRow(
                name=name,
                condition=self.table[name].condition,
                weight=self.table[name].weight,
                conversations=int(counts[0]),
                tokens=int(counts[1]),
                supervised_tokens=int(counts[2]),
                weight_share=float(counts[3] / total_weight) if total_weight else 0.0,
                smallest_weight=self.weights[name].smallest,
                largest_weight=self.weights[name].largest,
                effective_conversations=self.weights[name].effective,
            )
            for name, counts in self.counts.items()
        ]


def input_fingerprints(job: PrepareJob, *, with_sources: bool = True) -> dict[str, str]:
    """sha256 of each input that decides the rows, by name. Reading the sources takes a second per GB and core."""
    settings = job.data.model_dump(mode="json", exclude={"prepared_dir"}, by_alias=True)
    settings |= {name: getattr(job, name) for name in ("max_length_tokens", "seed", "inference_condition")}
    settings |= {"format_version": FORMAT_VERSION}
    inputs = {
        "tokenizer": job.tokenizer.fingerprint,
        "template": _sha256(repr(job.template)),
        "settings": _sha256(json.dumps(settings, sort_keys=True)),
    }
    if with_sources:
        contents = (sources.fingerprint(s, where=f"data.sources.{n}") for n, s in enumerate(job.data.sources))
        inputs["sources"] = _sha256("".join(contents))
    return inputs


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
    fingerprint = _sha256(json.dumps(inputs, sort_keys=True))
    owned = prepared_dir.is_dir() and holds_only_prepared_files(prepared_dir)
    if owned and (old := _current_manifest(prepared_dir)) is not None and old.fingerprint == fingerprint:
        return old, True
    check_chat_template(job.tokenizer, job.template)
    for number, source in enumerate(job.data.sources):
        if source.is_tokenized:  # now, and not after an hour of work on the sources before it
            tokenized_files(source, job.template, where=f"data.sources.{number}")
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
    ledger, classes = Ledger(), _ClassCounts(table=dict(class_table(job.data, job.rewards)))
    if job.data.condition_dropout:
        classes.condition_id("")  # so that the condition matrix has it
    writer = PreparedWriter(folder)
    seen_ids: set[tuple[int, str]] = set()
    held_out: list[HeldOut] = []
    splits = {split: {"conversations": 0, "tokens": 0, "supervised_tokens": 0} for split in ("train", "validation")}
    for result in _results(job, num_workers):
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
                f"model.inference_condition: no class has condition `{job.inference_condition}`; conditions: "
                f"{conditions}"
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
        lines = [f"{sum(fatal.values())} of {ledger.num_read} rows cannot be used:"]
        for reason, count in sorted(fatal.items()):
            lines += [f"  {reason}: {count}", *(f"    {example}" for example in ledger.examples[reason])]
        lines.append(
            "Repair them, or set `data.bad_rows: drop` (and `data.overlong`) to leave such rows out and count them."
        )
        raise UserError("\n".join(lines))
    if not splits["train"]["conversations"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.dropped.items()) or "the sources are empty"
        raise UserError(f"data.sources: no conversation is left to train on ({ledger.num_read} read; {reasons})")
    if job.data.validation_ratio and not splits["validation"]["conversations"]:
        raise UserError(
            f"data.validation_ratio: {job.data.validation_ratio} of {ledger.num_kept} conversations selects none; "
            "raise it, or set it to 0 for no validation"
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


_processor: ChunkProcessor | None = None


def _start_worker(job: PrepareJob) -> None:
    global _processor
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _processor = ChunkProcessor(job)


def _process_in_worker(source_number: int, chunk: Chunk | BatchChunk) -> ChunkResult:
    assert _processor is not None, "the pool's initializer ran"
    return _processor(source_number, chunk)


def _all_chunks(job: PrepareJob) -> Iterator[tuple[int, Chunk | BatchChunk]]:
    for number, source in enumerate(job.data.sources):
        where = f"data.sources.{number}"
        if source.is_tokenized:
            for batch in tokenized_chunks(source, job.template, where=where):
                yield number, batch
            continue
        for chunk in sources.chunks(source, where=where):
            yield number, chunk


def _results(job: PrepareJob, num_workers: int) -> Iterator[ChunkResult]:
    """Results of all chunks, in the order of the chunks whatever the number of workers."""
    chunks = _all_chunks(job)
    first = [chunk for _, chunk in zip(range(2), chunks, strict=False)]
    if num_workers == 1 or len(first) < 2:  # a small source is done before a process could start
        processor = ChunkProcessor(job)
        yield from (processor(*chunk) for chunk in (*first, *chunks))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of pyarrow and tokenizers half alive
    pending: deque[Future[ChunkResult]] = deque()
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(job,)) as pool:
        try:
            for source_number, chunk in (*first, *chunks):
                pending.append(pool.submit(_process_in_worker, source_number, chunk))
                if len(pending) >= 2 * num_workers:  # bounds the memory held by finished chunks
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a preparation process was killed, most often for lack of memory; use `--workers 1`"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
