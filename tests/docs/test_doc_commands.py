"""Every command and example of README.md and docs/ works: commands run in a shell, YAML is part of a recipe, Python
runs.

Each page starts in its own folder with the project's recipes, small prepared quickstart data and a short run of
them. Its ```bash blocks run there in their order, in real bash; `ochat`, `deepspeed`, `torchrun`, `python` and
`./launch.sh` run as real processes, made smaller as the constants below say; a command that several pages have in
common runs once for each `recipes/mine.yaml`. What cannot run here is in ONLY_CHECKED: it is checked by the real
argument parsers, and its recipe and `--set` are read, but it is not run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from deepspeed.launcher.runner import parse_args as parse_deepspeed_arguments
from torch.distributed.run import get_args_parser as torchrun_parser

from data_pipeline.errors import UserError
from ochat_train.cli.main import VERBS
from ochat_train.cli.parser import command_parser
from ochat_train.cli.parser import parse as parse_words
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.recipe.strict_yaml import parse
from ochat_train.recipe.template_file import load_template
from ochat_train.serving.errors import ApiError
from ochat_train.serving.requests import read_request
from tests.support.doc_pages import PAGES, blocks, first_column, page_name, section
from tests.support.doc_shell import Answer, Call, shell
from tests.support.processes import PYTHONPATH, ROOT, finish
from tests.support.rank_processes import start_rank

# Commands (regular expressions, from their beginning) that are checked but not run, and why.
ONLY_CHECKED = {
    r"(ochat launch .*-- )?(deepspeed|torchrun) .*recipes/(openchat|smollm2)": "loads a base model from the Hub and "
    "trains 7B parameters",
    r"ochat (prepare|plan|check) recipes/(openchat|smollm2)": "needs a tokenizer from the Hub and data of the reader's "
    "own",
    r"ochat init data/gpt4": "needs a base from the Hub and conversations of the reader's own",
    r"ochat serve": "does not end",
    r"ochat inspect data/prepared/mine": "a dataset of a recipe that `ochat init` writes",
    r"ochat push": "writes to the Hub",
    r"ochat eval .*(eval_data|gsm8k|HumanEval|mt-bench)": "needs the data of a benchmark",
    r"ochat export .*--results": "needs the results of an evaluation of this run",
    r"python -m tests\.support\.hub_stand_in": "does not end",
    r"ochat ablate": "trains six models",
    r"curl\b": "needs a server; what it sends is read as `ochat serve` reads it",
    r"ochat chat": "loads an engine, or needs a server, and waits for a person",
    r"(ochat|deepspeed) .*--resume runs/": "names a checkpoint of a long run",
    r"python benchmarks/": "measures for minutes, some on GPUs",
    r"(ruff|mypy|python -m pytest)\b": "the tests would run themselves",
    r"python -m (pip|venv)\b": "needs the network",
    r"(pip|hf|git|mkdocs|tensorboard|wandb)\b": "another program: needs the network, or does not end",
    r"(ssh|srun|scontrol|sbatch|scp|rsync)\b": "needs other hosts",
}
# Pages that make everything they use; the others find what `workspace` makes.
FROM_NOTHING = {"tutorial.md"}

# Added to commands. A training starts from the beginning unless its page says `--resume`; one recipe is trained once,
# whatever `--set` changes: these values are read and checked, and another training would prove nothing of the page.
ADDED = {
    "train": ["--set", "train.max_steps=1", "--set", "validation.sample_tokens=2"],
    "export": ["--overwrite"],
    "prepare": ["--workers", "1"],
}
FEW_CONVERSATIONS = {"NUM_EXPERT": 120, "NUM_SUBOPTIMAL": 240, "NUM_HELD_OUT": 4}
CONSTANTS = {"ochat_train.quickstart.make": FEW_CONVERSATIONS}

# What the Python examples of a page may use without making it.
PYTHON_NAMES = """\
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("runs/quickstart/export")
messages = [{"role": "user", "content": "Hello"}]
"""

SLURM = {"SLURM_SUBMIT_DIR": ".", "SLURM_JOB_NODELIST": "host-[a-b]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "1"}
ON_ONE_CORE = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
PROGRAMS = sorted(
    {
        "ochat",
        "deepspeed",
        "torchrun",
        "python",
        "nvidia-smi",
        "ruff",
        "mypy",
        "curl",
        "pip",
        "hf",
        "git",
        "mkdocs",
        "tensorboard",
        "wandb",
        "ssh",
        "srun",
        "scontrol",
        "sbatch",
        "scp",
        "rsync",
    }
)


Bash = Callable[[str, Path], str]  # runs a text in a folder; what it printed


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A command whose arguments are right. job: how to run it (tests/support/doc_command.py); recipe: what it trains,
    if it does; file: fingerprint of that recipe without `--set`.
    """

    job: dict[str, Any]
    recipe: Recipe | None = None
    file: str = ""


