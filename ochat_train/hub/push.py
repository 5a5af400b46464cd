"""Uploads an export to the Hub: only files of `ochat export`, only what the Hub lacks, verified afterwards.

One commit has the whole model, so that no revision mixes two of them. Large files are uploaded before it: a push that
was killed and is started again sends only what the Hub does not have.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_of_file
from data_pipeline.hub_names import is_hub_id
from data_pipeline.text_rules import some_names
from ochat_train.adapter.folder import base_of, is_adapter
from ochat_train.export.layout import CARD, EXPORT_MARK, exported_names
from ochat_train.hub.repository import RemoteFile, RemoteRepo, quiet_hub, read_remote_file, read_repo
from ochat_train.hub.retry import RetryPolicy, UploadError, retry
from ochat_train.hub.rights import check_content, check_rights
from ochat_train.model.weights.files import ADAPTER_CONFIG

CARD_KEPT = f"{CARD} was edited there and is kept; `ochat push --overwrite` replaces it"
STAYS_PRIVATE = "was there before and is private; it stays private, until its settings on the Hub change that"
_ADDABLE = ("LICENSE*", "NOTICE*", "USE_POLICY*", "*.md")  # what people add to a model
_HASHING_THREADS = 4
_MOST_BYTES_IN_MEMORY = 10 * 2**20  # of a file; the Hub takes no larger ones as a part of a commit itself


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file to push. name: in the folder and in the repository."""

    path: Path
    name: str
    num_bytes: int
    sha256: str

    @cached_property
    def git_id(self) -> str:
        """What git calls a file with this content; small files are stored under it."""
        content = self.path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    def is_same(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub has exactly this content."""
        if remote is None or remote.num_bytes != self.num_bytes:
            return False
        return remote.sha256 == self.sha256 if remote.sha256 is not None else remote.git_id == self.git_id


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A finished push. num_new: files that this push has changed; 0 if the Hub had all of them.

    asked_public: whether the push asked for a public repository; one that was there before and is private stays so.
    card_left: the model card on the Hub was edited there and was kept, so it is not that of the folder.
    """

    repo: str
    url: str
    commit: str
    private: bool
    asked_public: bool
    num_files: int
    num_bytes: int
    num_new: int
    card_left: bool

    @property
    def what_changed(self) -> str:
        """The numbers of this push, in words."""
        visibility = "private" if self.private else "public"
        counts = f"{self.num_files} files, {self.num_bytes / 1e9:.3f} GB, {self.num_new} of them new or changed"
        return "\n".join([f"{counts}; {visibility}", *self.notes])

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as one may expect."""
        stays = f"{self.repo}: {STAYS_PRIVATE}" if self.private and self.asked_public else ""
        kept = f"{self.repo}: {CARD_KEPT}" if self.card_left else ""
        return tuple(note for note in (stays, kept) if note)

    def as_json(self) -> dict[str, Any]:
        """The document of `ochat push --json`."""
        counts = {"files": self.num_files, "bytes": self.num_bytes, "files_changed": self.num_new}
        place = {"repo": self.repo, "url": self.url, "commit": self.commit, "private": self.private}
        return {**place, **counts, "card_left": self.card_left, "verified": True}


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
    policy: RetryPolicy | None = None,
    progress: bool = False,
) -> Pushed:
    """Upload an export to the model repository `repo` (ORG/NAME), then compare the files on the Hub with it.

    private: whether a new repository is private. revision: branch; a new one starts at the main branch.
    overwrite: replace a model card that was edited on the Hub, and all files of a repository that `ochat push` did not
    make. progress: show huggingface_hub's progress bars on stderr.
    Raises UserError. After a failure the same call sends only what is missing.
    """
    policy = policy or RetryPolicy()
    quiet_hub(progress=progress)
    _check_base(folder)
    files = exported_files(folder)
    remote = check_rights(repo, private=private, revision=revision, overwrite=overwrite, policy=policy)
    is_new = remote is None
    retry(lambda: _make_repo(repo, private=private, revision=revision, is_new=is_new), policy, repo=repo)
    changed: set[str] = set()

    def upload() -> tuple[str, list[LocalFile]]:
        # Reads the repository again: an earlier try may have succeeded although its answer was lost.
        now = read_repo(repo, revision=revision)
        check_content(repo, now, private=private, overwrite=overwrite)
        leave_card = not overwrite and _is_card_edited(files, repo, now)
        chosen = [file for file in files if file.name != CARD or not leave_card]
        title = message or f"Upload {folder.name}"
        return _commit(chosen, repo, now, changed, revision=revision, message=title, overwrite=overwrite), chosen

    commit, chosen = retry(upload, policy, repo=repo)
    verify_push(chosen, repo, retry(lambda: read_repo(repo, revision=commit), policy, repo=repo))
    from huggingface_hub import HfApi

    return Pushed(
        repo=repo,
        url=f"{HfApi().endpoint}/{repo}" + (f"/tree/{revision}" if revision else ""),
        commit=commit,
        private=private if remote is None else remote.private,
        asked_public=not private,
        num_files=len(chosen),
        num_bytes=sum(file.num_bytes for file in chosen),
        num_new=len(changed),
        card_left=len(chosen) < len(files),
    )


def _check_base(folder: Path) -> None:
    """Raise UserError for an adapter whose base only this machine has."""
    if not is_adapter(folder):
        return
    base, _ = base_of(folder)
    if base is None or not is_hub_id(base):
        problem = f"names a base that is not on the Hub ({base or 'none'}), so nobody could load the adapter"
        raise UserError(folder / ADAPTER_CONFIG, problem, "export it again with `--base ORG/NAME`, or merged")


def exported_files(folder: Path) -> list[LocalFile]:
    """The files of an export. Raises UserError if the folder is not an export, or has changed since.

    The model card may have been edited, and licences and notes may have been added.
    """
    written = _files_of_export(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = [path.relative_to(folder).as_posix() for path in paths]
    if missing := sorted(written.keys() - names):
        raise UserError(folder, f"{missing[0]} is missing since the export", "export again with --overwrite")
    for name in sorted(set(names) - written.keys() - {EXPORT_MARK}):
        if not any(fnmatch(name, pattern) for pattern in _ADDABLE):
            raise UserError(
                folder,
                f"{name} was not written by `ochat export` and is not pushed",
                f"move it away (files that may be added: {', '.join(_ADDABLE)})",
            )
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        hashes = list(pool.map(_sha256, paths))
    for name, sha256 in zip(names, hashes, strict=True):
        if name in written and name != CARD and sha256 != written[name]:
            raise UserError(folder, f"{name} has changed since the export verified it", "export again with --overwrite")
    _check_card(folder / CARD)
    return [
        LocalFile(path=path, name=name, num_bytes=path.stat().st_size, sha256=sha256)
        for path, name, sha256 in zip(paths, names, hashes, strict=True)
    ]


def _files_of_export(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise UserError(folder, "no such folder", f"export a run first: `ochat export RUN --out {folder}`")
    try:
        written = exported_names((folder / EXPORT_MARK).read_bytes())
    except FileNotFoundError:
        raise UserError(
            folder, f"{EXPORT_MARK} is missing, so `ochat export` did not make this folder", "export the run first"
        ) from None
    except OSError as error:
        raise UserError(f"{folder / EXPORT_MARK}", f"cannot be read: {error.strerror}") from None
    if written is None:
        raise UserError(
            folder,
            f"{EXPORT_MARK} lists no files: it is damaged, or of an older version",
            "export again with --overwrite",
        )
    return written


def _sha256(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        target = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise UserError(f"{path}{target}", f"cannot be read: {error.strerror}") from None


def _check_card(path: Path) -> None:
    from huggingface_hub import ModelCard

    try:
        metadata = ModelCard(path.read_text(encoding="utf-8")).data.to_dict()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(path, f"the metadata between the `---` lines cannot be read: {reason}") from None
    if not metadata:
        raise UserError(path, "has no metadata between `---` lines at its top", "export again with --overwrite")


def _make_repo(repo: str, *, private: bool, revision: str | None, is_new: bool) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    if is_new:
        api.create_repo(repo, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)


def _is_card_edited(files: list[LocalFile], repo: str, remote: RemoteRepo) -> bool:
    """Whether the model card on the Hub is neither the one to push nor the one of the export that is there."""
    card = next(file for file in files if file.name == CARD)
    if remote.exported is None or CARD not in remote.files or card.is_same(remote.files[CARD]):
        return False
    content = read_remote_file(repo, CARD, revision=remote.head)
    return hashlib.sha256(content).hexdigest() != remote.exported.get(CARD)


def _commit(
    files: list[LocalFile],
    repo: str,
    remote: RemoteRepo,
    changed: set[str],
    *,
    revision: str | None,
    message: str,
    overwrite: bool,
) -> str:
    """Commit what the Hub lacks and remove what the earlier model had; returns the commit.

    `changed` collects the names of files with new content.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    new = [file for file in files if not file.is_same(remote.files.get(file.name))]
    kept = {CARD, ".gitattributes", *(file.name for file in files)}
    earlier = remote.files if overwrite and remote.is_foreign else remote.exported or {}
    gone = sorted(remote.files.keys() & earlier.keys() - kept)  # left there, they would mix two models
    if not new and not gone:
        return remote.head
    changed.update(file.name for file in new)
    additions = {file: CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=_uploaded_from(file)) for file in new}
    deletions = [CommitOperationDelete(path_in_repo=name) for name in gone]
    api = HfApi()
    try:
        api.preupload_lfs_files(repo, list(additions.values()), revision=revision, free_memory=False)
        for file, addition in additions.items():  # a revision on the Hub stays forever: look before making one
            if addition.upload_info.sha256.hex() != file.sha256:
                raise _has_changed(file)
        # After a commit of somebody else this fails with 412, and the retry reads the repository again.
        info = api.create_commit(
            repo,
            [*additions.values(), *deletions],
            commit_message=message,
            revision=revision,
            parent_commit=remote.head,
        )
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        raise UploadError(str(error)) from error
    return str(info.oid)


