"""Failures of the Hub that pass are tried again; those that do not are explained."""

from __future__ import annotations

import json
import math
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

from data_pipeline.errors import UserError

T = TypeVar("T")


_TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # 409 and 412: somebody else has just committed


NEW_TOKEN = "make one with write access at https://huggingface.co/settings/tokens, and set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long failures that pass by themselves are put up with.

    tries: in all. The wait doubles from `first_wait_seconds` to `longest_wait_seconds`, or is what the Hub asks for
    (Retry-After), if that is not longer than `longest_retry_after_seconds`. sleep, say: how to wait, and where to tell.

    request_seconds: how long a request may be without a byte in either direction; a large commit takes the Hub a
    minute.
    total_seconds: for all tries and waits together. Work that still goes on then is left behind, so it must only read.
    """

    tries: int = 8
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    longest_retry_after_seconds: float = 900.0
    request_seconds: float = 300.0
    total_seconds: float = math.inf
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)


def persevere(work: Callable[[], T], patience: Patience, *, repo: str) -> T:
    """The result of `work`, which is called again after failures that pass.

    Raises UserError for all other failures of the Hub or on the way to it. Other errors are bugs of ours and go
    through.
    """
    end = time.monotonic() + patience.total_seconds
    for number in range(1, patience.tries + 1):
        _limit_requests(patience.request_seconds)
        try:
            return _within(end - time.monotonic(), work)
        except UserError:
            raise
        except Exception as error:
            found = _cause(error)
            if not _is_of_the_hub(found):
                raise
            if not _is_transient(found):
                raise UserError(_message(found, repo)) from error
            asked = _retry_after_seconds(found)
            doubled = min(patience.longest_wait_seconds, patience.first_wait_seconds * 2 ** (number - 1))
            wait = asked if asked is not None else doubled * random.uniform(0.75, 1.0)
            is_too_long = wait > patience.longest_retry_after_seconds or time.monotonic() + wait >= end
            if number == patience.tries or is_too_long:
                wish = f"; it asks for a pause of {asked:.0f} s" if asked else ""
                raise UserError(
                    repo,
                    f"{_short(found)}",
                    f"gave up after {number} {('try' if number == 1 else 'tries')}{wish}. Run the same command later: "
                    "what has been uploaded is not sent again",
                ) from error
            patience.say(f"{repo}: {_short(found)}; try {number + 1} of {patience.tries} in {wait:.0f} s")
            patience.sleep(wait)
    raise AssertionError("the last try returns or raises")


@dataclass(frozen=True)
class _RequestLimit:
    """A request hook of the HTTP library: no request waits longer for a byte."""

    seconds: float

    def __call__(self, request: Any) -> None:
        given = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: min(self.seconds, given.get(kind) or math.inf) for kind in kinds}


def _limit_requests(seconds: float) -> None:
    """Let huggingface_hub's requests wait no longer: it sets no limit, and some calls would take away that of its
    client.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    others = [hook for hook in session.event_hooks["request"] if not isinstance(hook, _RequestLimit)]
    session.event_hooks = {**session.event_hooks, "request": [*others, _RequestLimit(seconds)]}


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; TimeoutError if it takes longer. It then goes on in its thread, which ends with the
    process.
    """
    if seconds == math.inf:
        return work()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="hub", daemon=True).start()
    try:
        return future.result(max(0.0, seconds))
    except FutureTimeoutError:
        if future.done():
            raise  # of the work itself
        raise TimeoutError("no answer in time") from None


def _cause(error: BaseException) -> BaseException:
    """The error behind an error that says what happened on the wire; the error itself where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if _status(seen) is not None or _is_connection(seen):
            return seen
        seen = seen.__cause__
    return error


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_connection(error: BaseException) -> bool:
    """Whether a request got no whole answer (huggingface_hub's HTTP library has changed its name over time)."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


class UploadError(Exception):
    """What hf_xet, which uploads large files, could not do: it raises RuntimeError for what its own tries did not
    mend.
    """


def _is_of_the_hub(error: BaseException) -> bool:
    """Whether an error tells of the Hub, its libraries, the network, the token or the disk, and not of a bug of
    ours.
    """
    names = {kind.__name__ for kind in type(error).__mro__}  # HTTPError: also of a request that was not answered
    is_xets = any(name.startswith("Xet") for name in names)
    return is_xets or "HTTPError" in names or isinstance(error, OSError | UploadError | json.JSONDecodeError)


def _is_transient(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    is_cut = isinstance(error, UploadError | ConnectionError | TimeoutError)
    return is_cut or _is_connection(error) or _status(error) in _TRANSIENT


def _retry_after_seconds(error: BaseException) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    text = str(headers.get("Retry-After", "")).strip()
    if text.isdigit():
        return float(text)
    limit = parse_ratelimit_headers(headers) if _status(error) == 429 else None
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _short(error: BaseException) -> str:
    from huggingface_hub import constants

    if (status := _status(error)) is not None:
        said = getattr(error, "server_message", None)
        return without_token(f"HTTP {status}" + (f" ({said})" if said else ""))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no answer"]
    said = without_token(f"{type(error).__name__}: {' '.join(lines)[:300]}")
    return f"no connection to {constants.ENDPOINT} ({said})" if _is_connection(error) else said


def _message(error: BaseException, repo: str) -> str:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return f"{repo}: there is no token for the Hub; {NEW_TOKEN}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to push"
    status = _status(error)
    if status == 401:
        return f"{repo}: the Hub does not accept the token (HTTP 401); {NEW_TOKEN}"
    if status == 403 or type(error).__name__ == "XetAuthenticationError":
        return (
            f"{repo}: this token may not write there ({_short(error)}); in HF_TOKEN, set a token with write access to "
            f"{repo.split('/')[0]} (fine-grained tokens: `repo.write`)"
        )
    return f"{repo}: {_short(error)}"


def without_token(text: str) -> str:
    """A text without the token, should somebody have put it there."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text
