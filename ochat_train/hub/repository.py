"""What a repository on the Hub has in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ochat_train.export.layout import EXPORT_MARK, exported_names

_PLACEHOLDERS = {".gitattributes", "README.md"}  # the Hub adds these to a new repository


@dataclass(frozen=True, kw_only=True)
class RemoteRepo:
    """A model repository at one revision, as the Hub describes it. head: its newest commit.

    exported: name -> sha256 of the files of the export that was pushed there, from its ochat.json; None without one.
    """

    private: bool
    head: str
    files: Mapping[str, RemoteFile]
    exported: Mapping[str, str] | None

    @property
    def is_foreign(self) -> bool:
        """Whether it has files, and no export of `ochat`."""
        return self.exported is None and not self.files.keys() <= _PLACEHOLDERS


def read_repo(repo: str, *, revision: str | None) -> RemoteRepo:
    """A model repository at a revision (its main branch if the revision does not exist yet)."""
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


def quiet_hub(*, progress: bool) -> None:
    """Turn off huggingface_hub's notices, which contain signed upload addresses; progress: keep its progress bars."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    if progress:
        huggingface_hub.utils.enable_progress_bars()  # transformers' setting also turns these off
    else:
        huggingface_hub.utils.disable_progress_bars()


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository. sha256: of an LFS object, else None. git_id: of the blob, or of the LFS pointer."""

    num_bytes: int
    sha256: str | None
    git_id: str
