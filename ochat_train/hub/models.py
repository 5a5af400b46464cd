"""Whether a base model or a tokenizer can be read: on the Hub, or in its cache on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass

from data_pipeline.errors import UserError
from data_pipeline.hub_cache import cached_file, no_answer

ANSWER_SECONDS = 5.0  # how long a check waits for an answer of the Hub
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model repository that this machine can read.

    is_cached: its files are on this machine. hub_says: what the Hub answered, or why it did not. is_reachable: whether
    it answered.
    """

    name: str
    is_cached: bool
    hub_says: str
    is_reachable: bool


def find_model(name: str, revision: str | None, *, with_weights: bool) -> Repository:
    """Look for a model in the cache and on the Hub. Raises UserError if neither can give it to this login.

    with_weights: whether its safetensors files are needed as well.
    """
    is_cached = _is_cached(name, revision, with_weights=with_weights)
    try:
        files = _files_on_hub(name, revision)
    except _UnreachableError as error:
        if not is_cached:
            problem = f"{error}, and the Hub cache of this machine does not have all of its files"
            raise UserError(name, problem, error.remedy) from None
        return Repository(name=name, is_cached=True, hub_says=str(error), is_reachable=False)
    if with_weights and not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            name, "has no safetensors files, the only kind that is loaded", "convert it, or name another base"
        )
    return Repository(name=name, is_cached=is_cached, hub_says="there and readable", is_reachable=True)


class _UnreachableError(Exception):
    """The Hub gave no answer."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def _files_on_hub(name: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise _UnreachableError("HF_HUB_OFFLINE is set", "unset it, fetch the model beforehand, or name a local folder")
    if (reason := no_answer(timeout_seconds=ANSWER_SECONDS)) is not None:  # else it is tried for half a minute
        raise _UnreachableError(f"the Hub cannot be reached ({reason})", "check the network, or name a local folder")
    try:
        info = HfApi().model_info(name, revision=revision, timeout=ANSWER_SECONDS)
        if info.gated:
            HfApi().auth_check(name)
    except GatedRepoError:
        raise UserError(
            name, "is gated, and this login may not read it", f"accept its licence on the Hub and {LOG_IN}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(name, f"has no revision `{revision}`", "see model.revision") from None
    except RepositoryNotFoundError:
        raise UserError(name, "not on the Hub, or private", f"check the name, or {LOG_IN}") from None
    except Exception as error:  # whatever the HTTP library raises without a network
        reason = f"the Hub cannot be reached ({type(error).__name__})"
        raise _UnreachableError(reason, "check the network, or name a local folder") from None
    return [file.rfilename for file in info.siblings or ()]


def _is_cached(name: str, revision: str | None, *, with_weights: bool) -> bool:
    """Whether the cache has the tokenizer; with_weights: the configuration and every file of the weights instead."""
    if not with_weights:
        return cached_file(name, "tokenizer.json", revision=revision) is not None
    if cached_file(name, "config.json", revision=revision) is None:
        return False
    if cached_file(name, "model.safetensors", revision=revision) is not None:
        return True
    index = cached_file(name, "model.safetensors.index.json", revision=revision)
    if index is None:
        return False
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all(cached_file(name, shard, revision=revision) is not None for shard in shards)
