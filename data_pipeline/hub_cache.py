"""Files of Hub models that are in the cache of this machine."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

_PAUSE_SECONDS = 1.0  # before a name is looked up again: a resolver may only have been busy


def cached_file(name: str, file: str, *, revision: str | None = None) -> Path | None:
    """Where a file of the Hub model `name` is on this machine; None if it is not in the cache.

    Raises HFValidationError (a ValueError) for a name that no repository can have.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def is_known_to_be_absent(name: str, file: str, *, revision: str | None = None) -> bool:
    """Whether the cache records that the Hub model `name` has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(name, file, revision=revision) is _CACHED_NO_EXIST


@contextlib.contextmanager
def offline_without_network() -> Iterator[None]:
    """While the block runs, `huggingface_hub` is offline if this host cannot find the address of the Hub.

    Otherwise it would try each file six times, in half a minute, and print eleven lines. Behind a proxy, which finds
    addresses itself, nothing is looked up.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or host is None or urllib.request.getproxies() or _is_known(host):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_known(host: str) -> bool:
    for attempt in range(2):
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            if attempt == 0:
                time.sleep(_PAUSE_SECONDS)
        else:
            return True
    return False
