"""What the Hugging Face Hub and its cache on this machine have: bases, tokenizers, datasets, and the right to push."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data_pipeline.hub_names import is_hub_id
from data_pipeline.settings import HUB_PREFIX
from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.hub.models import ANSWER_SECONDS, LOG_IN
from ochat_train.hub.retry import RetryPolicy
from ochat_train.hub.rights import check_recipe_rights
from ochat_train.recipe.sections import Recipe

if TYPE_CHECKING:
    from ochat_train.check.facts import Facts


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
        info = HfApi().dataset_info(name, timeout=ANSWER_SECONDS)
        if info.gated:
            HfApi().auth_check(name, repo_type="dataset")
    except GatedRepoError:
        return problem("hub", f"dataset {name}: is gated", f"accept its terms on the Hub and {LOG_IN}")
    except RepositoryNotFoundError:
        return problem("hub", f"dataset {name}: not on the Hub, or private", f"check the name, or {LOG_IN}")
    except Exception as error:
        reason = f"dataset {name}: the Hub cannot be reached ({type(error).__name__})"
        return warning("hub", reason, "it must be in the cache for `ochat prepare`")
    return ok("hub", f"dataset {name}: there and readable; its rows are looked at by `ochat prepare`")


def check_push(recipe: Recipe, *, timeout_seconds: float = ANSWER_SECONDS) -> Iterator[Finding]:
    """The right to push, if the recipe has `train.push_to_hub`. Raises UserError if this login may not push.

    timeout_seconds: how long to wait for the Hub.
    """
    if recipe.train.push_to_hub is None:
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield problem(
            "push", "the recipe pushes to the Hub, and HF_HUB_OFFLINE is set", "unset it, or remove train.push_to_hub"
        )
        return
    policy = RetryPolicy(max_tries=1, request_seconds=timeout_seconds, total_seconds=timeout_seconds)
    check_recipe_rights(recipe, policy=policy)
    yield ok("push", f"{recipe.train.push_to_hub}: this login may write there")
