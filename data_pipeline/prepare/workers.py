"""Work on the chunks of all sources, in parallel and in order: the only file that starts processes.

Another backend has to offer `over_chunks`, nothing else.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from data_pipeline.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_work: Callable[[Any], Any] | None = None  # of this worker process


def over_chunks(make_work: Callable[[], Callable[[T], R]], chunks: Iterable[T], num_workers: int) -> Iterator[R]:
    """Yield the result of each chunk, in the order of the chunks whatever the number of workers.

    make_work: called once in each process, to make the function that works on a chunk; it must be possible to pickle
    make_work, chunks and results, but not that function. An exception of a chunk ends the work. Raises UserError where
    a process was killed.
    """
    chunks = iter(chunks)
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if num_workers == 1 or len(first) < 2:  # a small source is done before a process could start
        yield from map(make_work(), chunks)
        return
    context = multiprocessing.get_context("spawn")  # forking would copy locked threads of pyarrow and tokenizers
    pending: deque[Future[R]] = deque()
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start, initargs=(make_work,)) as pool:
        try:
            for chunk in chunks:
                with _shielded():
                    pending.append(pool.submit(_do, chunk))
                if len(pending) >= 2 * num_workers:  # limits the memory that finished chunks take
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except KeyboardInterrupt:  # the processes ignore Ctrl-C, and may be in the middle of long chunks
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        except BrokenProcessPool:
            raise UserError(
                "ochat prepare", "a worker process was killed, most likely because memory ran out", "use `--workers 1`"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Processes that the block starts do not get Ctrl-C, which a terminal sends to all of them, from their first
    instruction on: Python would print a traceback for each that is still importing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not blocked; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _work = make_work()


def _end_with_parent() -> None:
    """End this process when the first one has ended, also by SIGKILL: it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only processes of the pool run this"
    parent.join()
    os._exit(1)


def _do(chunk: Any) -> Any:
    assert _work is not None, "the pool's initializer ran"
    return _work(chunk)
