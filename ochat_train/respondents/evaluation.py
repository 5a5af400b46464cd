"""`ochat eval`: opens who is asked, asks what is not answered yet, and writes the results."""

from __future__ import annotations

import asyncio
import platform
import re
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ochat_train import __version__
from ochat_train.inference.choose import EngineOptions, make_engine
from ochat_train.inference.engine import Engine, ended
from ochat_train.inference.served_model import ServedModel, export_folder, load_served_model
from ochat_train.report.eval_page import eval_page
from ochat_train.respondents import export, url
from ochat_train.respondents.additions import OUR_SERVER, Additions, Say, with_additions
from ochat_train.respondents.announce import what_does_not_fit, what_is_asked
from ochat_train.respondents.earlier import keep_earlier
from ochat_train.respondents.progress import AskingProgress
from ochat_train.suites.ask import Failures, Patience, ask_all
from ochat_train.suites.plan import Asker, Plan, plan_evaluation, results_of
from ochat_train.suites.results import EvalResults, EvalSettings, ModelFacts
from ochat_train.suites.results_file import write_results
from ochat_train.suites.store import AnswerStore, FolderLock
from ochat_train.suites.suite import Suite, SuiteOptions
from ochat_train.suites.table import make_suites
from ochat_train.system.addresses import is_url
from ochat_train.system.durable import replace_text
from ochat_train.system.exits import StoppedBySignalError

PAGE_FILE = "results.html"


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What `ochat eval` was asked for.

    target: a folder or an address. suites, data, condition: as typed. model: a server's name of the model, None for the
    only one. base, context_tokens: as in `load_served_model`. out: None for a folder called after the model.
    additions: to the results of the suites.
    """

    target: str
    suites: tuple[str, ...]
    data: tuple[str, ...]
    condition: str = "all"
    any_condition: bool = False
    settings: EvalSettings = field(default_factory=EvalSettings)
    suite_options: SuiteOptions = field(default_factory=SuiteOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    base: str | None = None
    context_tokens: int | None = None
    model: str | None = None
    out: Path | None = None
    num_parallel: int = 64
    patience: Patience = field(default_factory=Patience)
    additions: Additions = field(default_factory=Additions)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What came out, and the folder of results.json."""

    results: EvalResults
    folder: Path


def run_eval(options: EvalOptions, *, say: Say) -> Evaluated:
    """Ask, score and write results.json and results.html.

    say: takes lines for the person who waits. Raises UserError, and StoppedBySignalError after Ctrl-C or SIGTERM:
    finished answers are kept.
    """
    suites = make_suites(options.suites, options.data, options.suite_options)
    evaluated = asyncio.run(_run(options, suites, say))
    results = with_additions(
        evaluated.results,
        suites,
        options.additions,
        export=None if is_url(options.target) else export_folder(Path(options.target)),
        folder=evaluated.folder,
        say=say,
    )
    if (kept := keep_earlier(evaluated.folder, results, page=PAGE_FILE)) is not None:
        say(kept)
    write_results(evaluated.folder, results)
    replace_text(evaluated.folder / PAGE_FILE, eval_page(results))
    return replace(evaluated, results=results)


async def _run(options: EvalOptions, suites: list[Suite], say: Say) -> Evaluated:
    opening = _open_url(options) if is_url(options.target) else _open_export(options, say)
    async with opening as opened:
        folder = options.out or Path("eval") / _folder_name(opened.asker.model)
        lock = FolderLock(folder)
        try:
            suites = _with_judge_in(folder, options) or suites
            for line in what_is_asked(suites, opened.conditions, options.settings, folder):
                say(line)
            store = AnswerStore(folder)
            plan, failures = await _plan_and_ask(suites, store, opened, options, say)
            results = await asyncio.to_thread(results_of, plan, store, failures)
        finally:
            lock.close()
    return Evaluated(results=results, folder=folder)


def _with_judge_in(folder: Path, options: EvalOptions) -> list[Suite]:
    """The suites with a judge that keeps its judgements in a folder; none without a judge."""
    if options.suite_options.judge is None:
        return []
    judge = replace(options.suite_options.judge, folder=folder)
    return make_suites(options.suites, options.data, replace(options.suite_options, judge=judge))


