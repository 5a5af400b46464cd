"""Results that are already in a folder: kept under another name where the new ones do not have all of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from data_pipeline.errors import UserError
from ochat_train.suites.results import EvalResults
from ochat_train.suites.results_file import RESULTS_FILE, read_results
from ochat_train.suites.text import shown_condition
from ochat_train.system.durable import rename


def keep_earlier(folder: Path, results: EvalResults, *, page: str) -> str | None:
    """Rename results.json of a folder, and its page, unless new results have all that it has.

    Returns a line that says so, None where nothing was renamed. A damaged file is not kept: the answers are.
    """
    path = folder / RESULTS_FILE
    try:
        earlier = read_results(path) if path.is_file() else None
    except UserError:
        return None
    missing = [] if earlier is None else list(_only_in(earlier, results))
    if earlier is None or not missing:
        return None
    stem = _free_stem(folder, earlier)
    for name in (RESULTS_FILE, page):
        if (folder / name).is_file():
            rename(folder / name, folder / f"{stem}{Path(name).suffix}")
    return f"{path} had other results ({', '.join(missing)}); they are kept in {stem}.json"


def _only_in(earlier: EvalResults, results: EvalResults) -> Iterator[str]:
    """What earlier results have and others have not, for people."""
    if earlier.model.identity != results.model.identity:
        yield "another model"
    if _without_limit(earlier) != _without_limit(results):
        yield "other settings"
    data = {suite.name: suite.files for suite in results.suites}
    for suite in earlier.suites:
        if suite.name not in data:
            yield suite.name
        elif suite.files != data[suite.name]:
            yield f"other data of {suite.name}"
    tasks = {score.task for score in results.harness}
    yield from dict.fromkeys(score.task for score in earlier.harness if score.task not in tasks)
    yield from (shown_condition(each) for each in earlier.conditions if each not in results.conditions)
    limits = earlier.settings.limit, results.settings.limit
    if limits[1] is not None and (limits[0] is None or limits[0] > limits[1]):
        yield "more questions"


def _without_limit(results: EvalResults) -> tuple[object, ...]:
    settings = results.settings
    return (settings.temperature, settings.top_p, settings.seed, settings.max_new_tokens, settings.few_shot)


def _free_stem(folder: Path, earlier: EvalResults) -> str:
    """`results-` and the time of the last answer, with a number where that is taken."""
    stem = f"results-{earlier.created[:19].replace(':', '').replace('-', '')}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(name for name in names if not (folder / f"{name}.json").exists())
