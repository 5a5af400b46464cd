"""Chunks of the sources, processed in parallel and returned in order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from data_pipeline.errors import UserError
from data_pipeline.prepare.chunk import ChunkProcessor, ChunkResult
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.read import sources
from data_pipeline.read.openchat_parquet import BatchChunk, tokenized_chunks
from data_pipeline.read.sources import Chunk

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
            for batch in tokenized_chunks(source, job.template.name, where=where):
                yield number, batch
            continue
        for chunk in sources.chunks(source, where=where):
            yield number, chunk


def results(job: PrepareJob, num_workers: int) -> Iterator[ChunkResult]:
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
