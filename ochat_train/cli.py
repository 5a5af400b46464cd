"""The `ochat` command: reads arguments, calls one function a verb, prints. No work is done here."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from ochat_train import __version__, exits

Verb = Callable[..., argparse.ArgumentParser]  # adds a verb: its name, what runs it, what it does, an example


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 only on success (exits.py has the codes). Problems a user can mend go to stderr as one
    message.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        if options.debug:
            raise
        every_rank_finds_it = not isinstance(error, exits.OneRankError)
        if int(os.environ.get("RANK", "0")) == 0 or not every_rank_finds_it:
            print(f"ochat {options.verb}: {error}", file=sys.stderr)
        return exits.USER_ERROR
    except exits.StoppedBySignalError as stop:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"ochat {options.verb}: {stop}", file=sys.stderr)
        return exits.STOPPED
    except exits.LostRanksError as error:
        print(f"ochat {options.verb}: {error}", file=sys.stderr)
        return exits.LOST_RANKS
    except exits.NotPushedError as error:
        print(f"ochat {options.verb}: {error}", file=sys.stderr)
        return exits.NOT_PUSHED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each verb has a parser of its own."""
    parser = argparse.ArgumentParser(
        prog="ochat", description="Train chat models on conversations of mixed quality (C-RLFT)."
    )
    parser.add_argument("--version", action="version", version=f"ochat-train {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], None], text: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show a traceback with an error")
        return sub

    def recipe_verb(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verb(name, run, text, example)
        sub.add_argument("recipe", type=Path, help="recipe file (YAML)")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            dest="overrides",
            help="change a value of the recipe; may be given several times",
        )
        return sub

    _add_init(verb)
    _add_prepare(recipe_verb)
    _add_inspect(verb)
    _add_plan(recipe_verb)
    _add_check(recipe_verb)
    _add_train(recipe_verb)
    _add_ablate(recipe_verb)
    _add_report(verb)
    _add_export(verb)
    _add_push(verb)
    _add_generate(verb)
    _add_schema(verb)
    return parser


def _add_init(verb: Verb) -> None:
    init = verb(
        "init",
        _init,
        "Write a commented recipe for a base and data files, after a look at the files. On a terminal it asks.",
        "ochat init data/gpt4.jsonl data/gpt35.jsonl --base mistralai/Mistral-7B-v0.1 --out recipes/mine.yaml "
        '--class "gpt4=GPT4 Correct:1.0" --class gpt35=GPT3:0.0',
    )
    init.add_argument(
        "files", nargs="+", metavar="FILE", help="a .jsonl, .json or .parquet file, a folder or a pattern"
    )
    init.add_argument("--base", metavar="HUB_ID|FOLDER", help="base model")
    init.add_argument("--out", type=Path, metavar="RECIPE", help="recipe to write")
    init.add_argument("--name", help="name of the run; default: the recipe's, without suffix")
    init.add_argument("--template", help="prompt format, for example openchat_3.5; default: by the base")
    init.add_argument(
        "--class",
        action="append",
        default=[],
        dest="classes",
        metavar="NAME=CONDITION:REWARD",
        help="condition and reward of a class; a file's class has the file's name, unless a field of its rows names "
        "classes",
    )
    init.add_argument(
        "--class-of", action="append", default=[], metavar="FILE=NAME", help="class of all rows of a file"
    )
    init.add_argument(
        "--class-field", action="append", default=[], metavar="FILE=FIELD", help="field that names each row's class"
    )
    init.add_argument(
        "--format", action="append", default=[], metavar="FILE=FORMAT", help="format of a file; default: found"
    )
    init.add_argument(
        "--max-length", type=_positive, metavar="TOKENS", help="longest conversation; default: by the data"
    )
    init.add_argument("--epochs", type=_positive, help="default: by the amount of data")
    init.add_argument("--gpus", type=_positive, help="GPUs of a run, so that a step has packs for all (default 1)")
    init.add_argument(
        "--bad-rows", choices=("error", "drop"), help="what `ochat prepare` does with rows that it cannot read"
    )
    init.add_argument("--sample-rows", type=_positive, metavar="N", help="rows of a file to look at (default 20000)")
    init.add_argument("--overwrite", action="store_true", help="replace the recipe if it is there")


def _add_prepare(recipe_verb: Verb) -> None:
    prepare = recipe_verb(
        "prepare", _prepare, "Turn raw conversations into a prepared dataset.", "ochat prepare recipes/quickstart.yaml"
    )
    prepare.add_argument("--workers", type=_positive, help="processes; default: one per core")
    prepare.add_argument("--json", action="store_true", help="print one JSON document")


