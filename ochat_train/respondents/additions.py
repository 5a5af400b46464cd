"""What `ochat eval` adds to the results of suites: questions in the training data, tasks of another harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import Manifest
from ochat_train.adapter.folder import is_adapter
from ochat_train.runs.folder import RECIPE_FILE, read_run_folder
from ochat_train.suites.lm_eval import PREFIX, HarnessModel, HarnessOptions, run_harness
from ochat_train.suites.results import EvalResults
from ochat_train.suites.scores import seen_scores
from ochat_train.suites.suite import Suite

Say = Callable[[str], None]
OUR_SERVER = "ochat serve"  # the name of its engine in results: it takes `condition` as a field


@dataclass(frozen=True, kw_only=True)
class Additions:
    """prepared: the dataset to look for questions in; None for that of the run that the target is of, if it is there.

    tasks: of lm-evaluation-harness. harness: how it is run. key: of the server, None for none.
    """

    prepared: Path | None = None
    tasks: tuple[str, ...] = ()
    harness: HarnessOptions = field(default_factory=HarnessOptions)
    key: str | None = None


def with_additions(
    results: EvalResults, suites: Sequence[Suite], additions: Additions, *, export: Path | None, folder: Path, say: Say
) -> EvalResults:
    """The results with what was added. export: the folder that was asked, None for a server. folder: of the results."""
    prepared = additions.prepared or (None if export is None else prepared_of(export))
    if suites and prepared is not None:
        say(f"looking for the questions in {prepared}")
        seen = seen_scores(suites, results.questions, prepared, seed=results.settings.seed)
        results = replace(results, contamination=tuple(seen))
    if additions.tasks:
        model = _harness_model(results, additions, export)
        for condition in results.conditions:
            say(f"lm-evaluation-harness: {', '.join(additions.tasks)} under {condition!r}")
        harness, versions = run_harness(additions.tasks, results.conditions, model, additions.harness, folder=folder)
        results = replace(results, harness=tuple(harness), harness_versions=versions)
    return results


def prepared_of(export: Path) -> Path | None:
    """The dataset that an export inside a run folder was trained on, if it is still the same."""
    for folder in (export, export.resolve().parent):
        if not (folder / RECIPE_FILE).is_file():
            continue
        try:
            run = read_run_folder(folder)
            prepared = Path(run.recipe.data.prepared_dir)
            manifest = Manifest.load(prepared)
        except UserError:
            return None
        return prepared if manifest is not None and manifest.fingerprint == run.prepared.fingerprint else None
    return None


def _harness_model(results: EvalResults, additions: Additions, export: Path | None) -> HarnessModel:
    if export is None:
        assert results.model.url is not None, "a server has an address"
        return HarnessModel(
            url=results.model.url,
            name=results.model.name,
            sends_condition=results.engine == OUR_SERVER,
            key=additions.key,
        )
    if is_adapter(export):
        problem = f"{export} is an adapter, which lm-evaluation-harness cannot be given with a condition"
        raise UserError(f"--suite {PREFIX}...", problem, "export the run merged, or name a server")
    return HarnessModel(export=export, sha256=results.model.sha256)
