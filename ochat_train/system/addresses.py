"""Addresses of servers as a person types them. One with a key in it is refused, and is never printed: other users see
it in the list of processes, and results and logs would keep it.
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from data_pipeline.errors import UserError

SERVER_KEY = "OCHAT_API_KEY"  # environment variable with the key of a chat server
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def is_url(target: str) -> bool:
    """Whether a target is an address, and no folder."""
    return target.startswith(("http://", "https://"))


def server_address(text: str, *, option: str, key_variable: str, example: str) -> str:
    """The address of a server, up to its `/v1` but without it, and without a slash at its end.

    option: what a person calls the address. key_variable: environment variable of the server's key. example: an address
    of this kind. Raises UserError for what is no address, and for one with a user, a password, a query or a fragment.
    """
    text = text.strip()
    if any(mark in text for mark in "@?#"):  # anywhere: a password may hold a slash; a path can write %40
        problem = "holds a key, a password or a query, which other users of this machine can see"
        raise UserError(option, problem, f"name the server alone, and set its key in {key_variable}")
    parts = _parts(text)
    if parts is None:
        raise UserError(f"{option} {text}", "is not the address of a server", f"use a form such as {example}")
    return text.rstrip("/").removesuffix("/chat/completions").rstrip("/").removesuffix("/v1").rstrip("/")


def is_this_machine(address: str) -> bool:
    """Whether a server is on this machine, so that no proxy of the environment is asked for it."""
    return urlsplit(address).hostname in _THIS_MACHINE


def _parts(text: str) -> SplitResult | None:
    """The parts of an address, None for what is none."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an open bracket
        return None
    return parts if is_address and not any(character.isspace() for character in text) else None
