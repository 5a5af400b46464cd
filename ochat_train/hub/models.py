"""Whether a base model can be read: on the Hub, or from its cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError

SECONDS = 5.0  # to wait for an answer


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model repository that can be had.

    is_cached: its files are on this machine. hub_says: what the Hub answered, or why it did not.
    """

    name: str
    is_cached: bool
    hub_says: str
    is_reachable: bool


def find_model(name: str, revision: str | None, *, with_weights: bool) -> Repository:
    """Look for a model in the cache and on the Hub. Raises UserError where neither has it for us.

    with_weights: whether its safetensors files are needed, too.
    """
    cached = _is_cached(name, revision, with_weights=with_weights)
    try:
        files = _files_on_hub(name, revision)
    except _UnreachableError as error:
        if not cached:
            raise UserError(
                name, f"{error}, and the Hub cache of this machine does not hold it whole", f"{error.remedy}"
            ) from None
        return Repository(name=name, is_cached=True, hub_says=str(error), is_reachable=False)
    if with_weights and not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            name, "has no safetensors files, the only kind that is loaded", "convert it, or name another base"
        )
    return Repository(name=name, is_cached=cached, hub_says="there and readable", is_reachable=True)


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
    try:
        info = HfApi().model_info(name, revision=revision, timeout=SECONDS)
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
    """Whether a model's files are in the cache: configuration or tokenizer, and every file of the weights if needed."""
    import json

    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> Path | None:
        path = try_to_load_from_cache(name, file, revision=revision)
        return Path(path) if isinstance(path, str) else None

    if not with_weights:
        return cached("tokenizer.json") is not None
    if cached("config.json") is None:
        return False
    if cached("model.safetensors") is not None:
        return True
    index = cached("model.safetensors.index.json")
    if index is None:
        return False
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all(cached(shard) is not None for shard in shards)