def _add_inspect(verb: Verb) -> None:
    inspect = verb(
        "inspect",
        _inspect,
        "Show prepared rows, the class table and lengths.",
        "ochat inspect data/quickstart/prepared --split train --rows 0:3 --class expert",
    )
    inspect.add_argument("dir", type=Path, help="prepared dataset (`data.prepared_dir` of the recipe)")
    inspect.add_argument("--split", choices=("train", "validation", "conditions"), default="train")
    inspect.add_argument(
        "--rows",
        type=_row_range,
        metavar="A:B",
        help="rows A to B-1, of those that match the options below (default 0:3; 0:20 with --html; 0:0 shows no row)",
    )
    inspect.add_argument("--class", dest="class_name", metavar="NAME", help="only rows of this class")
    inspect.add_argument("--id", dest="conversation_id", metavar="ID", help="only the conversation with this id")
    inspect.add_argument("--find", metavar="TEXT", help="only rows that hold this text")
    inspect.add_argument("--tokens", action="store_true", help="show every token with its id and weight")
    inspect.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto (the default): on a terminal, unless NO_COLOR is set",
    )
    form = inspect.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON line per row")
    form.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page instead, readable without network")


def _add_plan(recipe_verb: Verb) -> None:
    text = "Say what a recipe would do, without training."
    plan = recipe_verb("plan", _plan, text, "ochat plan recipes/openchat_3_5.yaml --gpus 8 --gpu h100")
    plan.add_argument("--gpus", type=_positive, default=1, help="number of GPUs (default 1)")
    plan.add_argument(
        "--gpu",
        default="h100",
        metavar="h100|h200|a100|TFLOPS",
        help="kind of GPU, or its dense bfloat16 peak in TFLOP/s (default h100)",
    )
    plan.add_argument(
        "--gpu-memory", type=_positive_number, metavar="GIB", help="memory of a GPU in GiB (default: the kind's)"
    )
    plan.add_argument(
        "--mfu",
        type=_share,
        metavar="SHARE",
        help="share of the peak to reckon the time with, counted as `mfu` in metrics.jsonl, for example 0.5; default: "
        "measured",
    )
    plan.add_argument("--json", action="store_true", help="print one JSON document")


def _add_check(recipe_verb: Verb) -> None:
    text = "Say everything about a recipe that can be known before a GPU is held: ok, warning or problem."
    check = recipe_verb("check", _check, text, "ochat check recipes/quickstart.yaml --gpus 8")
    check.add_argument("--gpus", type=_positive, help="number of GPUs; default: those of this machine, or 1")
    check.add_argument(
        "--gpu-memory",
        type=_positive_number,
        metavar="GIB",
        help="memory of a GPU in GiB; default: as of the GPUs here, or an H100's",
    )
    check.add_argument("--json", action="store_true", help="print one JSON document")


def _add_train(recipe_verb: Verb) -> None:
    train = recipe_verb(
        "train",
        _train,
        "Train on a prepared dataset, under `deepspeed`, `torchrun` or alone.",
        "deepspeed --num_gpus 8 --module ochat_train recipes/openchat_3_5.yaml",
    )
    train.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="go on from the newest intact checkpoint (auto, the default), start anew, or go on from a checkpoint "
        "folder",
    )
    train.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on from a checkpoint although data or settings have changed since it was written",
    )
    train.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # given by the deepspeed launcher; LOCAL_RANK counts


def _add_ablate(recipe_verb: Verb) -> None:
    text = "Train and score the arms of C-RLFT's ablation: is conditioning, is weighting, worth it on these data?"
    ablate = recipe_verb(
        "ablate", _ablate, text, "ochat ablate recipes/quickstart.yaml --seeds 3 --out runs/quickstart-ablation"
    )
    ablate.add_argument(
        "--out", type=Path, required=True, help="folder of the ablation; started again, it goes on there"
    )
    ablate.add_argument(
        "--seeds", type=_positive, default=1, help="trainings of each arm (default 1; a spread needs 2)"
    )
    ablate.add_argument("--arms", default="", metavar="A,B", help="only these arms")
    ablate.add_argument("--gpus", type=_positive, default=1, help="GPUs (or CPU processes) of one training (default 1)")
    ablate.add_argument("--parallel", type=_positive, default=1, help="trainings at the same time (default 1)")
    ablate.add_argument("--keep-checkpoints", action="store_true", help="keep the checkpoints of arms that are scored")
    ablate.add_argument("--json", action="store_true", help="print one JSON document")


def _add_report(verb: Verb) -> None:
    report = verb("report", _report, "Write a run as one HTML page.", "ochat report runs/quickstart")
    report.add_argument("run_dir", type=Path, metavar="RUN", help="run folder (`output_dir` of the recipe)")
    report.add_argument("--out", type=Path, help="file to write; default: report.html in the run folder")


