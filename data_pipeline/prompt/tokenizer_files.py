"""Where the files of a tokenizer are: in a folder, in the Hub cache, or on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.hub_cache import is_known_to_be_absent, offline_without_network
from data_pipeline.hub_names import is_hub_id

RUN_REMEDY = "export the run (`ochat export RUN --out FOLDER`) and name that folder"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def find_tokenizer_files(name: str, *, revision: str | None = None, more: Sequence[str] = ()) -> dict[str, Path]:
    """The tokenizer files of a local folder or a Hub model, by name; also those of `more` that are there. Raises
    UserError where `tokenizer.json` is missing.
    """
    wanted = (*TOKENIZER_FILES, *more)
    folder = Path(name)
    if folder.is_dir():
        found = {file: folder / file for file in wanted if (folder / file).is_file()}
    elif not is_hub_id(name):
        raise UserError("model", f"{name}: no such folder, and not a Hub id (ORG/NAME)")
    else:
        with offline_without_network():
            found = _download(name, revision, wanted)
    if "tokenizer.json" not in found and is_run_folder(folder):
        raise UserError("model", f"{name}: is the folder of a run, and not a model", RUN_REMEDY)
    if "tokenizer.json" not in found:
        raise UserError(
            "model",
            f"{name}: has no tokenizer.json",
            "load it once with transformers' AutoTokenizer, save it with save_pretrained and name that folder as "
            "`model.tokenizer`",
        )
    return found


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run, which many take for the model that it trained."""
    return (folder / "recipe.json").is_file() and (folder / "checkpoints").is_dir()


def _download(name: str, revision: str | None, wanted: Sequence[str]) -> dict[str, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    found = {}
    for file in wanted:
        try:
            found[file] = Path(hf_hub_download(name, file, revision=revision))
        except LocalEntryNotFoundError:  # no network or HF_HUB_OFFLINE; its base class is "not found"
            if not is_known_to_be_absent(name, file, revision=revision):
                raise UserError(
                    "model",
                    f"{name}: {file} is not in the cache of this host, and the Hub cannot be reached",
                    "name a local folder, or load the model once with the network (and without HF_HUB_OFFLINE)",
                ) from None
        except EntryNotFoundError:
            continue
        except Exception as error:
            raise UserError(
                "model",
                f"{name}: {file} could not be downloaded from the Hub ({type(error).__name__})",
                "name a local folder, or log in with `hf auth login` for a gated model",
            ) from None
    return found
