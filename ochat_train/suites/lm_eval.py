"""A bridge to lm-evaluation-harness: its tasks, and the user's own YAML, asked under a condition.

The harness runs in a separate process, by a Python that the user names, because its pins may differ from ours. The
condition reaches the prompt in one of two ways:

- an export is loaded by the harness (`hf`), and the condition is a variable of its chat template; tasks that compare
  log-likelihoods need this way;
- a server at a URL is asked through its chat API (`local-chat-completions`), and the condition is a field of each
  request, or a part of the model's name; only tasks that generate text can be asked so.

The scores and standard errors are the harness's own, taken from the document that it writes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.files import cannot_use, sha256_of_file
from data_pipeline.json_files import typed
from ochat_train.suites.store import Lines, key_of
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.messages import print_message

PREFIX = "lm-eval:"
RUNS_FILE = "lm_eval.jsonl"
_DATA_FOLDERS = ("dataset_path", "data_dir")  # keys of a task that may name a local folder
_INSTALL = "python3 -m venv lm-eval-env && lm-eval-env/bin/pip install 'lm-eval[hf,api]', and name its python"
_LAST_LINES = 12
_ON_EXPORT = Path(__file__).with_name("lm_eval_on_export.py")  # -c, because this folder holds names of Python's own
_PROBE = """
import importlib.metadata, inspect, json
versions = {}
for name in ("lm_eval", "torch", "transformers", "datasets"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
takes = False
if "lm_eval" in versions and "torch" in versions and "transformers" in versions:
    from lm_eval.models.huggingface import HFLM
    takes = "chat_template_args" in inspect.signature(HFLM.__init__).parameters
print(json.dumps({"versions": versions, "takes_condition": takes}))
"""


@dataclass(frozen=True, kw_only=True)
class HarnessModel:
    """What the harness asks. export: a folder, None for a server. url: of the server, up to `/v1`. name: its model.

    sends_condition: whether the server takes `condition` as a field of a request; otherwise the name is
    `NAME@CONDITION`. key: of the server. sha256: of what decides the answers, None where that is not known.
    """

    export: Path | None = None
    url: str = ""
    name: str = ""
    sends_condition: bool = False
    key: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """How the harness is run. python: an interpreter that has it. include: a folder with the user's own tasks.

    few_shot, max_new_tokens, limit: None for what each task says. num_parallel: questions at once.
    """

    python: str = sys.executable
    include: Path | None = None
    few_shot: int | None = None
    max_new_tokens: int | None = None
    limit: int | None = None
    num_parallel: int = 16
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """One figure of a task under a condition (None: the model's own), as the harness gives it.

    task_version: of the task. filter: of answers, as `strict-match`. standard_error: None where the harness has none.
    num_questions: None where it does not say. is_higher_better: None likewise.
    """

    task: str
    task_version: str
    condition: str | None
    metric: str
    filter: str
    value: float
    standard_error: float | None
    num_questions: int | None
    few_shot: int | None
    is_higher_better: bool | None


def task_names(text: str) -> list[str]:
    """The tasks in a text like `gsm8k,arc_easy`, each once. Raises UserError where there is none."""
    names = [name.strip().removeprefix(PREFIX) for name in text.split(",")]
    if "" in names:
        raise UserError("--suite", f"{PREFIX} names no task", f"give one or more: {PREFIX}gsm8k,arc_easy")
    return list(dict.fromkeys(names))


def harness_versions(python: str, *, needs_model: bool) -> Mapping[str, str]:
    """Package -> version in the harness's Python. needs_model: whether it has to load an export.

    Raises UserError where it has no harness, or one that would not put the condition into the prompt.
    """
    found = _run([python, "-c", _PROBE], python=python)
    try:
        facts = nesting.loads(found.stdout.splitlines()[-1])
        versions: Mapping[str, str] = facts["versions"]
    except (ValueError, IndexError, KeyError):
        problem = f"does not work: {_last_lines(found.stderr, 3) or 'it printed nothing'}"
        raise UserError(f"--lm-eval-python {python}", problem, _INSTALL) from None
    if "lm_eval" not in versions:
        raise UserError(f"--lm-eval-python {python}", "has no lm-evaluation-harness", _INSTALL)
    if needs_model and not facts["takes_condition"]:
        problem = (
            f"its lm-evaluation-harness {versions['lm_eval']} cannot load a model with a condition: torch or "
            "transformers is missing, or `hf` does not know `chat_template_args`"
        )
        raise UserError(f"--lm-eval-python {python}", problem, _INSTALL)
    return versions


def run_harness(
    tasks: Sequence[str],
    conditions: Sequence[str | None],
    model: HarnessModel,
    options: HarnessOptions,
    *,
    folder: Path,
) -> tuple[list[HarnessScore], Mapping[str, str]]:
    """The figures of tasks under conditions, and the harness's versions. One run of the harness for each condition.

    folder: where finished runs are kept; the same run is not made twice. Raises UserError where the harness fails.
    """
    versions = harness_versions(options.python, needs_model=model.export is not None)
    folder.mkdir(parents=True, exist_ok=True)
    kept = Lines(folder / RUNS_FILE)
    scores: list[HarnessScore] = []
    for condition in conditions:
        asked = {**asdict(options), "include": _content_of(options.include)}
        key = key_of("lm-eval 3", list(tasks), condition, model.sha256, model.url, model.name, asked, dict(versions))
        found = kept.get(key, _scores_of_json)
        if found is None or model.sha256 is None:  # what is behind a URL may have changed
            document = _document(tasks, condition, model, options)
            found = scores_of(document, condition=condition)
            kept.put(key, {"rows": [asdict(score) for score in found]}, tasks=list(tasks), condition=condition)
        scores += found
    return scores, versions


def scores_of(document: Mapping[str, Any], *, condition: str | None) -> list[HarnessScore]:
    """The figures in a document that the harness wrote. Raises UserError where there is none."""
    scores = []
    for task, values in document["results"].items():
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            is_figure = comma and isinstance(value, int | float) and not metric.endswith("_stderr")
            if not is_figure or not math.isfinite(value):
                continue
            error = values.get(f"{metric}_stderr,{name}")
            scores.append(
                HarnessScore(
                    task=task,
                    task_version=str(document.get("versions", {}).get(task, "")),
                    condition=condition,
                    metric=metric,
                    filter=name,
                    value=float(value),
                    standard_error=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
                    num_questions=document.get("n-samples", {}).get(task, {}).get("effective"),
                    few_shot=document.get("n-shot", {}).get(task),
                    is_higher_better=document.get("higher_is_better", {}).get(task, {}).get(metric),
                )
            )
    if not scores:
        raise UserError("lm-evaluation-harness", "wrote a document without any figure", "see what it printed")
    return scores


def command(
    tasks: Sequence[str], condition: str | None, model: HarnessModel, options: HarnessOptions, *, out: Path
) -> list[str]:
    """The command line of one run. out: a folder for its documents."""
    generation: dict[str, Any] = {}
    if options.max_new_tokens is not None:
        generation["max_gen_toks"] = options.max_new_tokens
    arguments: dict[str, Any]
    if model.export is not None:
        kind, arguments = "hf", {"pretrained": str(model.export.resolve())}
        if condition is not None:
            arguments["chat_template_args"] = {"condition": condition}
    else:
        kind = "local-chat-completions"
        name = model.name
        if condition is not None and model.sends_condition:
            generation["condition"] = condition
        elif condition is not None:
            name = f"{name}@{condition}"
        arguments = {
            "model": name,
            "base_url": f"{model.url.rstrip('/')}/chat/completions",
            "num_concurrent": options.num_parallel,
            "tokenizer_backend": None,
            "eos_string": "",  # the server knows where a turn ends
        }
    program = ["-m", "lm_eval"] if model.export is None else ["-c", _ON_EXPORT.read_text(encoding="utf-8")]
    parts = [options.python, *program, "run", "--model", kind, "--model_args", json.dumps(arguments)]
    parts += ["--tasks", ",".join(tasks), "--apply_chat_template", "--output_path", str(out)]
    parts += ["--seed", str(options.seed)]
    if model.export is not None:
        parts += ["--batch_size", str(options.num_parallel)]
    for flag, value in (("--limit", options.limit), ("--num_fewshot", options.few_shot)):
        parts += [] if value is None else [flag, str(value)]
    if options.include is not None:
        parts += ["--include_path", str(options.include.resolve())]
    return parts + (["--gen_kwargs", json.dumps(generation)] if generation else [])


def _document(
    tasks: Sequence[str], condition: str | None, model: HarnessModel, options: HarnessOptions
) -> Mapping[str, Any]:
    """The document of one run."""
    with tempfile.TemporaryDirectory(prefix="ochat-lm-eval-") as folder:
        out = Path(folder) / "out"
        parts = command(tasks, condition, model, options, out=out)
        done = _run(parts, python=options.python, key=model.key)
        documents = sorted(out.rglob("results_*.json"))
        if done.returncode != 0 or len(documents) != 1:
            print_message(_last_lines(done.stderr or done.stdout, _LAST_LINES))
            problem = f"lm-evaluation-harness failed with exit code {done.returncode}: {_last_lines(done.stderr, 1)}"
            raise UserError(f"{PREFIX}{','.join(tasks)}", problem, _remedy(done.stderr + done.stdout))
        found: Mapping[str, Any] = nesting.loads(documents[0].read_text(encoding="utf-8"))
        return found


def _run(parts: Sequence[str], *, python: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the harness's Python to its end; Ctrl-C ends it too."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OPENAI_API_KEY": key or "none"}
    try:
        return subprocess.run(parts, env=environment, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise UserError(f"--lm-eval-python {python}", f"cannot be started: {error.strerror}", _INSTALL) from None
    except KeyboardInterrupt:
        raise StoppedBySignalError("stopped by SIGINT; conditions that the harness has finished are kept") from None


_REMEDIES = (
    (
        ("OfflineModeIsEnabled", "ConnectionError", "Couldn't reach", "MaxRetryError", "LocalEntryNotFoundError"),
        "the data of a task could not be fetched: run it once where the Hub can be reached, so that it is cached, or "
        "give your own YAML that reads local files (--lm-eval-include)",
    ),
    (
        ("Loglikelihood is not supported", "loglikelihood", "NotImplementedError"),
        "a task compares log-likelihoods, which a chat server does not give: name the exported folder instead of the "
        "URL, or a task that generates text",
    ),
    (("Tasks not found", "not found in"), "name a task that `lm-eval ls tasks` lists, or give --lm-eval-include"),
    (("confirm_run_unsafe_code",), "a task runs code that the model wrote, which this bridge never allows"),
    (("trust_remote_code",), "a task needs code from the Hub, which is never run"),
)


def _remedy(printed: str) -> str:
    for signs, remedy in _REMEDIES:
        if any(sign in printed for sign in signs):
            return remedy
    return "repair the cause and start the same command again"


def _last_lines(text: str, count: int) -> str:
    lines = [line.rstrip()[:300] for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def _scores_of_json(value: Mapping[str, Any]) -> list[HarnessScore]:
    return [typed(HarnessScore, row) for row in value["rows"]]


def _content_of(folder: Path | None) -> Mapping[str, str]:
    """The user's tasks, and the local files that they name, so that what has changed is run again: name -> sha256."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise UserError(f"--lm-eval-include {folder}", "is no folder", "name the folder with your tasks' YAML files")
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for path in [path for path in paths.values() if path.suffix == ".yaml"]:
        for key, text in _texts_in(path):
            place = Path(text)
            is_folder = key in _DATA_FOLDERS and _is(Path.is_dir, place)
            paths |= {str(file): file for file in (place.rglob("*") if is_folder else [place])}
    found = {name: path for name, path in sorted(paths.items()) if _is(Path.is_file, path)}
    found = {name: path for name, path in found.items() if "__pycache__" not in path.parts}
    try:
        return {name: sha256_of_file(path) for name, path in found.items()}
    except OSError as error:
        raise cannot_use(Path(error.filename), error) from None


def _texts_in(path: Path) -> list[tuple[str, str]]:
    """All texts of a YAML file with the keys above them; none where it is damaged, which the harness reports."""
    try:
        values: list[tuple[str, Any]] = [("", yaml.load(path.read_bytes(), Loader=_TaskLoader))]
    except (yaml.YAMLError, ValueError, RecursionError, OSError):
        return []
    texts = []
    while values:
        key, value = values.pop()
        if isinstance(value, dict):
            values += [(str(name), each) for name, each in value.items()]
        elif isinstance(value, list):
            values += [(key, each) for each in value]
        elif isinstance(value, str):
            texts.append((key, value))
    return texts


class _TaskLoader(yaml.SafeLoader):
    """Reads what the harness's own tags (`!function`) stand for as nothing."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _is(kind: Callable[[Path], bool], place: Path) -> bool:
    try:
        return kind(place)
    except (OSError, ValueError):  # a text that cannot be a path
        return False
