"""The part of faults.py about prepared data: each fault is put into a copy, and `ochat train` is started on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.file_hashes import CACHE_VARIABLE
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from tests.support.data import without_hashes
from tests.support.prepared_faults import PREPARED_FAULTS, Fault, change_sources, train_on_copies
from tests.support.small_recipe import write_small_recipe
from tests.support.tokenizers import write_small_tokenizer

USER_ERROR = 2


def prepared_faults(folder: Path) -> dict[str, Any]:
    """How many faults end the training with exit code 2 and the name of the file, and that whole data trains.

    The control: the same faults in data without hashes, as earlier versions prepared it, of which some still train.
    """
    os.environ[CACHE_VARIABLE] = str(folder / "cache")  # the processes below inherit it
    recipe = relative_recipe(folder / "main")
    faults: dict[str, Fault] = {name: fault for name, (fault, _) in PREPARED_FAULTS.items()}
    said = train_on_copies(recipe, folder / "hashes", {"": lambda prepared: None, **faults, "sources": change_sources})
    assert said[""][0] == 0, said[""][1]
    held = [name for name, (_, file) in PREPARED_FAULTS.items() if is_named(said[name], f"prepared/{file}: ")]
    held += ["sources"] * is_named(said["sources"], "prepared from other sources")
    for name in {*faults, "sources"} - {*held}:
        print(f"not seen: {name}\n{said[name][1][-500:]}")
    old = train_on_copies(recipe, folder / "old", {name: in_old_data(fault) for name, fault in faults.items()})
    silent = sum(code == 0 for code, _ in old.values())
    return {"held": len(held), "of": len(faults) + 1, "control": f"without hashes {silent} of {len(faults)} train"}


def is_named(said: tuple[int, str], text: str) -> bool:
    """Whether a training ended with exit code 2 and a message that holds a text."""
    return said[0] == USER_ERROR and text in said[1]


def in_old_data(fault: Fault) -> Callable[[Path], None]:
    """The same fault in data that was prepared by a version that kept no hashes."""

    def spoil(prepared: Path) -> None:
        without_hashes(prepared)
        fault(prepared)

    return spoil


def relative_recipe(folder: Path) -> Path:
    """A prepared recipe whose folder can be copied."""
    folder.mkdir(parents=True)
    names = ("expert", "suboptimal")
    recipe = write_small_recipe(
        folder,
        write_small_tokenizer(folder.parent / "tokenizer"),
        output_dir="run",
        train__max_steps=1,
        data__prepared_dir="prepared",
        data__validation_ratio=0.3,
        data__sources=[{"path": f"{name}.jsonl", "format": "messages", "class": name} for name in names],
    )
    here = Path.cwd()
    os.chdir(folder)
    try:
        prepare_recipe(load_recipe(recipe), num_workers=1, progress=lambda rows: None)
    finally:
        os.chdir(here)
    return recipe