class Reader:
    """Somebody who does what the pages say."""

    def __init__(self) -> None:
        self.trained: dict[str, Path] = {}  # fingerprint of a recipe -> run folder
        self.answered: dict[tuple[str, str], Answer] = {}  # command, recipes/mine.yaml -> what it gave on a page before

    def handle(self, call: Call) -> Answer:
        """Check a command, and run it unless it is in ONLY_CHECKED."""
        if call.words[0] == "nvidia-smi":
            return 1, "", ""  # no GPU
        if call.words[:2] == ["git", "clone"]:
            (call.folder / call.words[-1]).symlink_to(".")  # the folder is a clone already
        text = shlex.join(call.words)
        try:
            call = unwrapped(call)
            command = checked(call)
        except (UserError, ValueError) as error:
            return 2, "", f"{text}: {error}"
        if any(re.match(pattern, shlex.join(call.words)) for pattern in ONLY_CHECKED):
            return 0, "", ""
        if command.recipe is None:
            mine = call.folder / "recipes" / "mine.yaml"
            key = shlex.join(call.words), mine.read_text(encoding="utf-8") if mine.is_file() else ""
            if key not in self.answered:
                answer = run_in_process(command.job, call)
                if answer[0] != 0:
                    return answer
                self.answered[key] = answer
            return self.answered[key]
        run_dir = call.folder / command.recipe.output_dir
        if (earlier := self.trained.get(command.file)) is not None:
            if not run_dir.exists():
                shutil.copytree(earlier, run_dir)
            return 0, "", ""
        self.trained[command.file] = run_dir
        return run_in_process(command.job, call)


def unwrapped(call: Call) -> Call:
    """What `ochat launch` starts, so that it is treated as if it were on the page itself. Raises ValueError."""
    if call.words[:2] != ["ochat", "launch"]:
        return call
    return replace(call, words=parsed(command_parser(VERBS).parse_args, call.words[1:]).command)


def checked(call: Call) -> Checked:
    """What to run for a call. Raises ValueError or UserError for arguments that are not right."""
    name, arguments = call.words[0], call.words[1:]
    if name == "ochat":
        return checked_verb(arguments, call.folder)
    if name in ("deepspeed", "torchrun"):
        module, arguments = launched(name, arguments)
        if module != "ochat_train":
            raise ValueError(f"{module} is not started by ochat")
        return checked_verb(["train", *arguments], call.folder)
    if name == "curl":
        if "-d" in arguments:
            read_body(arguments[arguments.index("-d") + 1])
        return Checked(job={})
    if name == "python" and arguments[:1] == ["-m"]:
        return Checked(job={"module": arguments[1], "words": arguments[2:]})
    if name == "python":
        script = call.folder / arguments[0]
        if not script.is_file():
            raise ValueError(f"{script}: no such file")
        missing = [
            word
            for word in arguments
            if word.startswith("--") and f'"{word}"' not in script.read_text(encoding="utf-8")
        ]
        if missing:
            raise ValueError(f"{script} has no {' '.join(missing)}")
        return Checked(job={"script": str(script), "words": arguments[1:]})
    return Checked(job={})


def read_body(text: str) -> None:
    """Raises ValueError for what `ochat serve` would refuse."""
    try:
        read_request(json.loads(text))
    except ApiError as error:
        raise ValueError(str(error)) from None


def checked_verb(arguments: list[str], folder: Path) -> Checked:
    """A call of `ochat`, with what is added to it."""
    options = parsed(partial(parse_words, VERBS), arguments)
    recipe = load_recipe(folder / options.recipe, options.overrides) if hasattr(options, "overrides") else None
    more = list(ADDED.get(options.verb, []))
    if options.verb == "train" and options.resume == "auto":
        more += ["--resume", "never"]
    job = {"code": "from ochat_train.cli.main import run_as_script; run_as_script()", "words": [*arguments, *more]}
    if options.verb != "train":
        return Checked(job=job)
    return Checked(job=job, recipe=recipe, file=load_recipe(folder / options.recipe).fingerprint)


