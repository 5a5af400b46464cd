"""Whether the files of a prepared dataset are the ones that were written.

The manifest holds size and sha256 of every other file, and a digest of itself. Sizes and names are compared wherever a
prepared dataset is opened. Hashes are compared before a training, once for each host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.file_hashes import FileHash, hash_files
from data_pipeline.files import sha256_of_file
from data_pipeline.prepared.dataset import MANIFEST, TOKENIZER_FOLDER, DamagedDataError, Manifest, rows_digest

REMEDY = "run `ochat prepare` again"
_UNVERIFIED = (
    "was prepared by a version that kept no hashes, so nobody can tell whether its files are the ones that were written"
)


@dataclass(frozen=True, kw_only=True)
class VerifiedData:
    """The result of `verify`.

    content: sha256 over names, sizes and hashes of all files as they were found. rows_digest: over those of rows alone.
    num_bytes: of all files; read_bytes: of those that were read now, the others are remembered.
    warning: what could not be verified; empty where everything was.
    """

    content: str
    rows_digest: str
    num_files: int
    num_bytes: int
    read_bytes: int
    seconds: float
    warning: str = ""


def files_of(folder: Path) -> dict[str, Path]:
    """Every file of a prepared dataset by its name in the manifest, without the manifest itself."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # NFS keeps the content of a file that is deleted while it is open under such a name
    return {name: path for name, path in found.items() if name != MANIFEST and not path.name.startswith(".nfs")}


def hashes_of(folder: Path) -> dict[str, FileHash]:
    """Sizes and hashes of all files as they are now, for the manifest."""
    files = files_of(folder)
    hashed = hash_files(list(files.values()), group=None).files
    return {name: hashed[path] for name, path in files.items()}


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise DamagedDataError for a file that is missing, too many, or of another size. Reads no content.

    A manifest without hashes says nothing of its files, and nothing is compared.
    """
    if not manifest.files:
        return
    found = _found(folder, manifest)
    for name, expected in manifest.files.items():
        if name not in found:
            raise DamagedDataError(folder / name, "is missing from the prepared dataset", REMEDY)
        size = found[name].stat().st_size
        if size != expected.size:
            raise DamagedDataError(
                found[name], f"has {size:,} bytes, but {expected.size:,} bytes were written by `ochat prepare`", REMEDY
            )
    for name in sorted(found.keys() - manifest.files.keys()):
        raise DamagedDataError(found[name], "does not belong to the prepared dataset", "move it to another folder")


def _found(folder: Path, manifest: Manifest) -> dict[str, Path]:
    """Every file, also those that the manifest names in a folder that is a link to another disk."""
    named = {name: folder / name for name in manifest.files if (folder / name).is_file()}
    return files_of(folder) | named


def check_tokenizer_copy(folder: Path, manifest: Manifest) -> None:
    """Raise UserError where the tokenizer folder in `folder` is not the one that the dataset was prepared with."""
    for name, expected in manifest.files.items():
        if not name.startswith(f"{TOKENIZER_FOLDER}/"):
            continue
        path = folder / name
        if not path.is_file() or sha256_of_file(path) != expected.sha256:
            problem = "is missing" if not path.is_file() else "has changed since the run began (another sha256)"
            raise UserError(path, problem, "copy it from the prepared dataset that the run was trained on")


def verify(
    folder: Path,
    manifest: Manifest,
    *,
    read_all: bool = False,
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> VerifiedData:
    """Compare sizes and hashes of all files with the manifest.

    read_all, progress: as in `hash_files`. Raises DamagedDataError with the name of the first file that differs.
    """
    check_sizes(folder, manifest)
    files = _found(folder, manifest)
    try:
        hashed = hash_files(list(files.values()), group=folder, read_all=read_all, progress=progress)
    except OSError as error:
        raise DamagedDataError(error.filename or folder, f"cannot be read: {error.strerror or error}", REMEDY) from None
    found = {name: hashed.files[path] for name, path in files.items()}
    for name, expected in manifest.files.items():
        if found[name] != expected:
            problem = "has changed since `ochat prepare` wrote it (another sha256)"
            raise DamagedDataError(files[name], problem, REMEDY)
    return VerifiedData(
        content=_digest(found),
        rows_digest=rows_digest(found),
        num_files=len(found),
        num_bytes=hashed.num_bytes,
        read_bytes=hashed.read_bytes,
        seconds=hashed.seconds,
        warning="" if manifest.files else f"{folder}: {_UNVERIFIED}; {REMEDY}",
    )


def _digest(files: Mapping[str, FileHash]) -> str:
    lines = (f"{file.sha256} {file.size} {name}\n" for name, file in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
