"""Whether a push to a repository of the Hub is allowed: the token, the namespace, and what the repository holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.hub_names import hub_name_problem
from ochat_train.export.layout import EXPORT_MARK
from ochat_train.hub.repository import RemoteRepo, quiet_hub, read_repo
from ochat_train.hub.retry import NEW_TOKEN, RetryPolicy, retry
from ochat_train.recipe.recipe import Recipe

# Of the first contact: nothing is lost yet, a host without a network should say so soon, and other ranks wait.
_FIRST_MAX_TRIES = 4
_FIRST_REQUEST_SECONDS = 20.0
_FIRST_TOTAL_SECONDS = 90.0


def first_contact(policy: RetryPolicy, *, hang_timeout_seconds: float = math.inf) -> RetryPolicy:
    """A policy limited for the first contact with the Hub. hang_timeout_seconds: how long other ranks wait for it."""
    return policy.within(
        max_tries=_FIRST_MAX_TRIES,
        request_seconds=_FIRST_REQUEST_SECONDS,
        total_seconds=min(_FIRST_TOTAL_SECONDS, hang_timeout_seconds),
    )


def check_rights(
    repo: str, *, private: bool, revision: str | None, overwrite: bool, policy: RetryPolicy
) -> RemoteRepo | None:
    """Check that a push to `repo` is allowed and destroys nothing; None if the repository does not exist yet.

    private: whether the repository has to be private. Raises UserError; changes nothing on the Hub.
    """
    if (problem := hub_name_problem(repo)) is not None:
        raise UserError(f"{repo!r}", problem)
    return retry(lambda: _check_rights(repo, private, revision, overwrite), first_contact(policy), repo=repo)


def _check_rights(repo: str, private: bool, revision: str | None, overwrite: bool) -> RemoteRepo | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    account = api.whoami()
    try:
        remote = read_repo(repo, revision=revision)
    except RepositoryNotFoundError:
        check_namespace(account, repo)
        for kind in ("dataset", "space"):
            if _exists(repo, kind):
                raise UserError(repo, f"is a {kind} on the Hub, not a model", "choose another name") from None
        return None
    _check_token(account, repo)
    api.auth_check(repo, write=True)
    check_content(repo, remote, private=private, overwrite=overwrite)
    return remote


def check_content(repo: str, remote: RemoteRepo, *, private: bool, overwrite: bool) -> None:
    """Raise UserError if a push would publish a private model, or replace files that `ochat` did not make."""
    if private and not remote.private:
        raise UserError(
            repo,
            "is public",
            "push with `--public` (recipe: `train.hub_private: false`), make it private in its settings, or choose "
            "another name",
        )
    if remote.is_foreign and not overwrite:
        raise UserError(
            repo,
            f"has {len(remote.files)} files and no {EXPORT_MARK} of an export, so `ochat push` did not make it",
            "choose another name, or replace all of them with `ochat push --overwrite` (they stay in its history)",
        )


def check_recipe_rights(recipe: Recipe, *, policy: RetryPolicy) -> None:
    """Raise UserError if `train.push_to_hub` would fail."""
    repo = recipe.train.push_to_hub
    assert repo is not None, "asked for recipes that push"
    quiet_hub(progress=False)
    policy = first_contact(policy, hang_timeout_seconds=recipe.train.hang_timeout_seconds)
    check_rights(repo, private=recipe.train.hub_private, revision=None, overwrite=False, policy=policy)


def check_namespace(account: Mapping[str, Any], repo: str) -> None:
    """Raise UserError if the account of a token (as `whoami` describes it) may not create `repo`."""
    namespace, name = repo.split("/")[0], str(account.get("name"))
    roles = {str(org.get("name")): org.get("roleInOrg") for org in account.get("orgs", [])}
    if namespace.lower() not in {name.lower(), *(org.lower() for org in roles)}:
        known = ", ".join([name, *roles])
        belongs = f"the token in HF_TOKEN belongs to {name}, who cannot write to {namespace}"
        raise UserError(repo, belongs, f"it can to: {known}")
    if "read" in [role for org, role in roles.items() if org.lower() == namespace.lower()]:
        problem = f"{name} has the role `read` in {namespace}"
        raise UserError(repo, problem, "creating a repository needs `contributor` or `write`")
    _check_token(account, repo)


def _check_token(account: Mapping[str, Any], repo: str) -> None:
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise UserError(repo, "the token in HF_TOKEN may only read", NEW_TOKEN)
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", [])
        names = {repo.lower(), repo.split("/")[0].lower()}
        granted = {
            right
            for scope in scopes
            if str(scope.get("entity", {}).get("name")).lower() in names
            for right in scope.get("permissions", [])
        }
        if "repo.write" not in granted:
            raise UserError(
                repo,
                "the fine-grained token in HF_TOKEN lacks the right `repo.write` (write access to contents) there",
                "add it at https://huggingface.co/settings/tokens",
            )


def _exists(repo: str, kind: str) -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        return False
    return True
