"""What the Hugging Face Hub and its cache on this machine have: bases, tokenizers, datasets, and the right to push."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.hub_names import is_hub_id
from data_pipeline.settings.sources import HUB_PREFIX
from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.hub.models import ANSWER_SECONDS, LOG_IN
from ochat_train.hub.retry import RetryPolicy
from ochat_train.hub.rights import check_recipe_rights

_IN_CACHE = "it must be in the cache for `ochat prepare`"


def check_hub(facts: RecipeFacts) -> Iterator[Finding]:
    """Base and tokenizer if they are Hub ids, and datasets."""
    model = facts.recipe.model
    for name in dict.fromkeys(name for name in (model.path, model.tokenizer_source) if name and is_hub_id(name)):
        found = facts.hub_model(name)
        cache = "in the cache" if found.is_cached else "not in the cache, the run downloads it"
        text = f"{found.hub_says}; {cache}"
        yield ok("hub", name, text) if found.is_reachable else warning("hub", name, text, "the cached files are used")
    for source in facts.recipe.data.sources:
        if source.is_on_hub:
            yield _check_dataset(source.path.removeprefix(HUB_PREFIX))


def _check_dataset(name: str) -> Finding:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    place = f"dataset {name}"
    if constants.HF_HUB_OFFLINE:
        return warning("hub", place, "not checked, HF_HUB_OFFLINE is set", _IN_CACHE)
    try:
        info = HfApi().dataset_info(name, timeout=ANSWER_SECONDS)
        if info.gated:
            HfApi().auth_check(name, repo_type="dataset")
    except GatedRepoError:
        return problem("hub", place, "is gated", f"accept its terms on the Hub and {LOG_IN}")
    except RepositoryNotFoundError:
        return problem("hub", place, "not on the Hub, or private", f"check the name, or {LOG_IN}")
    except Exception as error:
        return warning("hub", place, f"the Hub cannot be reached ({type(error).__name__})", _IN_CACHE)
    return ok("hub", place, "exists and is readable; `ochat prepare` reads its rows")


def check_push(facts: RecipeFacts, *, timeout_seconds: float = ANSWER_SECONDS) -> Iterator[Finding]:
    """The right to push, if the recipe has `train.push_to_hub`. Raises UserError where it is missing.

    timeout_seconds: how long to wait for the Hub.
    """
    recipe, place = facts.recipe, "train.push_to_hub"
    if recipe.train.push_to_hub is None:
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield problem("push", place, "HF_HUB_OFFLINE is set", f"unset it, or remove {place}")
        return
    policy = RetryPolicy(max_tries=1, request_seconds=timeout_seconds, total_seconds=timeout_seconds)
    check_recipe_rights(recipe, policy=policy)
    yield ok("push", place, f"this login may write to {recipe.train.push_to_hub}")
