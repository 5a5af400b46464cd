"""The recipe's side of preparation: what the data pipeline is asked to do, and whether it has been done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.prepare.fingerprints import input_fingerprints
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import load_tokenizer_spec
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
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
    """Prepare the dataset of a recipe; returns its manifest and whether it was there already."""
    return prepare(prepare_job(recipe), num_workers=num_workers, progress=progress)


def check_prepared(recipe: Recipe) -> Manifest:
    """The manifest of the recipe's prepared dataset. Raises UserError if there is none or it is not this recipe's.

    Raw sources that are not on this machine cannot be compared; then everything else is.
    """
    prepared_dir = recipe.data.prepared_dir
    manifest = Manifest.load(Path(prepared_dir))
    if manifest is None:
        raise UserError(
            "data.prepared_dir", f"{prepared_dir} holds no prepared dataset", "run `ochat prepare RECIPE` first"
        )
    job = prepare_job(recipe)
    try:
        now = input_fingerprints(job)
    except UserError:
        now = input_fingerprints(job, with_sources=False)
    changed = [name for name, value in now.items() if manifest.inputs.get(name) != value]
    if changed:
        raise UserError(
            "data.prepared_dir",
            f"{prepared_dir} was prepared from other {', '.join(changed)} than this recipe names",
            "run `ochat prepare RECIPE` again",
        )
    return manifest


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
