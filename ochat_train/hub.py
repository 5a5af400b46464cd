"""The Hugging Face Hub: what a token may do, what a repository holds, and which failures are worth another try."""

from __future__ import annotations

import json
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # TimeoutError itself from Python 3.11 on
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.hub_names import hub_name_problem
from ochat_train.export.layout import EXPORT_MARK, exported_names
from ochat_train.recipe import Recipe

T = TypeVar("T")

_PLACEHOLDERS = {".gitattributes", "README.md"}  # what the Hub puts into a new repository
_TRANSIENT = (408, 409, 412, 425, 429, 500, 502, 503, 504)  # 409 and 412: somebody else has just committed
_TRIES_AT_FIRST = 4  # nothing is lost yet, and a host without a network should say so soon
_REQUEST_SECONDS_AT_FIRST = 20.0
_TOTAL_SECONDS_AT_FIRST = 90.0  # the other ranks of a run wait meanwhile
_NEW_TOKEN = "make one with write access at https://huggingface.co/settings/tokens, and set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long failures that pass by themselves are put up with.

    tries: in all. The wait doubles from `first_wait_seconds` to `longest_wait_seconds`, or is what the Hub asks for
    (Retry-After), if that is not longer than `longest_retry_after_seconds`. sleep, say: how to wait, and where to tell.

    request_seconds: how long a request may be without a byte in either direction; a large commit takes the Hub a
    minute.
    total_seconds: for all tries and waits together. Work that still goes on then is left behind, so it must only read.
    """

    tries: int = 8
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    longest_retry_after_seconds: float = 900.0
    request_seconds: float = 300.0
    total_seconds: float = math.inf
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository. sha256: of files that are stored as LFS objects, else None. git_id: of the blob or
    pointer.
    """

    num_bytes: int
    sha256: str | None
    git_id: str


@dataclass(frozen=True, kw_only=True)
class RemoteRepo:
    """A model repository at one revision, as the Hub describes it. head: its newest commit.

    exported: name -> sha256 of what the export held that was pushed there, as its ochat.json lists it; None without
    one.
    """

    private: bool
    head: str
    files: Mapping[str, RemoteFile]
    exported: Mapping[str, str] | None

    @property
    def is_foreign(self) -> bool:
        """Whether it holds something, and nothing that `ochat export` has made."""
        return self.exported is None and not self.files.keys() <= _PLACEHOLDERS


def persevere(work: Callable[[], T], patience: Patience, *, repo: str) -> T:
    """The result of `work`, which is called again after failures that pass.

    Raises UserError for all other failures of the Hub or on the way to it. Other errors are bugs of ours and go
    through.
    """
    end = time.monotonic() + patience.total_seconds
    for number in range(1, patience.tries + 1):
        _limit_requests(patience.request_seconds)
        try:
            return _within(end - time.monotonic(), work)
        except UserError:
            raise
        except Exception as error:
            found = _cause(error)
            if not _is_of_the_hub(found):
                raise
            if not _is_transient(found):
                raise UserError(_message(found, repo)) from error
            asked = _retry_after_seconds(found)
            doubled = min(patience.longest_wait_seconds, patience.first_wait_seconds * 2 ** (number - 1))
            wait = asked if asked is not None else doubled * random.uniform(0.75, 1.0)
            is_too_long = wait > patience.longest_retry_after_seconds or time.monotonic() + wait >= end
            if number == patience.tries or is_too_long:
                wish = f"; it asks for a pause of {asked:.0f} s" if asked else ""
                raise UserError(
                    f"{repo}: {_short(found)}; gave up after {number} {'try' if number == 1 else 'tries'}{wish}. "
                    "Run the same command later: what has been uploaded is not sent again"
                ) from error
            patience.say(f"{repo}: {_short(found)}; try {number + 1} of {patience.tries} in {wait:.0f} s")
            patience.sleep(wait)
    raise AssertionError("the last try returns or raises")


@dataclass(frozen=True)
class _RequestLimit:
    """A request hook of the HTTP library: no request waits longer for a byte."""

    seconds: float

    def __call__(self, request: Any) -> None:
        given = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: min(self.seconds, given.get(kind) or math.inf) for kind in kinds}


def _limit_requests(seconds: float) -> None:
    """Let huggingface_hub's requests wait no longer: it sets no limit, and some calls would take away that of its
    client.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    others = [hook for hook in session.event_hooks["request"] if not isinstance(hook, _RequestLimit)]
    session.event_hooks = {**session.event_hooks, "request": [*others, _RequestLimit(seconds)]}


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; TimeoutError if it takes longer. It then goes on in its thread, which ends with the
    process.
    """
    if seconds == math.inf:
        return work()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="hub", daemon=True).start()
    try:
        return future.result(max(0.0, seconds))
    except FutureTimeoutError:
        if future.done():
            raise  # of the work itself
        raise TimeoutError("no answer in time") from None