def _add_export(verb: Verb) -> None:
    export = verb(
        "export",
        _export,
        "Write a checkpoint as a Hugging Face folder.",
        "ochat export runs/quickstart --out runs/quickstart/export",
    )
    export.add_argument("run_dir", type=Path, metavar="RUN", help="run folder (`output_dir` of the recipe)")
    export.add_argument(
        "--step",
        type=_step,
        metavar="N|best",
        help="step of the checkpoint, or the one with the lowest validation loss; default: the newest",
    )
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    export.add_argument(
        "--max-shard-size",
        type=_file_size,
        default="5GB",
        metavar="SIZE",
        help="write several files of at most this size (default 5GB)",
    )


def _add_push(verb: Verb) -> None:
    push = verb(
        "push",
        _push,
        "Upload an exported folder to the Hugging Face Hub, and compare what arrived.",
        "HF_TOKEN=... ochat push runs/quickstart/export --repo ORG/NAME",
    )
    push.add_argument("dir", type=Path, help="folder that `ochat export` wrote")
    push.add_argument(
        "--repo", required=True, metavar="ORG/NAME", help="model repository; made if it is not there, private"
    )
    push.add_argument("--public", action="store_true", help="make a public repository, or push to one")
    push.add_argument("--revision", help="branch to push to, made if it is not there; default: main")
    push.add_argument("--message", help="message of the commit")
    push.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a model card that was edited on the Hub, and all files of a repository that `ochat push` did not "
        "make",
    )
    push.add_argument("--json", action="store_true", help="print one JSON document")


def _add_generate(verb: Verb) -> None:
    generate = verb(
        "generate",
        _generate,
        "Ask an exported model one thing.",
        'ochat generate runs/quickstart/export --condition "GPT4 Correct" --prompt "Is 47 even or odd?"',
    )
    generate.add_argument("model", type=Path, help="exported folder")
    generate.add_argument("--prompt", required=True, help="what the user says")
    generate.add_argument("--condition", help="condition to answer under; default: the export's own")
    generate.add_argument("--system", default="", help="system text")
    generate.add_argument("--max-new-tokens", type=_positive, default=256)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    generate.add_argument("--json", action="store_true", help="print one JSON document")


def _add_schema(verb: Verb) -> None:
    verb("schema", _schema, "Print the JSON schema of recipes, for editors.", "ochat schema > recipe.schema.json")


def _init(options: argparse.Namespace) -> None:
    from ochat_train.init.run import Options, init

    values = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    out = init(Options(**values), ask=_ask if is_terminal else None, say=print)
    print(f"\nwritten: {out}\nnext: ochat check {out}")


def _ask(question: str) -> str:
    try:
        return input(question)
    except (EOFError, KeyboardInterrupt):
        print()
        raise UserError("stopped; nothing was written") from None


