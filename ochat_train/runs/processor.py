"""What a base with an image or sound encoder has beside its tokenizer: how pictures and sounds become numbers.

Training does not use it. A run keeps it for its export, which is not whole without it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from data_pipeline.hub_cache import offline_without_network
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.system.messages import print_message

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def processor_files(folder: Path) -> list[Path]:
    """Those of the files that a folder has."""
    return [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]


def keep_processor_files(settings: ModelSettings, folder: Path) -> None:
    """Copy the files of a base into a folder. Says so where the Hub does not give them; the run goes on."""
    if settings.path is None:
        return
    source = Path(settings.path)
    if not source.is_dir():
        from huggingface_hub import snapshot_download

        try:
            with offline_without_network():
                source = Path(
                    snapshot_download(settings.path, revision=settings.revision, allow_patterns=list(PROCESSOR_FILES))
                )
        except Exception as error:  # whatever the HTTP library raises
            print_message(
                f"the image processor of {settings.path} could not be fetched ({type(error).__name__}): copy "
                f"{' and '.join(PROCESSOR_FILES[:2])} from the base into the export by hand"
            )
            return
    for file in processor_files(source):
        shutil.copyfile(file, folder / file.name)