def _versions() -> dict[str, str]:
    """Versions of what asks and scores; the engine names its own."""
    return {"ochat-train": __version__, "python": platform.python_version()}


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """start: loads the model; called only where something is left to ask."""

    asker: Asker
    conditions: tuple[str | None, ...]
    start: Callable[[], Coroutine[Any, Any, None]]


async def _plan_and_ask(
    suites: list[Suite], store: AnswerStore, opened: _Opened, options: EvalOptions, say: Say
) -> tuple[Plan, Failures]:
    """Make the prompts, and ask. Where no answer is kept, the model starts while the prompts are made."""
    starting = asyncio.create_task(opened.start()) if suites and store.is_empty else None
    try:
        plan = await plan_evaluation(suites, opened.conditions, opened.asker, options.settings, starting=starting)
        for line in what_does_not_fit(plan):
            say(line)
        num_done = plan.num_answered(store)
        if num_done:
            say(f"{num_done:,} of {len(plan.requests):,} answers were kept from an earlier start")
        if num_done == len(plan.requests):
            return plan, {}
        await (starting or opened.start())
    finally:
        if starting is not None:
            await ended([starting])
    return plan, await _ask(plan, store, num_done, options)


async def _ask(plan: Plan, store: AnswerStore, num_done: int, options: EvalOptions) -> Failures:
    progress = AskingProgress(len(plan.requests), num_done)
    asking = asyncio.ensure_future(
        ask_all(
            plan.asker.respondent,
            plan.requests,
            store,
            num_parallel=options.num_parallel,
            patience=options.patience,
            progress=progress,
        )
    )
    stopped = _cancel_on_signals(asking)
    try:
        return await asking
    except asyncio.CancelledError:
        if not stopped:
            raise
        kept = f"{plan.num_answered(store):,} of {len(plan.requests):,} answers are kept"
        raise StoppedBySignalError(f"stopped; {kept}; start the same command again to continue") from None
    finally:
        progress.close()
        _end_of_signals()


def _cancel_on_signals(task: asyncio.Future[Failures]) -> list[int]:
    """Cancel a task at Ctrl-C and SIGTERM. Returns a list that the signal is put into."""
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop, number)
        except (RuntimeError, ValueError, NotImplementedError):  # not in the main thread
            return received
    return received


def _end_of_signals() -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)


@asynccontextmanager
async def _open_export(options: EvalOptions, say: Say) -> AsyncIterator[_Opened]:
    served = load_served_model(Path(options.target), base=options.base, context_tokens=options.context_tokens)
    conditions = export.chosen_conditions(served, options.condition, any_condition=options.any_condition)
    engine = make_engine(served, options.engine, say=say)
    try:
        yield _Opened(
            asker=_export_asker(served, engine, say),
            conditions=conditions,
            start=engine.start,
        )
    finally:
        await engine.close()


def _export_asker(served: ServedModel, engine: Engine, say: Say) -> Asker:
    return Asker(
        respondent=export.ExportRespondent(served, engine, say=say),
        model=export.model_facts(served),
        engine=engine.name,
        engine_versions=engine.versions,
        versions=_versions(),
    )


@asynccontextmanager
async def _open_url(options: EvalOptions) -> AsyncIterator[_Opened]:
    respondent = await url.open_url(
        options.target,
        model=options.model,
        num_parallel=options.num_parallel,
        timeout_seconds=options.patience.timeout_seconds,
    )
    facts = respondent.facts
    try:
        yield _Opened(
            asker=Asker(
                respondent=respondent,
                model=ModelFacts(name=facts.model, kind="url", url=facts.url),
                engine=OUR_SERVER if facts.is_ours else "server",
                engine_versions={},
                versions=_versions(),
            ),
            conditions=url.url_conditions(facts, options.condition),
            start=_nothing_to_start,
        )
    finally:
        await respondent.close()


async def _nothing_to_start() -> None:
    """A server runs already."""


def _folder_name(model: ModelFacts) -> str:
    """A name for the folder of results: the model's, and the beginning of its hash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip(".-") or "model"
    return f"{name}-{model.sha256[:8]}" if model.sha256 else name
