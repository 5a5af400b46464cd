"""Files of Hub models that are in the cache of this machine."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

_PAUSE_SECONDS = 1.0  # before it is tried again: a resolver may only have been busy
_ANSWER_SECONDS = 10.0
_HOLDS_SECONDS = 30.0
_found: dict[str, tuple[float, str | None]] = {}  # address of a Hub -> when it was tried, and why it gave no answer


def cached_file(name: str, file: str, *, revision: str | None = None) -> Path | None:
    """Where a file of the Hub model `name` is on this machine; None if it is not in the cache.

    Raises HFValidationError (a ValueError) for a name that no repository can have.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def is_known_to_be_absent(name: str, file: str, *, revision: str | None) -> bool:
    """Whether the cache records that the Hub model `name` has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST


@contextlib.contextmanager
def offline_without_network() -> Iterator[None]:
    """While the block runs, `huggingface_hub` is offline if the Hub gives this host no answer.

    Otherwise it would try each file six times, in half a minute or, where nothing is refused and nothing answers, in
    minutes, and print eleven lines. Behind a proxy, which finds addresses itself, nothing is tried.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or no_answer() is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def no_answer(*, timeout_seconds: float = _ANSWER_SECONDS) -> str | None:
    """Why the Hub gives this host no answer; None where it gives one, and behind a proxy, where nothing is tried.

    What was found holds for some seconds: a command that loads several files asks once.
    """
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if parts.hostname is None or urllib.request.getproxies():
        return None
    known = _found.get(constants.ENDPOINT)
    if known is None or time.monotonic() - known[0] > _HOLDS_SECONDS:
        known = time.monotonic(), _tried(parts, timeout_seconds)
        _found[constants.ENDPOINT] = known
    return known[1]


def _tried(parts: SplitResult, timeout_seconds: float) -> str | None:
    """Ask for the headers of the Hub's first page. Any answer will do."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    reason = None
    for attempt in range(2):
        connection = kind(str(parts.hostname), parts.port, timeout=timeout_seconds)
        try:
            connection.request("HEAD", "/")
            connection.getresponse()
        except (ssl.SSLError, http.client.HTTPException):
            return None  # somebody is there; huggingface_hub says what is wrong
        except TimeoutError:
            return f"no answer within {timeout_seconds:g} s"
        except OSError as error:
            reason = error.strerror or str(error)
            if attempt == 0:
                time.sleep(_PAUSE_SECONDS)
        else:
            return None
        finally:
            connection.close()
    return reason
