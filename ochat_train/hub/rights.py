"""The Hugging Face Hub: what a token may do, what a repository holds, and which failures are worth another try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.hub_names import hub_name_problem
from ochat_train.export.layout import EXPORT_MARK
from ochat_train.hub.repository import RemoteRepo, quiet_hub, read_repo
from ochat_train.hub.retry import NEW_TOKEN, Patience, persevere
from ochat_train.recipe.sections import Recipe

_TRIES_AT_FIRST = 4  # nothing is lost yet, and a host without a network should say so soon
_REQUEST_SECONDS_AT_FIRST = 20.0
_TOTAL_SECONDS_AT_FIRST = 90.0  # the other ranks of a run wait meanwhile


def check_rights(
    repo: str, *, private: bool, revision: str | None, overwrite: bool, patience: Patience
) -> RemoteRepo | None:
    """Make sure that a push to `repo` is allowed and hurts nobody; None where the repository is not there yet.

    private: what the repository is wanted to be. Raises UserError; changes nothing on the Hub.
    """
    if (problem := hub_name_problem(repo)) is not None:
        raise UserError(f"{repo!r}", problem)
    first_contact = replace(
        patience,
        tries=min(patience.tries, _TRIES_AT_FIRST),
        request_seconds=min(patience.request_seconds, _REQUEST_SECONDS_AT_FIRST),
        total_seconds=min(patience.total_seconds, _TOTAL_SECONDS_AT_FIRST),
    )
    return persevere(lambda: _check_rights(repo, private, revision, overwrite), first_contact, repo=repo)


def _check_rights(repo: str, private: bool, revision: str | None, overwrite: bool) -> RemoteRepo | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    account = api.whoami()
    try:
        remote = read_repo(repo, revision=revision)
    except RepositoryNotFoundError:
        if (problem := namespace_problem(account, repo)) is not None:
            raise UserError(problem) from None
        for kind in ("dataset", "space"):
            if _exists(repo, kind):
                raise UserError(repo, f"is a {kind} on the Hub, not a model", "choose another name") from None
        return None
    if (problem := _token_problem(account, repo)) is not None:
        raise UserError(problem)
    api.auth_check(repo, write=True)
    refuse(repo, remote, private=private, overwrite=overwrite)
    return remote


def refuse(repo: str, remote: RemoteRepo, *, private: bool, overwrite: bool) -> None:
    """Raise UserError where a push would publish a private model, or replace what `ochat` has not made."""
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
            f"holds {len(remote.files)} files and no {EXPORT_MARK} of an export, so it was not made by `ochat push`",
            "choose another name, or replace all of them with `ochat push --overwrite` (they stay in its history)",
        )


def check_recipe_rights(recipe: Recipe, *, patience: Patience) -> None:
    """Raise UserError where `train.push_to_hub` could not be done."""
    repo = recipe.train.push_to_hub
    assert repo is not None, "asked for recipes that push"
    quiet_hub(progress=False)
    patience = replace(patience, total_seconds=min(patience.total_seconds, recipe.train.hang_timeout_seconds))
    check_rights(repo, private=recipe.train.hub_private, revision=None, overwrite=False, patience=patience)


def namespace_problem(account: Mapping[str, Any], repo: str) -> str | None:
    """Why a token (as `whoami` describes it) may not make `repo`; None if nothing speaks against it."""
    namespace, name = repo.split("/")[0], str(account.get("name"))
    roles = {str(org.get("name")): org.get("roleInOrg") for org in account.get("orgs", [])}
    if namespace.lower() not in {name.lower(), *(org.lower() for org in roles)}:
        known = ", ".join([name, *roles])
        return f"{repo}: the token in HF_TOKEN belongs to {name}, who cannot write to {namespace}; it can to: {known}"
    if "read" in [role for org, role in roles.items() if org.lower() == namespace.lower()]:
        return f"{repo}: {name} has the role `read` in {namespace}; making a repository needs `contributor` or `write`"
    return _token_problem(account, repo)


def _token_problem(account: Mapping[str, Any], repo: str) -> str | None:
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return f"{repo}: the token in HF_TOKEN may only read; {NEW_TOKEN}"
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
            return (
                f"{repo}: the fine-grained token in HF_TOKEN lacks the right `repo.write` (write access to contents) "
                "there; add it at https://huggingface.co/settings/tokens"
            )
    return None


def _exists(repo: str, kind: str) -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().repo_info(repo, repo_type=kind)
    except RepositoryNotFoundError:
        return False
    return True