def _prepare(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ochat_train.prepare_data import prepare_recipe, prepare_report
    from ochat_train.recipe import load_recipe
    from ochat_train.report_text import prepare_text

    recipe = load_recipe(options.recipe, options.overrides)
    with tqdm(desc="prepare", unit="row", disable=not sys.stderr.isatty()) as bar:
        manifest, reused = prepare_recipe(recipe, num_workers=options.workers, progress=bar.update)
    if options.json:
        print(json.dumps(prepare_report(manifest), ensure_ascii=False))
    else:
        print(prepare_text(manifest, Path(recipe.data.prepared_dir), reused=reused))


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """`ochat inspect ... | head` is no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # so that Python does not complain at its end


@_reader_may_leave()
def _inspect(options: argparse.Namespace) -> None:
    from data_pipeline.look.prepared import Inspection, Selection
    from data_pipeline.text_rules import visible

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character of the data gets its number
        sys.stdout.reconfigure(errors="backslashreplace")
    rows = options.rows or slice(0, 20 if options.html else 3)
    selection = Selection(
        start=rows.start,
        stop=rows.stop,
        class_name=options.class_name,
        conversation_id=options.conversation_id,
        find=options.find,
    )
    inspection = Inspection(options.dir, options.split)
    if options.json:
        for number in inspection.select(selection):
            print(visible(json.dumps(inspection.document(number), ensure_ascii=False)))
    elif options.html:
        from ochat_train.inspect_page import write_inspect_page

        write_inspect_page(inspection, selection, options.html, with_tokens=options.tokens)
        print(options.html)
    else:
        from data_pipeline.look.text import report

        is_for_people = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        color = options.color == "always" or (options.color == "auto" and is_for_people)
        for line in report(inspection, selection, color=color, with_tokens=options.tokens):
            print(line)


def _plan(options: argparse.Namespace) -> None:
    from ochat_train.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)  # before torch
    from ochat_train.plan_report import plan_report
    from ochat_train.report_text import plan_text
    from ochat_train.time_plan import find_gpu

    gpu = find_gpu(options.gpu, memory_gib=options.gpu_memory)
    report = plan_report(recipe, num_gpus=options.gpus, gpu=gpu, mfu=options.mfu)
    print(json.dumps(report) if options.json else plan_text(report))


def _check(options: argparse.Namespace) -> None:
    from ochat_train.check.run import check, check_report, check_text

    findings = check(options.recipe, options.overrides, num_gpus=options.gpus, gpu_memory_gib=options.gpu_memory)
    print(json.dumps(check_report(options.recipe, findings)) if options.json else check_text(findings))
    num_problems = sum(finding.level == "problem" for finding in findings)
    if num_problems:
        raise UserError(f"{options.recipe}: {num_problems} problem{'s' if num_problems > 1 else ''}")


def _train(options: argparse.Namespace) -> None:
    from ochat_train.recipe import load_recipe

    try:
        recipe = load_recipe(
            options.recipe, options.overrides
        )  # before torch: a wrong recipe costs a second, not a GPU
    except UserError as error:
        if int(os.environ.get("RANK", "0")) > 0 and os.environ.get("LOCAL_RANK") == "0":  # of another host
            raise exits.OneRankError(f"{socket.gethostname()}: {error}") from None
        raise
    from ochat_train.train import train

    train(recipe, resume=options.resume, accept_changes=options.accept_changes)


def _ablate(options: argparse.Namespace) -> None:
    from ochat_train.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    from ochat_train.ablation.run import Options, ablate
    from ochat_train.ablation.table import results_text

    arms = [name for name in options.arms.split(",") if name]
    choices = Options(
        folder=options.out,
        num_seeds=options.seeds,
        gpus=options.gpus,
        parallel=options.parallel,
        only=arms,
        keep_checkpoints=options.keep_checkpoints,
    )
    results = ablate(recipe, choices, say=lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(results) if options.json else f"{results_text(results)}\n{options.out / 'results.html'}")


def _report(options: argparse.Namespace) -> None:
    from ochat_train.run_page import write_run_page

    out = options.out or options.run_dir / "report.html"
    write_run_page(options.run_dir, out)
    print(out)


def _export(options: argparse.Namespace) -> None:
    from ochat_train.export import export

    out = export(
        options.run_dir,
        options.out,
        step=options.step,
        overwrite=options.overwrite,
        max_shard_size=options.max_shard_size,
    )
    print(f"exported and verified: {out}")


def _push(options: argparse.Namespace) -> None:
    from ochat_train.push import push

    try:
        pushed = push(
            options.dir,
            options.repo,
            private=not options.public,
            revision=options.revision,
            message=options.message,
            overwrite=options.overwrite,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        raise exits.StoppedBySignalError("stopped by SIGINT; the same command goes on with what is missing") from None
    if options.json:
        print(json.dumps(pushed.as_json()))
    else:
        print(f"pushed and verified: {pushed.url}\ncommit {pushed.commit}\n{pushed.what_changed}")


def _generate(options: argparse.Namespace) -> None:
    from ochat_train.generate import load_generator, unknown_condition_text

    if options.condition is not None and (text := unknown_condition_text(options.model, options.condition)) is not None:
        print(f"warning: {text}", file=sys.stderr)
    system = [{"role": "system", "content": options.system}] if options.system else []
    messages = [*system, {"role": "user", "content": options.prompt}]
    answer = load_generator(options.model).answers(
        [messages], condition=options.condition, max_new_tokens=options.max_new_tokens, temperature=options.temperature
    )[0]
    print(
        json.dumps({"condition": options.condition, "prompt": options.prompt, "answer": answer})
        if options.json
        else answer
    )


def _schema(options: argparse.Namespace) -> None:
    from ochat_train.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(by_alias=True), indent=1))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1, for example 0.5 for 50 %")
    return value


def _step(text: str) -> int | str:
    return text if text == "best" else _positive(text)


def _file_size(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*(KB|MB|GB)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, for example 500MB or 5GB")
    return text


def _row_range(text: str) -> slice:
    start, separator, end = text.partition(":")
    if not separator or not all(part == "" or part.isdigit() for part in (start, end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, for example 0:10")
    if end and int(end) < int(start or 0):
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return slice(int(start or 0), int(end) if end else None)


def run_as_script() -> Any:
    """Entry point of the `ochat` script."""
    sys.exit(main())
