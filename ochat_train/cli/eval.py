"""`ochat eval`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from ochat_train.cli.arguments import add_json, number_from_zero, positive, regular_expression, share, whole_number
from ochat_train.cli.engine_arguments import add_engine_arguments, engine_options, refuse_engine_options
from ochat_train.cli.verb import Group, Verb
from ochat_train.system.addresses import is_url
from ochat_train.system.exits import UnansweredError
from ochat_train.system.messages import print_message, print_result

if TYPE_CHECKING:
    from ochat_train.respondents.evaluation import EvalOptions
    from ochat_train.suites.compare import Comparison
    from ochat_train.suites.judge import Judge
    from ochat_train.suites.lm_eval import HarnessOptions
    from ochat_train.suites.results import EvalResults


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="EXPORT|RUN|URL",
        help="exported folder, a run with an export, or the address of a chat server",
    )
    parser.add_argument(
        "--suite",
        required=True,
        metavar="A,B",
        help="suites to ask, with commas between; `help` lists them; lm-eval:TASK,... at the end names tasks of "
        "lm-evaluation-harness",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[SUITE=]PATH",
        help="file, folder or tar archive with questions, for all suites or for one; may be repeated",
    )
    parser.add_argument(
        "--condition",
        default="all",
        metavar="all|default|A,B",
        help="conditions or classes to answer under (default all of the export); `default` is the export's own",
    )
    parser.add_argument("--any-condition", action="store_true", help="allow conditions that were not trained")
    _add_asking(parser)
    _add_judge(parser)
    _add_harness(parser)
    parser.add_argument(
        "--prepared",
        type=Path,
        metavar="FOLDER",
        help="prepared dataset of the training: which questions appear in it; default: that of the run, if it is there",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of answers and results; default: eval/NAME-HASH"
    )
    parser.add_argument(
        "--against",
        metavar="RESULTS|EXPORT|URL",
        help="compare with other results on the same questions, or with another model, which is asked as well",
    )
    parser.add_argument("--tasks", action="store_true", help="print a row for each task")
    parser.add_argument(
        "--allow-failed",
        type=whole_number,
        default=0,
        metavar="N",
        help="exit code 0 with up to N questions without an answer",
    )
    add_json(parser, printed="the results as one JSON document, without the single questions")
    add_engine_arguments(parser)


def _add_asking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("asking")
    group.add_argument(
        "--limit", type=positive, metavar="N", help="at most N questions of each suite: a random sample of each task"
    )
    group.add_argument(
        "--few-shot", type=whole_number, default=0, metavar="K", help="worked examples before each question"
    )
    group.add_argument("--seed", type=whole_number, default=0, help="of samples, examples and intervals (default 0)")
    group.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest answer; default: chosen by the suite"
    )
    group.add_argument("--temperature", type=number_from_zero, default=0.0, help="0 (the default) is greedy")
    group.add_argument("--top-p", type=share, default=1.0, help="of sampling (default 1)")
    group.add_argument("--parallel", type=positive, default=64, metavar="N", help="questions at once (default 64)")
    group.add_argument("--tries", type=positive, default=6, metavar="N", help="of a question without an answer")
    group.add_argument(
        "--answer-pattern",
        type=regular_expression,
        metavar="REGEX",
        help="suite held-out: compare the last match, as validation.answer_pattern",
    )
    group.add_argument("--model", metavar="NAME", help="a server's name of the model; default: the only one it has")
    group.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="suite humaneval: run the code that the model wrote, with limits, in a separate process",
    )


def _add_judge(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("judge", "of the suite mt-bench; its key comes from OCHAT_JUDGE_KEY")
    group.add_argument("--judge", metavar="URL", help="suite mt-bench: chat server that rates the answers")
    group.add_argument("--judge-model", metavar="NAME", help="the judge's name of the model that rates")
    group.add_argument("--judge-parallel", type=positive, default=8, metavar="N", help="ratings at once (default 8)")


def _add_harness(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("lm-evaluation-harness", "for --suite lm-eval:TASK")
    group.add_argument("--lm-eval-python", metavar="PYTHON", help="a Python that has it; default: the one of `ochat`")
    group.add_argument("--lm-eval-include", type=Path, metavar="FOLDER", help="folder with your own tasks' YAML files")


def _run(options: argparse.Namespace) -> None:
    from ochat_train.suites.table import suites_text

    if options.suite == "help":
        print_result(suites_text())
        return
    from ochat_train.respondents.evaluation import run_eval
    from ochat_train.suites.text import results_text

    against = _results_against(options)
    _refuse_unused(options, asks_against=against is None and options.against is not None)
    evaluated = run_eval(_eval_options(options, options.target, options.out), say=print_message)
    results = evaluated.results
    comparison = None if options.against is None else _comparison(options, against, results, evaluated.folder)
    if options.json:
        from ochat_train.suites.results_file import summary_of

        document = {**summary_of(results), "folder": str(evaluated.folder)}
        if comparison is not None:
            document["comparison"] = comparison.to_json()
        print_result(json.dumps(document))
    else:
        print_result(results_text(results, tasks=options.tasks))
        if comparison is not None:
            from ochat_train.suites.compare import comparison_text

            print_result("\n" + comparison_text(comparison, {suite.name: suite.highest for suite in results.suites}))
        print_result(f"\n{evaluated.folder / 'results.json'}")
    _require_answers(results, options)


def _refuse_unused(options: argparse.Namespace, *, asks_against: bool) -> None:
    """Raise UserError for options that nothing takes: of an engine where servers are asked, of a server where exports
    are. asks_against: whether what `--against` names is asked as well.
    """
    asked = [is_url(target) for target in (options.target, *[options.against] * asks_against)]
    if all(asked):
        refuse_engine_options(options)
    elif options.model is not None and not any(asked):
        raise UserError("--model", "is for a server", "leave it out; an export has one model")


def _require_answers(results: EvalResults, options: argparse.Namespace) -> None:
    """Raises UnansweredError where too few questions have an answer for a success."""
    from ochat_train.suites.text import shown_condition

    if results.without_score:
        row = results.without_score[0]
        reason = f"{row.num_failed:,} failed, {row.num_too_long:,} are longer than the context"
        remedy = "; a longer context may help: --max-model-len" if row.num_too_long else ""
        raise UnansweredError(
            f"{row.suite} has no score under {shown_condition(row.condition)}: of {row.num_questions:,} questions "
            f"{reason}{remedy}"
        )
    if results.num_failed > options.allow_failed:
        reasons = Counter(question.reason for question in results.questions if question.status == "failed")
        most = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(3))
        raise UnansweredError(
            f"{results.num_failed:,} questions have no answer, or no rating of it, and are not in the scores ({most}); "
            "start the same command again to ask them again, or allow them with --allow-failed"
        )


def _eval_options(options: argparse.Namespace, target: str, out: Path | None) -> EvalOptions:
    from ochat_train.respondents.additions import Additions
    from ochat_train.respondents.evaluation import EvalOptions
    from ochat_train.suites.ask import Patience
    from ochat_train.suites.lm_eval import PREFIX, task_names
    from ochat_train.suites.results import EvalSettings
    from ochat_train.suites.suite import SuiteOptions
    from ochat_train.system.addresses import SERVER_KEY

    names, prefix, tasks = options.suite.partition(PREFIX)
    return EvalOptions(
        target=target,
        suites=tuple(name for name in names.split(",") if name),
        data=tuple(options.data),
        condition=options.condition,
        any_condition=options.any_condition,
        settings=EvalSettings(
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            max_new_tokens=options.max_new_tokens,
            few_shot=options.few_shot,
            limit=options.limit,
        ),
        suite_options=SuiteOptions(
            allow_code_execution=options.allow_code_execution,
            answer_pattern=options.answer_pattern,
            judge=_judge(options),
        ),
        engine=engine_options(options),
        base=options.base,
        context_tokens=options.max_model_len,
        model=options.model,
        out=out,
        num_parallel=options.parallel,
        patience=Patience(num_tries=options.tries),
        additions=Additions(
            prepared=options.prepared,
            tasks=tuple(task_names(tasks)) if prefix else (),
            harness=_harness(options),
            key=os.environ.get(SERVER_KEY),
        ),
    )


def _harness(options: argparse.Namespace) -> HarnessOptions:
    from ochat_train.suites.lm_eval import HarnessOptions

    return HarnessOptions(
        python=options.lm_eval_python or sys.executable,
        include=options.lm_eval_include,
        few_shot=options.few_shot or None,
        max_new_tokens=options.max_new_tokens,
        limit=options.limit,
        num_parallel=options.parallel,
        seed=options.seed,
    )


def _judge(options: argparse.Namespace) -> Judge | None:
    from ochat_train.suites.ask import Patience
    from ochat_train.suites.judge import KEY_VARIABLE, Judge
    from ochat_train.system.addresses import server_address

    if options.judge is None and options.judge_model is None:
        return None
    if options.judge is None or options.judge_model is None:
        missing = "--judge" if options.judge is None else "--judge-model"
        raise UserError(missing, "is missing", "give both: --judge URL --judge-model NAME")
    server_address(options.judge, option="--judge", key_variable=KEY_VARIABLE, example="http://HOST:PORT/v1")
    return Judge(
        url=options.judge,
        model=options.judge_model,
        folder=Path("eval"),  # until the folder of results is known
        key=os.environ.get(KEY_VARIABLE),
        num_parallel=options.judge_parallel,
        patience=Patience(num_tries=options.tries),
    )


def _results_against(options: argparse.Namespace) -> EvalResults | None:
    """The results that `--against` names, None where it names none, or a model. Raises UserError for what is neither:
    before anything is asked.
    """
    from ochat_train.inference.served_model import export_folder
    from ochat_train.suites.results_file import RESULTS_FILE, read_results

    if options.against is None or is_url(options.against):
        return None
    other = Path(options.against)
    if other.is_file() or (other / RESULTS_FILE).is_file():
        return read_results(other)
    try:
        export_folder(other)
    except UserError as error:
        problem = f"{other} holds neither results of `ochat eval` nor a model"
        raise UserError("--against", problem, error.remedy) from None
    return None


def _comparison(
    options: argparse.Namespace, against: EvalResults | None, results: EvalResults, folder: Path
) -> Comparison:
    """With results that are there, or with those of another model, which is asked now."""
    from ochat_train.respondents.evaluation import run_eval
    from ochat_train.suites.compare import COMPARISON_FILE, compare
    from ochat_train.system.durable import replace_text

    if against is None:
        against = run_eval(_eval_options(options, options.against, folder / "against"), say=print_message).results
    comparison = compare(against, results)
    replace_text(folder / COMPARISON_FILE, json.dumps(comparison.to_json(), indent=1, ensure_ascii=False) + "\n")
    return comparison


EVAL = Verb(
    name="eval",
    group=Group.USE,
    summary="Ask an export, or a chat server, the questions of benchmarks under its conditions, and score the answers.",
    example="ochat eval runs/quickstart/export --suite held-out --data data/quickstart/held_out.jsonl",
    add_arguments=_add_arguments,
    run=_run,
)
