"""Files of Hub models that are in the cache of this machine."""

from __future__ import annotations

from pathlib import Path


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