def launched(launcher: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The module that a launcher would start, and its arguments, by the launcher's own parser."""
    if launcher == "deepspeed":
        options = parsed(parse_deepspeed_arguments, arguments)
        return options.user_script if options.module else f"the script {options.user_script}", options.user_args
    options = parsed(torchrun_parser().parse_args, arguments)
    return (
        options.training_script if options.module else f"the script {options.training_script}",
        options.training_script_args,
    )


def parsed(parse_arguments: Callable[[list[str]], argparse.Namespace], arguments: list[str]) -> argparse.Namespace:
    """Arguments read by a parser of argparse. Raises ValueError with its message."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message), contextlib.redirect_stdout(message):
            return parse_arguments(arguments)
    except SystemExit as stop:
        if not stop.code:  # --help, --version
            return argparse.Namespace(verb=None)
        raise ValueError(message.getvalue()) from None


def run_in_process(job: dict[str, Any], call: Call) -> Answer:
    """Run a command in a separate process and wait for it."""
    out = call.folder / ".stdout"
    job = {"folder": str(call.folder), "stdout": str(out), "constants": CONSTANTS, **job}
    environment = {**call.environment, **ON_ONE_CORE, "PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH}
    rank = start_rank("tests.support.doc_command", [json.dumps(job)], environment, fork=True)
    [error], [code] = finish([rank])
    return code, out.read_text(encoding="utf-8"), error


# ---- bash ----


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.fixture(scope="module")
def bash(reader: Reader) -> Iterator[Bash]:
    with shell(PROGRAMS, reader.handle, environment=SLURM) as run:
        yield run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it after cloning and `./launch.sh`'s installation: nothing prepared, nothing trained."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("recipes", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = folder / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "activate").touch()
    (environment / "bin" / "python").touch(mode=0o755)
    for extras in ("cpu", "cpu-test"):  # launch.sh takes these to mean that everything is installed
        stamp = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt"))
        (environment / f"installed-{extras}").write_text(stamp, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def workspace(project: Path, reader: Reader, bash: Bash, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with what most pages speak of: the quickstart as data, run and export, and the same called `mine`."""
    folder = tmp_path_factory.mktemp("workspace") / "project"
    shutil.copytree(project, folder)
    bash(
        """
        python -m ochat_train.quickstart.make data/quickstart
        ochat prepare recipes/quickstart.yaml
        ochat train recipes/quickstart.yaml
        ochat export runs/quickstart --out runs/quickstart/export
        """,
        folder,
    )
    recipe = (folder / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    mine = recipe.replace("name: quickstart", "name: mine").replace("runs/quickstart", "runs/mine")
    (folder / "recipes" / "mine.yaml").write_text(mine, encoding="utf-8")
    shutil.copytree(folder / "runs" / "quickstart", folder / "runs" / "mine")
    reader.trained[load_recipe(folder / "recipes" / "mine.yaml").fingerprint] = folder / "runs" / "mine"
    shutil.copytree(folder / "data" / "quickstart" / "prepared", folder / "data" / "mine")
    shutil.copy(folder / "data" / "quickstart" / "expert.jsonl", folder / "data" / "other.jsonl")
    return folder


def with_examples(*languages: str) -> list[Any]:
    """Pages that have an example in one of these languages, as parameters of a test."""
    pages = [page for page in PAGES if any(block.language in languages for block in blocks(page))]
    return [pytest.param(page, id=page_name(page)) for page in pages]


@pytest.mark.parametrize("page", with_examples("bash"))
def test_commands(page: Path, bash: Bash, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    origin = request.getfixturevalue("project" if page_name(page) in FROM_NOTHING else "workspace")
    folder = tmp_path / "project"
    shutil.copytree(origin, folder)
    for block in blocks(page):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "bash":
            bash(block.text, folder)


def test_the_list_of_commands_that_are_not_run_holds_nothing_else() -> None:
    lines = [
        line for page in PAGES for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()
    ]
    lines += [line.replace("./launch.sh", "ochat prepare") for line in lines if line.startswith("./launch.sh recipes")]
    lines += re.findall(r"echo_and_run (.*)", (ROOT / "launch.sh").read_text(encoding="utf-8"))
    assert [pattern for pattern in ONLY_CHECKED if not any(re.match(pattern, line.strip()) for line in lines)] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            """curl http://localhost:18888/v1/x -d '{"messages": [{"role": "user"}], "conditon": "GPT3"}'""",
            "`conditon`",
        ),
        ("ochat prepare recipes/quickstart.yaml --worker", "expected one argument"),
        ("ochat trian recipes/quickstart.yaml", "did you mean `train`"),
        ("ochat plan recipes/nowhere.yaml", "cannot be read"),
        ("ochat plan recipes/quickstart.yaml --set train.epoch=1", "unknown key"),
        ("deepspeed --num_gpu 8 --module ochat_train recipes/openchat_3_5.yaml --set train.tokens=1", "unknown key"),
        (
            "deepspeed --num_gpus 8 ochat_train recipes/openchat_3_5.yaml",
            "the script ochat_train is not started by ochat",
        ),
        ("./launch.sh recipes/openchat_3_5.yaml --set train.epoch=1", "unknown key"),
        ("python benchmarks/step.py --no-such-flag", "has no --no-such-flag"),
        ("ochat inspect data/nowhere", "data/nowhere"),
        ("unknown-program", "command not found"),
        ("ochat launch -- deepspeed --module ochat_train recipes/quickstart.yaml --set train.epoch=1", "unknown key"),
    ],
)
def test_a_wrong_command_is_found(line: str, message: str, bash: Bash, project: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        bash(line, project)


# ---- what the reference says of files and outputs ----


def keys_on(page: str, heading: str) -> list[str]:
    """The first column of the table under a heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return first_column(section(text, heading))


def line_of(path: Path) -> dict[str, Any]:
    """The first line of a file of JSON lines."""
    return dict(json.loads(path.read_text(encoding="utf-8").splitlines()[0]))


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl", "samples.jsonl"])
def test_the_page_lists_the_keys_of_a_run_s_files(name: str, workspace: Path) -> None:
    found = line_of(workspace / "runs" / "quickstart" / name)
    of_mixtures = {"experts"} if name == "metrics.jsonl" else set()  # the quickstart's model has none
    assert sorted(keys_on("run-files.md", name)) == sorted({*found, *of_mixtures})
    text = section((ROOT / "docs" / "run-files.md").read_text(encoding="utf-8"), name)
    for key in {"metrics.jsonl": ["classes"], "validation.jsonl": ["classes", "learnt"], "samples.jsonl": ["answers"]}[
        name
    ]:
        inner = found[key]["expert"] if isinstance(found[key], dict) else found[key][0]
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{key}`")]
        assert set(inner) <= set(re.findall(r"`([a-z_]+)`", row))


def test_the_page_lists_what_is_in_a_run_folder(workspace: Path) -> None:
    text = section((ROOT / "docs" / "run-files.md").read_text(encoding="utf-8"), "Run folder and metrics")
    named = set(re.findall(r"^    ([\w.]+)", text, flags=re.MULTILINE))
    there = {entry.name for entry in (workspace / "runs" / "quickstart").iterdir() if not entry.name.startswith(".")}
    assert there - {"export"} <= named


@pytest.mark.parametrize(
    "command",
    [
        "ochat inspect data/quickstart/prepared --rows 0:1 --json",
        "ochat plan recipes/quickstart.yaml --json",
        "ochat generate runs/quickstart/export --prompt Hello --json",
    ],
)
def test_the_page_lists_the_keys_of_json_outputs(command: str, bash: Bash, workspace: Path) -> None:
    bash(f"{command} > found.jsonl", workspace)
    assert keys_on("json-outputs.md", f"`ochat {command.split()[1]} --json`") == list(
        line_of(workspace / "found.jsonl")
    )


# ---- other languages ----


@pytest.mark.parametrize("page", with_examples("yaml"))
def test_yaml_is_part_of_a_recipe_or_a_template(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language != "yaml":
            continue
        document = parse(block.text, name=f"{page_name(page)}, line {block.line}")
        assert not document.problems
        if document.value is not None:  # nothing but comments
            path = tmp_path / "document.yaml"
            is_template = "turns" in document.value  # of a prompt, not part of a recipe
            path.write_text(block.text if is_template else yaml.safe_dump(completed(document.value)), encoding="utf-8")
            load_template(path) if is_template else load_recipe(path)


def completed(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a recipe with what it lacks taken from the shortest recipe of the reference."""
    if "name" in part:
        return part
    [whole] = [
        parse(block.text, name="recipe.md").value
        for block in blocks(ROOT / "docs" / "recipe.md")
        if block.text.startswith("name:")
    ]
    for name, values in part.items():
        for key, instead in {"classes_from": "classes", "config": "path"}.items():
            if key in values:
                del whole[name][instead]
        whole[name] = {**whole.get(name, {}), **values}
    return whole


@pytest.mark.parametrize("page", with_examples("json", "jsonl"))
def test_json_can_be_read(page: Path) -> None:
    for block in blocks(page):
        for document in {"json": [block.text], "jsonl": block.text.splitlines()}.get(block.language, []):
            json.loads(document)


@pytest.mark.parametrize("page", with_examples("python"))
def test_python_runs(page: Path, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(workspace, folder)
    for block in blocks(page):
        if block.language == "python":
            call = Call(words=[], folder=folder, environment=dict(os.environ))
            code, out, error = run_in_process({"code": PYTHON_NAMES + block.text, "words": []}, call)
            assert code == 0, f"line {block.line}:\n{out}{error}"
