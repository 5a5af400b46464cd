"""What a recipe asks of the data pipeline, and whether a prepared dataset is the one that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import is_out_of_room
from data_pipeline.prepare.fingerprints import input_fingerprints, sources_fingerprint
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prepared.dataset import Manifest
from data_pipeline.prepared.integrity import check_sizes
from ochat_train.recipe.prompts import load_prompts
from ochat_train.recipe.recipe import Recipe


def prepare_job(recipe: Recipe) -> PrepareJob:
    """What `data_pipeline.prepare.prepare` needs to know of a recipe."""
    prompts = load_prompts(recipe.model)
    return PrepareJob(
        data=recipe.data,
        template=prompts.template,
        tokenizer=prompts.tokenizer,
        max_length_tokens=recipe.model.max_length_tokens,
        seed=recipe.seed if recipe.data.validation_seed is None else recipe.data.validation_seed,
        inference_condition=recipe.model.inference_condition,
    )


def prepare_recipe(
    recipe: Recipe,
    *,
    num_workers: int | None,
    progress: Callable[[int], None],
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Manifest, bool]:
    """Prepare the dataset of a recipe; returns its manifest and whether it already existed. say: as in `prepare`."""
    try:
        return prepare(prepare_job(recipe), num_workers=num_workers, progress=progress, say=say)
    except OSError as error:
        if is_out_of_room(error) and error.filename is None:  # Arrow's does not say where
            error.filename = recipe.data.prepared_dir
        raise


def check_prepared(recipe: Recipe, *, with_sources: bool = True) -> Manifest:
    """The manifest of the recipe's prepared dataset. Raises UserError if there is none or it is not this recipe's, and
    for files that are missing or have another size; their content is compared by `data_pipeline.prepared.integrity`.

    with_sources: also compare the raw sources (`check_sources`).
    """
    prepared_dir = recipe.data.prepared_dir
    manifest = Manifest.load(Path(prepared_dir))
    if manifest is None:
        raise UserError(
            "data.prepared_dir", f"{prepared_dir} holds no prepared dataset", "run `ochat prepare RECIPE` first"
        )
    now = input_fingerprints(prepare_job(recipe), with_sources=False)
    _require_same(recipe, manifest, now | (_sources_now(recipe, _ignore) if with_sources else {}))
    check_sizes(Path(prepared_dir), manifest)
    return manifest


def _ignore(num_bytes: int) -> None:
    pass


def check_sources(recipe: Recipe, manifest: Manifest, *, progress: Callable[[int], None] = _ignore) -> None:
    """Raise UserError if the raw sources have changed since the dataset was prepared from them.

    Reads those that were touched since they were last read on this host, a second per GB. progress: called with the
    bytes read since the last call. Sources that are not on this machine are not compared.
    """
    _require_same(recipe, manifest, _sources_now(recipe, progress))


def _sources_now(recipe: Recipe, progress: Callable[[int], None]) -> dict[str, str]:
    try:
        return {"sources": sources_fingerprint(recipe.data, progress=progress)}
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
