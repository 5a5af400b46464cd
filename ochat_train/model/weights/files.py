"""Which files hold a base's weights, and the names, shapes and dtypes in their headers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.hub_cache import cached_file, offline_without_network
from data_pipeline.hub_names import hub_name_problem
from data_pipeline.json_files import LFS_POINTER, pointer_instead_of_file
from data_pipeline.text_rules import some_names
from ochat_train.recipe.sections.model import ModelSettings

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_FETCH_AGAIN = "fetch the base again"


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """A stored tensor. dtype: as safetensors names it, for example `BF16`. file: where it is."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


Headers = Mapping[str, TensorHeader]


def refuse_adapter(settings: ModelSettings) -> None:
    """Raise UserError where the base is an adapter (LoRA): `transformers` would load another model in its place."""
    if settings.path is None:
        return
    folder, found = Path(settings.path), False
    if folder.is_dir():
        found = (folder / ADAPTER_CONFIG).is_file()
    elif hub_name_problem(settings.path) is None:  # what is neither a folder nor a name is refused by whoever loads it
        found = cached_file(settings.path, ADAPTER_CONFIG, revision=settings.revision) is not None
    if found:
        remedy = (
            "merge it into its base (`ochat export`, or `merge_and_unload` of peft), save that, and name its folder"
        )
        if any((folder / name).is_file() for name in (SINGLE_FILE, INDEX)):
            remedy += f"; if its weights are merged already, remove {ADAPTER_CONFIG}"
        raise UserError("model.path", f"{settings.path} holds an adapter ({ADAPTER_CONFIG}) and not a base", remedy)


def local_weight_files(settings: ModelSettings, *, named: str | None) -> Sequence[Path] | None:
    """The safetensors files that a base is loaded from: in its folder, or in the cache of the Hub. None for a base that
    is not on this machine, or not whole.

    named: the file that the base's configuration names (`transformers_weights`). Raises UserError for a folder without
    safetensors files, and for an index that cannot be read or whose files are not there.
    """
    folder = Path(settings.path or "")
    if folder.is_dir():
        return _files_of_folder(folder, named)
    for name in (named,) if named else (SINGLE_FILE, INDEX):
        found = cached_file(settings.path or "", name, revision=settings.revision)
        if found is not None:
            shards = [found.parent / shard for shard in shards_of(found)] if name.endswith(".json") else [found]
            return shards if all(shard.is_file() for shard in shards) else None
    return None


def downloaded_weight_files(settings: ModelSettings, *, named: str | None) -> Sequence[Path]:
    """As `local_weight_files`; what is missing of a base on the Hub is downloaded, as loading it would do.

    Raises UserError where the Hub does not give it.
    """
    found = local_weight_files(settings, named=named)
    if found is not None:
        return found
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    name = str(settings.path)
    try:
        with offline_without_network():
            if named is None:
                try:
                    return [Path(hf_hub_download(name, SINGLE_FILE, revision=settings.revision))]
                except EntryNotFoundError:
                    named = INDEX
            first = Path(hf_hub_download(name, named, revision=settings.revision))
            if not named.endswith(".json"):
                return [first]
            shards = shards_of(first)
            folder = Path(snapshot_download(name, revision=settings.revision, allow_patterns=shards))
    except UserError:
        raise
    except Exception as error:  # whatever the HTTP library raises, a gated repository, a full disk
        raise UserError("model.path", f"{name}: its weights cannot be fetched: {first_line(error)}") from None
    return [folder / shard for shard in shards]


def _files_of_folder(folder: Path, named: str | None) -> Sequence[Path]:
    for name in (named,) if named else (SINGLE_FILE, INDEX):
        path = folder / name
        if path.is_file():
            return _present([folder / shard for shard in shards_of(path)], path) if name.endswith(".json") else [path]
    for name in (SINGLE_FILE, INDEX):
        if (path := folder / name).is_symlink() or path.exists():
            kind = "a folder" if path.is_dir() else "a link to a file that is not there"
            raise UserError(path, f"is {kind}, and not a file", _FETCH_AGAIN)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        problem = f"has neither {SINGLE_FILE} nor {INDEX}, only {some_names(others)}"
        raise UserError(folder, problem, f"rename a single file to {SINGLE_FILE}, or save the model again")
    kinds = sorted({path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern)})
    found = f"; it has {some_names(kinds)}" if kinds else ""
    raise UserError(folder, f"has no safetensors files, the only kind that is loaded{found}", "convert its weights")