def check_rights(
    repo: str, *, private: bool, revision: str | None, overwrite: bool, patience: Patience
) -> RemoteRepo | None:
    """Make sure that a push to `repo` is allowed and hurts nobody; None where the repository is not there yet.

    private: what the repository is wanted to be. Raises UserError; changes nothing on the Hub.
    """
    if (problem := hub_name_problem(repo)) is not None:
        raise UserError(f"{repo!r}: {problem}")
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
                raise UserError(f"{repo}: is a {kind} on the Hub, not a model; choose another name") from None
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
            f"{repo}: is public; push with `--public` (recipe: `train.hub_private: false`), make it private in its "
            "settings, or choose another name"
        )
    if remote.is_foreign and not overwrite:
        raise UserError(
            f"{repo}: holds {len(remote.files)} files and no {EXPORT_MARK} of an export, so it was not made by `ochat "
            "push`; choose another name, or replace all of them with `ochat push --overwrite` (they stay in its "
            "history)"
        )


def read_repo(repo: str, *, revision: str | None) -> RemoteRepo:
    """A model repository at a revision (its main branch where the revision is not there yet)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        info = api.model_info(repo, revision=revision)
    except RevisionNotFoundError:
        info = api.model_info(repo)
    files = {
        entry.path: RemoteFile(
            num_bytes=entry.lfs.size if entry.lfs else entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git_id=entry.blob_id,
        )
        for entry in api.list_repo_tree(repo, recursive=True, revision=info.sha)
        if isinstance(entry, RepoFile)
    }
    exported = exported_names(read_remote_file(repo, EXPORT_MARK, revision=info.sha)) if EXPORT_MARK in files else None
    return RemoteRepo(private=bool(info.private), head=str(info.sha), files=files, exported=exported)


def read_remote_file(repo: str, name: str, *, revision: str) -> bytes:
    """The content of a small file of a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    answer = get_session().get(f"{HfApi().endpoint}/{repo}/resolve/{revision}/{name}", headers=build_hf_headers())
    hf_raise_for_status(answer)
    return bytes(answer.content)


def check_recipe_rights(recipe: Recipe, *, patience: Patience) -> None:
    """Raise UserError where `train.push_to_hub` could not be done."""
    repo = recipe.train.push_to_hub
    assert repo is not None, "asked for recipes that push"
    quiet_hub(progress=False)
    patience = replace(patience, total_seconds=min(patience.total_seconds, recipe.train.hang_timeout_seconds))
    check_rights(repo, private=recipe.train.hub_private, revision=None, overwrite=False, patience=patience)


def quiet_hub(*, progress: bool) -> None:
    """Keep huggingface_hub's notices off the screen (they hold signed addresses of uploads), and its bars if asked."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # type: ignore[attr-defined]
    if progress:
        huggingface_hub.utils.enable_progress_bars()  # transformers' setting turns these off, too
    else:
        huggingface_hub.utils.disable_progress_bars()


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
        return f"{repo}: the token in HF_TOKEN may only read; {_NEW_TOKEN}"
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


def _cause(error: BaseException) -> BaseException:
    """The error behind an error that says what happened on the wire; the error itself where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if _status(seen) is not None or _is_connection(seen):
            return seen
        seen = seen.__cause__
    return error


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_connection(error: BaseException) -> bool:
    """Whether a request got no whole answer (huggingface_hub's HTTP library has changed its name over time)."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


class UploadError(Exception):
    """What hf_xet, which uploads large files, could not do: it raises RuntimeError for what its own tries did not
    mend.
    """


def _is_of_the_hub(error: BaseException) -> bool:
    """Whether an error tells of the Hub, its libraries, the network, the token or the disk, and not of a bug of
    ours.
    """
    names = {kind.__name__ for kind in type(error).__mro__}  # HTTPError: also of a request that was not answered
    is_xets = any(name.startswith("Xet") for name in names)
    return is_xets or "HTTPError" in names or isinstance(error, OSError | UploadError | json.JSONDecodeError)


def _is_transient(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    is_cut = isinstance(error, UploadError | ConnectionError | TimeoutError)
    return is_cut or _is_connection(error) or _status(error) in _TRANSIENT


def _retry_after_seconds(error: BaseException) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    text = str(headers.get("Retry-After", "")).strip()
    if text.isdigit():
        return float(text)
    limit = parse_ratelimit_headers(headers) if _status(error) == 429 else None
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _short(error: BaseException) -> str:
    from huggingface_hub import constants

    if (status := _status(error)) is not None:
        said = getattr(error, "server_message", None)
        return without_token(f"HTTP {status}" + (f" ({said})" if said else ""))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no answer"]
    said = without_token(f"{type(error).__name__}: {' '.join(lines)[:300]}")
    return f"no connection to {constants.ENDPOINT} ({said})" if _is_connection(error) else said


def _message(error: BaseException, repo: str) -> str:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return f"{repo}: there is no token for the Hub; {_NEW_TOKEN}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to push"
    status = _status(error)
    if status == 401:
        return f"{repo}: the Hub does not accept the token (HTTP 401); {_NEW_TOKEN}"
    if status == 403 or type(error).__name__ == "XetAuthenticationError":
        return (
            f"{repo}: this token may not write there ({_short(error)}); in HF_TOKEN, set a token with write access to "
            f"{repo.split('/')[0]} (fine-grained tokens: `repo.write`)"
        )
    return f"{repo}: {_short(error)}"


def without_token(text: str) -> str:
    """A text without the token, should somebody have put it there."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text
