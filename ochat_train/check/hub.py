"""What the Hugging Face Hub and its cache on this machine have: bases, tokenizers, datasets, and the right to push."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from data_pipeline.hub_names import is_hub_id
from data_pipeline.settings import HUB_PREFIX
from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.hub import Patience, check_recipe_rights
from ochat_train.recipe import Recipe

if TYPE_CHECKING:
    from ochat_train.check.facts import Facts

SECONDS = 5.0  # to wait for an answer
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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
                f"{name}: {error}, and the Hub cache of this machine does not hold it whole; {error.remedy}"
            ) from None
        return Repository(name=name, is_cached=True, hub_says=str(error), is_reachable=False)
    if with_weights and not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            f"{name}: has no safetensors files, the only kind that is loaded; convert it, or name another base"
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
            f"{name}: is gated, and this login may not read it; accept its licence on the Hub and {_LOG_IN}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{name}: has no revision `{revision}`; see model.revision") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name}: not on the Hub, or private; check the name, or {_LOG_IN}") from None
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


def check_hub(facts: Facts) -> Iterator[Finding]:
    """Base and tokenizer, where they are Hub ids, and datasets."""
    model = facts.recipe.model
    for name in dict.fromkeys(name for name in (model.path, model.tokenizer_source) if name and is_hub_id(name)):
        found = facts.hub_model(name)
        cache = "in the cache" if found.is_cached else "not in the cache, the run downloads it"
        text = f"{name}: {found.hub_says}; {cache}"
        yield ok("hub", text) if found.is_reachable else warning("hub", text, "the cached files will be used")
    for source in facts.recipe.data.sources:
        if source.is_on_hub:
            yield _check_dataset(source.path.removeprefix(HUB_PREFIX))


def _check_dataset(name: str) -> Finding:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return warning(
            "hub", f"dataset {name}: not checked, HF_HUB_OFFLINE is set", "it must be in the cache for `ochat prepare`"
        )
    try:
        info = HfApi().dataset_info(name, timeout=SECONDS)
        if info.gated:
            HfApi().auth_check(name, repo_type="dataset")
    except GatedRepoError:
        return problem("hub", f"dataset {name}: is gated", f"accept its terms on the Hub and {_LOG_IN}")
    except RepositoryNotFoundError:
        return problem("hub", f"dataset {name}: not on the Hub, or private", f"check the name, or {_LOG_IN}")
    except Exception as error:
        reason = f"dataset {name}: the Hub cannot be reached ({type(error).__name__})"
        return warning("hub", reason, "it must be in the cache for `ochat prepare`")
    return ok("hub", f"dataset {name}: there and readable; its rows are looked at by `ochat prepare`")


def check_push(recipe: Recipe) -> Iterator[Finding]:
    """The right to push, where the recipe has `train.push_to_hub`; nothing where it has not. Raises UserError without
    it.
    """
    if recipe.train.push_to_hub is None:
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield problem(
            "push", "the recipe pushes to the Hub, and HF_HUB_OFFLINE is set", "unset it, or remove train.push_to_hub"
        )
        return
    check_recipe_rights(recipe, patience=Patience(tries=1, request_seconds=SECONDS, total_seconds=SECONDS))
    yield ok("push", f"{recipe.train.push_to_hub}: this login may write there")