def second_set(settings: ModelSettings, *, named: str | None) -> Headers | None:
    """Headers of the weights that an index names beside `model.safetensors`, which is the file that is loaded.

    named: as for `local_weight_files`. None where there is one set of weights, or no folder.
    """
    folder = Path(settings.path or "")
    single, index = folder / SINGLE_FILE, folder / INDEX
    if named is not None or not (single.is_file() and index.is_file()):
        return None
    shards = [folder / name for name in shards_of(index)]
    if shards == [single] or not all(shard.is_file() for shard in shards):
        return None
    return read_headers(shards)


def _present(shards: Sequence[Path], index: Path) -> Sequence[Path]:
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(index, f"names {len(missing)} files that are not there: {some_names(missing)}", _FETCH_AGAIN)
    return shards


def shards_of(index: Path) -> list[str]:
    """Names of the files in an index. Raises UserError for one that cannot be read."""
    try:
        values = nesting.loads(index.read_text(encoding="utf-8"))
        names = values["weight_map"].values()
        if "metadata" not in values:
            raise ValueError("it has no `metadata`, which transformers reads; `{}` is enough")
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("`weight_map` does not name files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(index, f"is not an index of safetensors files ({first_line(error)})", _FETCH_AGAIN) from None
    return sorted(set(names))


def read_headers(files: Iterable[Path]) -> Headers:
    """The headers of safetensors files. Raises UserError for a damaged or cut file, and for a name in two files."""
    from safetensors import SafetensorError, safe_open

    headers: dict[str, TensorHeader] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: _header(file.get_slice(name), path) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            if _is_pointer(path):
                raise UserError(path, *pointer_instead_of_file()) from None
            problem = f"is not a whole safetensors file ({first_line(error)})"
            raise UserError(path, problem, _FETCH_AGAIN) from None
        if twice := sorted(found.keys() & headers.keys()):
            problem = f"holds tensors that {headers[twice[0]].file.name} holds too: {some_names(twice)}"
            raise UserError(path, problem, "remove the file that does not belong to the base")
        headers |= found
    return headers


def _is_pointer(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER.encode()
    return False


def _header(tensor: Any, path: Path) -> TensorHeader:
    return TensorHeader(dtype=str(tensor.get_dtype()), shape=tuple(tensor.get_shape()), file=path)


def hub_headers(name: str, revision: str | None) -> Headers:
    """The headers of a base on the Hub, without its weights: some kilobytes of each file.

    Raises UserError for a damaged file, OSError where the Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        files = HfApi().get_safetensors_metadata(name, revision=revision).files_metadata
    except NotASafetensorsRepoError:
        raise UserError(name, f"has neither {SINGLE_FILE} nor {INDEX}", "convert it, or name another base") from None
    except SafetensorsParsingError as error:
        raise UserError(name, f"holds a damaged file: {first_line(error)}", "name another revision or base") from None
    return {
        tensor: TensorHeader(dtype=str(info.dtype), shape=tuple(info.shape), file=Path(file))
        for file, metadata in files.items()
        for tensor, info in metadata.tensors.items()
    }


def stored_name(name: str, headers: Headers) -> str | None:
    """The name of a weight in the files: its own, or the only one with the same end (`embed_tokens.weight`)."""
    if name in headers:
        return name
    end = ".".join(name.split(".")[-2:])
    found = [stored for stored in headers if stored == end or stored.endswith(f".{end}")]
    return found[0] if len(found) == 1 else None


def first_line(error: BaseException) -> str:
    """What another library says of a failure, without the lines below it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
