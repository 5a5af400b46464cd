"""Temporary failures of the Hub are retried; permanent ones become a `UserError` that says what to do."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from data_pipeline.errors import UserError
from ochat_train.system.messages import print_message

T = TypeVar("T")

_TRANSIENT_STATUS = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # 409 and 412: somebody else has just committed
NEW_TOKEN = "make one with write access at https://huggingface.co/settings/tokens, and set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, and for how long, a failed request to the Hub is tried again.

    max_tries: in all. Waits double from `first_wait_seconds` to `max_wait_seconds`, minus up to a quarter at random. A
    wait that the Hub asks for (Retry-After) is used instead if it is at most `max_retry_after_seconds`.
    request_seconds: longest time without a byte in either direction; a large commit takes the Hub a minute.
    total_seconds: for all tries and waits together. Work that takes longer is left running in a thread, so with a limit
    it must only read.
    sleep, report: how to wait, and where a line for the user goes.
    """

    max_tries: int = 8
    first_wait_seconds: float = 1.0
    max_wait_seconds: float = 60.0
    max_retry_after_seconds: float = 900.0
    request_seconds: float = 300.0
    total_seconds: float = math.inf
    sleep: Callable[[float], None] = time.sleep
    report: Callable[[str], None] = print_message

    def within(
        self, *, max_tries: float = math.inf, request_seconds: float = math.inf, total_seconds: float = math.inf
    ) -> RetryPolicy:
        """This policy with limits that are no looser than these."""
        return replace(
            self,
            max_tries=int(min(self.max_tries, max_tries)),
            request_seconds=min(self.request_seconds, request_seconds),
            total_seconds=min(self.total_seconds, total_seconds),
        )

    def wait_after(self, num_tries: int, *, retry_after_seconds: float | None, seconds_left: float) -> float | None:
        """Seconds to wait after the `num_tries`-th failure; None to give up."""
        doubled = min(self.max_wait_seconds, self.first_wait_seconds * 2 ** (num_tries - 1))
        wait = retry_after_seconds if retry_after_seconds is not None else doubled * random.uniform(0.75, 1.0)
        is_too_long = wait > self.max_retry_after_seconds or wait >= seconds_left
        return None if num_tries == self.max_tries or is_too_long else wait


def retry(work: Callable[[], T], policy: RetryPolicy, *, repo: str) -> T:
    """The result of `work`, which is called again after temporary failures.

    Raises UserError for all other failures of the Hub, its libraries, the network or the disk, and when the policy is
    exhausted. Any other exception is a bug of ours and is not caught.
    """
    end = time.monotonic() + policy.total_seconds
    for num_tries in range(1, policy.max_tries + 1):
        _limit_requests(policy.request_seconds)
        try:
            return _within(end - time.monotonic(), work)
        except UserError:
            raise
        except Exception as error:
            cause = _cause(error)
            if not _is_of_the_hub(cause):
                raise
            if not _is_transient(cause):
                raise _permanent(cause, repo) from error
            asked = _retry_after_seconds(cause)
            wait = policy.wait_after(num_tries, retry_after_seconds=asked, seconds_left=end - time.monotonic())
            if wait is None:
                raise _exhausted(cause, repo, num_tries=num_tries, retry_after_seconds=asked) from error
            policy.report(f"{repo}: {_short(cause)}; try {num_tries + 1} of {policy.max_tries} in {wait:.0f} s")
            policy.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _exhausted(error: BaseException, repo: str, *, num_tries: int, retry_after_seconds: float | None) -> UserError:
    tries = f"{num_tries} {'try' if num_tries == 1 else 'tries'}"
    asked = f"; it asks for a pause of {retry_after_seconds:.0f} s" if retry_after_seconds else ""
    remedy = f"gave up after {tries}{asked}. Run the same command later: what has been uploaded is not sent again"
    return UserError(repo, _short(error), remedy)


@dataclass(frozen=True)
class _RequestLimit:
    """A request hook of the HTTP library: no request waits longer for a byte."""

    seconds: float

    def __call__(self, request: Any) -> None:
        given = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: min(self.seconds, given.get(kind) or math.inf) for kind in kinds}


def _limit_requests(seconds: float) -> None:
    """Limit how long huggingface_hub's requests wait: it sets no limit, and some calls undo that of its client."""
    from huggingface_hub.utils import get_session

    session = get_session()
    others = [hook for hook in session.event_hooks["request"] if not isinstance(hook, _RequestLimit)]
    session.event_hooks = {**session.event_hooks, "request": [*others, _RequestLimit(seconds)]}


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; TimeoutError if it takes longer. It then keeps running in a thread that ends with the
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
    """The exception of the chain with the HTTP answer or the connection failure; the error itself if none has."""
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
    """hf_xet, which uploads large files, has failed: it raises a plain RuntimeError after its own retries."""


def _is_of_the_hub(error: BaseException) -> bool:
    """Whether an error comes from the Hub, its libraries, the network, the token or the disk, not from our bug."""
    names = {kind.__name__ for kind in type(error).__mro__}  # HTTPError: also of a request without an answer
    is_from_xet = any(name.startswith("Xet") for name in names)
    return is_from_xet or "HTTPError" in names or isinstance(error, OSError | UploadError | json.JSONDecodeError)


def _is_transient(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    is_interrupted = isinstance(error, UploadError | ConnectionError | TimeoutError)
    return is_interrupted or _is_connection(error) or _status(error) in _TRANSIENT_STATUS


def _retry_after_seconds(error: BaseException) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    text = str(headers.get("Retry-After", "")).strip()
    if text.isascii() and text.isdigit():
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


def _permanent(error: BaseException, repo: str) -> UserError:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return UserError(repo, "there is no token for the Hub", NEW_TOKEN)
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(repo, "HF_HUB_OFFLINE is set, so no request is sent to the Hub", "unset it to push")
    status = _status(error)
    if status == 401:
        return UserError(repo, "the Hub does not accept the token (HTTP 401)", NEW_TOKEN)
    if status == 403 or type(error).__name__ == "XetAuthenticationError":
        return UserError(
            repo,
            f"this token may not write there ({_short(error)})",
            f"in HF_TOKEN, set a token with write access to {repo.split('/')[0]} (fine-grained tokens: `repo.write`)",
        )
    return UserError(repo, _short(error))


def without_token(text: str) -> str:
    """A text with the token replaced: an answer of the Hub may quote it."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text
