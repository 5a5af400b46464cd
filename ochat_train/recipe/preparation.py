"""What a recipe asks of the data pipeline, and whether a prepared dataset is the one that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.prepare.fingerprints import input_fingerprints, sources_fingerprint
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from ochat_train.recipe.sections import Recipe


def prepare_job(recipe: Recipe) -> PrepareJob:
    """What `data_pipeline.prepare.prepare` needs to know of a recipe."""
    template = TEMPLATES[recipe.model.template]
    files = find_tokenizer_files(recipe.model.tokenizer_source, revision=recipe.model.revision)
    return PrepareJob(
        data=recipe.data,
        template=template,
        tokenizer=load_tokenizer_spec(files, template),
        max_length_tokens=recipe.model.max_length_tokens,
        seed=recipe.seed if recipe.data.validation_seed is None else recipe.data.validation_seed,
        inference_condition=recipe.model.inference_condition,
    )


def prepare_recipe(
    recipe: Recipe, *, num_workers: int | None, progress: Callable[[int], None]
) -> tuple[Manifest, bool]:
    """Prepare the dataset of a recipe; returns its manifest and whether it already existed."""
    return prepare(prepare_job(recipe), num_workers=num_workers, progress=progress)


def check_prepared(recipe: Recipe, *, with_sources: bool = True) -> Manifest:
    """The manifest of the recipe's prepared dataset. Raises UserError if there is none or it is not this recipe's.

    with_sources: also compare the raw sources. That reads all of them, which takes a second per GB; of the ranks of a
    run only one does it (`check_sources`). Sources that are not on this machine are not compared.
    """
    prepared_dir = recipe.data.prepared_dir
    manifest = Manifest.load(Path(prepared_dir))
    if manifest is None:
        raise UserError(
            "data.prepared_dir", f"{prepared_dir} holds no prepared dataset", "run `ochat prepare RECIPE` first"
        )
    now = input_fingerprints(prepare_job(recipe), with_sources=False)
    _require_same(recipe, manifest, now | (_sources_now(recipe) if with_sources else {}))
    return manifest


def check_sources(recipe: Recipe, manifest: Manifest) -> None:
    """Raise UserError if the raw sources have changed since the dataset was prepared from them.

    Reads all of them. Sources that are not on this machine are not compared.
    """
    _require_same(recipe, manifest, _sources_now(recipe))


def _sources_now(recipe: Recipe) -> dict[str, str]:
    try:
        return {"sources": sources_fingerprint(recipe.data)}
    except UserError:  # they need not be where the model is trained
        return {}


def _require_same(recipe: Recipe, manifest: Manifest, now: dict[str, str]) -> None:
    changed = [name for name, value in now.items() if manifest.inputs.get(name) != value]
    if changed:
        raise UserError(
            "data.prepared_dir",
            f"{recipe.data.prepared_dir} was prepared from other {', '.join(changed)} than this recipe names",
            "run `ochat prepare RECIPE` again",
        )


def prepare_report(manifest: Manifest) -> dict[str, object]:
    """The document of `ochat prepare --json`."""
    return {
        "conversations": asdict(manifest.ledger),
        "tokens": sum(split.tokens for split in manifest.splits.values()),
        "splits": {name: asdict(counts) for name, counts in manifest.splits.items()},
        "classes": [vars(row) for row in manifest.classes],
        "template": manifest.template,
        "inference_condition": manifest.inference_condition,
        "fingerprint": manifest.fingerprint,
    }