def _uploaded_from(file: LocalFile) -> bytes | Path:
    """What huggingface_hub uploads: of a small file the bytes, as it reads those again when it commits."""
    if file.num_bytes > _MOST_BYTES_IN_MEMORY:
        return file.path
    content = file.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise _has_changed(file)
    return content


def _has_changed(file: LocalFile) -> UserError:
    problem = "has changed while it was pushed, so nothing was committed"
    return UserError(file.path, problem, "wait until nothing writes to the folder, and push again")


def verify_push(files: list[LocalFile], repo: str, remote: RemoteRepo) -> None:
    """Raise UserError unless every file on the Hub has the same size and sha256 (a small file: git id)."""
    wrong = [file.name for file in files if not file.is_same(remote.files.get(file.name))]
    if wrong:
        first = next(file for file in files if file.name == wrong[0])
        found = remote.files.get(first.name)
        held = f"{found.num_bytes:,} bytes, {found.sha256 or found.git_id}" if found else "nothing"
        raise UserError(
            f"{repo} at {remote.head[:12]}",
            f"{len(wrong)} of {len(files)} files differ from the folder: {some_names(wrong, most=5)} "
            f"({first.name}: the Hub has {held}; here {first.num_bytes:,} bytes, "
            f"{(first.sha256 if found is None or found.sha256 else first.git_id)})",
            "push again",
        )
