"""What all hosts must have in common, checked before the first step rather than at the first checkpoint.

Every rank calls these functions together. All of them return, or all raise the same UserError, which names rank and
host.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.errors import Problem, UserError, UserErrors
from data_pipeline.path_keys import EXPANDED
from data_pipeline.prepared.dataset import Manifest
from ochat_train.distributed.ranks import Ranks, as_user_error, gathered, on_main_rank
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.versions import library_versions

T = TypeVar("T")

# How long a disk may take to show a new file on another host; NFS and Lustre show a new name at once.
SIGHT_SECONDS = 5.0
_POLL_SECONDS = 0.1


def on_every_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something on every rank; each gets its own result.

    A UserError or OSError of one rank is raised as a UserError on all ranks.
    """
    result, failure = None, None
    try:
        result = work()
    except (UserError, OSError) as error:
        failure = as_user_error(error)
    found = _of_hosts(ranks, failure)
    failures: dict[str, tuple[UserError, list[int]]] = {}
    for rank, (_, error_there) in enumerate(found):
        if error_there is not None:
            failures.setdefault(str(error_there), (error_there, []))[1].append(rank)
    if failures:
        raise _error_of_ranks(list(failures.values()), found)
    return result  # type: ignore[return-value]


def _error_of_ranks(failures: Sequence[tuple[UserError, list[int]]], found: Sequence[tuple[str, Any]]) -> UserError:
    """The errors of ranks as one. failures: each different error, with its ranks."""
    error, numbers = failures[0]
    if len(numbers) == len(found):
        return error
    problems = [
        Problem(place=f"{_ranks_text(numbers, found)}: {problem.place}", problem=problem.problem, remedy=problem.remedy)
        for error, numbers in failures
        for problem in error.problems
    ]
    if len(problems) == 1:
        return UserError(problems[0].place, problems[0].problem, problems[0].remedy)
    return UserErrors("ranks", "cannot start, for different reasons", problems)


def facts_of(recipe: Recipe, manifest: Manifest) -> dict[str, str]:
    """What must be the same on every rank: values of the recipe by dotted name, prepared data, versions."""
    versions = {**library_versions(), "python": platform.python_version()}
    return {
        **dict(_flat(recipe.model_dump(mode="json", by_alias=True, context=EXPANDED))),
        "the fingerprint of the prepared data": manifest.fingerprint[:12],
        "the digest of the prepared data": manifest.digest[:12] or "unknown",  # covers the hashes of all its files
        **{f"the version of {name}": version for name, version in versions.items()},
    }


def _flat(section: Mapping[str, Any], lead: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{lead}{key}.")
        else:
            yield f"{lead}{key}", json.dumps(value)


def require_agreement(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Raise UserError on all ranks if a fact of one differs from rank 0's."""
    found = _of_hosts(ranks, dict(facts))
    main_host, expected = found[0]
    problems = []
    for name in dict.fromkeys(name for _, there in found for name in there):
        others: dict[str, list[int]] = {}
        for rank, (_, there) in enumerate(found):
            if there.get(name) != expected.get(name):
                others.setdefault(there.get(name, "not there"), []).append(rank)
        problems += [
            f"{name} is {value} on {_ranks_text(numbers, found)}, but {expected.get(name, 'missing')} on rank 0 "
            f"({main_host})"
            for value, numbers in others.items()
        ]
    if problems:
        remedy = "start every host with the same recipe, options, prepared data and libraries"
        raise UserError("the hosts differ", "; ".join(problems), remedy)


def require_shared_folder(ranks: Ranks, folder: Path, *, sight_seconds: float) -> None:
    """Raise UserError on all ranks if one of them does not see in `folder`, the run folder, what rank 0 writes there.

    sight_seconds: how long a new file may take to be seen.
    """
    token = on_main_rank(ranks, lambda: _write_token(folder))
    try:
        found = _of_hosts(ranks, (os.path.abspath(folder), _sees(folder / token, seconds=sight_seconds)))
    finally:
        if ranks.is_main:
            with contextlib.suppress(OSError):
                (folder / token).unlink()
    unseeing = [rank for rank, (_, (_, is_seen)) in enumerate(found) if not is_seen]
    if unseeing:
        (host, (written, _)), (_, (searched, _)) = found[0], found[unseeing[0]]
        raise UserError(
            "output_dir",
            f"{_ranks_text(unseeing, found)} looked into {searched} and did not find what rank 0 ({host}) has just "
            f"written into {written}",
            "all ranks write checkpoints, so use one folder on a disk that all hosts share (NFS, Lustre, ...), under "
            "the same path",
        )


def _write_token(folder: Path) -> str:
    token = f".seen-by-all-{uuid.uuid4().hex}"  # a new name each time, which no host can have cached
    try:
        (folder / token).touch()
    except OSError as error:
        raise UserError(folder, f"cannot be written to: {error.strerror}") from None
    return token


def _sees(path: Path, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:  # a busy host may be late: it looks at least once
        with contextlib.suppress(OSError):  # no permission, or a stale handle of a network disk
            if path.exists():
                return True
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL_SECONDS)


def _of_hosts(ranks: Ranks, value: T) -> list[tuple[str, T]]:
    """(host, value) of every rank."""
    return gathered(ranks, (socket.gethostname(), value))


def _ranks_text(numbers: Sequence[int], found: Sequence[tuple[str, Any]]) -> str:
    """`rank 1 (host-b)`, or the first of many."""
    first = f"rank {numbers[0]} ({found[numbers[0]][0]})"
    return first if len(numbers) == 1 else f"{first} and {len(numbers) - 1} more rank{'s' if len(numbers) > 2 else ''}"
