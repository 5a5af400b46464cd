"""The bridge to lm-evaluation-harness: what it is told, what it writes, and what is said of its failures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.suites.lm_eval import (
    HarnessModel,
    HarnessOptions,
    HarnessScore,
    command,
    run_harness,
    scores_of,
    task_names,
)

EXPORT = HarnessModel(export=Path("/x/export"), sha256="a")
SERVER = HarnessModel(url="http://h/v1", name="quick", sends_condition=True)
OTHER = HarnessModel(url="http://h/v1/", name="quick")
DOCUMENT: dict[str, Any] = {
    "results": {
        "tiny": {
            "alias": "tiny",
            "sample_len": 300,
            "exact_match,strict": 0.26,
            "exact_match_stderr,strict": 0.025,
            "f1,none": 0.5,
            "f1_stderr,none": "N/A",
            "bleu,none": float("nan"),
        }
    },
    "versions": {"tiny": 1.0},
    "n-shot": {"tiny": 2},
    "n-samples": {"tiny": {"original": 300, "effective": 40}},
    "higher_is_better": {"tiny": {"exact_match": True}},
}
ROW = HarnessScore(
    task="tiny",
    task_version="1.0",
    condition="GPT3",
    metric="exact_match",
    filter="strict",
    value=0.26,
    standard_error=0.025,
    num_questions=40,
    few_shot=2,
    is_higher_better=True,
)

# A stand-in for the harness: answers the probe, writes down its arguments, and writes a document.
STAND_IN = """#!{python} -IS
import json, os, pathlib, sys
if len(sys.argv) == 3:
    print("noise")
    print(json.dumps({{"versions": {versions!r}, "takes_condition": {takes!r}}}))
    sys.exit()
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if {fails!r}:
    sys.exit({fails!r} + "\\n")
out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "name"
out.mkdir(parents=True)
(out / "results_2026.json").write_text({document!r})
"""
VERSIONS = {"lm_eval": "0.4.13", "torch": "2", "transformers": "5"}


class FakeHFLM:
    """What `lm_eval` 0.4.13 calls a model. style: before the text of every message. opening: of an answer."""

    style, opening = " ", "assistant:"

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        opening = {"user": "user:", "assistant": self.opening}
        contents = [each["content"].replace("<end>", "<\ufdd0end>") for each in messages]
        parts = zip(messages, contents, strict=True)
        text = "".join(f"{opening[each['role']]}{self.style}{content}<end>" for each, content in parts)
        return text + self.opening if add_generation_prompt else text.removesuffix("<end>")

    def tok_encode(self, text: str) -> list[str]:
        """Each character is a token, and two ends of lines are one."""
        return re.findall(r"\n\n|[\s\S]", text)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[str], list[str]]:
        end = len(context.rstrip())
        whole, context = self.tok_encode(context + continuation), context[:end]
        return self.tok_encode(context), whole[len(self.tok_encode(context)) :]


@pytest.mark.parametrize(
    ("style", "choice", "expected"),
    [
        (" ", "B", " B"),
        (" ", " B", " B"),
        (" ", "\nB", " \nB"),
        (" ", "\u00a0B", " \u00a0B"),
        ("", "B", "B"),
        ("\n", "B", "\nB"),
        ("<think></think>", "B", "B"),
        (" ", "B<end>", " B<\ufdd0end>"),
    ],
)
@pytest.mark.parametrize("opening", ["assistant:", "assistant\n"])
def test_a_choice_is_put_where_the_template_puts_an_answer(
    style: str, choice: str, expected: str, opening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = type("HFLM", (FakeHFLM,), {"style": style, "opening": opening})
    model = fake()
    started: list[bool] = []
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.models", ModuleType("lm_eval.models"))
    for name, member, value in (
        ("lm_eval.__main__", "cli_evaluate", lambda: started.append(True)),
        ("lm_eval.models.huggingface", "HFLM", fake),
    ):
        module = ModuleType(name)
        setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)
    prompt = model.apply_chat_template([{"role": "user", "content": "Which?"}])
    harness_alone = (prompt.rstrip(), prompt[len(prompt.rstrip()) :] + choice)
    assert tuple(map("".join, model._encode_pair(prompt, choice))) == harness_alone
    exec(command(["a"], None, EXPORT, HarnessOptions(python="py"), out=Path("/o"))[2], {"__name__": "__main__"})
    assert started
    joined = (opening + expected)[len("assistant") :].startswith("\n\n")  # then the ids have no place between the two
    ids = (prompt.rstrip(), prompt[len(prompt.rstrip()) :] + expected) if joined else (prompt, expected)
    assert tuple(map("".join, model._encode_pair(prompt, choice))) == ids
    assert tuple(map("".join, model._encode_pair("Once upon ", "a"))) == ("Once upon", " a"), "no prompt of a chat"


@pytest.fixture
def harness(tmp_path: Path) -> Callable[..., str]:
    def make(*, versions: dict[str, str] = VERSIONS, takes: bool = True, fails: str = "") -> str:
        path = tmp_path / "python"
        values = {"python": sys.executable, "log": str(tmp_path / "log"), "document": json.dumps(DOCUMENT)}
        path.write_text(STAND_IN.format(**values, versions=versions, takes=takes, fails=fails))
        path.chmod(0o755)
        return str(path)

    return make


def calls(folder: Path) -> list[list[str]]:
    path = folder / "log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def value_of(parts: list[str], flag: str) -> Any:
    text = parts[parts.index(flag) + 1]
    return json.loads(text) if text.startswith("{") else text


@pytest.mark.parametrize(
    ("model", "condition", "kind", "arguments", "generation"),
    [
        (EXPORT, "GPT3", "hf", {"pretrained": "/x/export", "chat_template_args": {"condition": "GPT3"}}, None),
        (EXPORT, None, "hf", {"pretrained": "/x/export"}, None),
        (SERVER, "GPT3", "local-chat-completions", {"model": "quick"}, {"condition": "GPT3"}),
        (OTHER, "GPT3", "local-chat-completions", {"model": "quick@GPT3"}, None),
    ],
)
def test_the_condition_is_in_the_command(
    model: HarnessModel, condition: str | None, kind: str, arguments: dict[str, Any], generation: Any
) -> None:
    parts = command(["a", "b"], condition, model, HarnessOptions(python="py", num_parallel=8), out=Path("/o"))
    assert parts[:2] == ["py", "-c" if model.export else "-m"]
    assert parts[3:6] == ["run", "--model", kind]
    found = value_of(parts, "--model_args")
    assert {key: found[key] for key in arguments} == arguments
    if model.export is None:
        assert found["base_url"] == "http://h/v1/chat/completions"
    assert value_of(parts, "--tasks") == "a,b"
    assert "--apply_chat_template" in parts
    assert (value_of(parts, "--gen_kwargs") if "--gen_kwargs" in parts else None) == generation
    assert "--trust_remote_code" not in parts
    assert "--confirm_run_unsafe_code" not in parts


def test_options_are_passed_on(tmp_path: Path) -> None:
    options = HarnessOptions(include=tmp_path, few_shot=3, max_new_tokens=12, limit=5, seed=7)
    parts = command(["a"], None, EXPORT, options, out=Path("/o"))
    found = {flag: value_of(parts, flag) for flag in ("--include_path", "--num_fewshot", "--limit", "--seed")}
    assert found == {"--include_path": str(tmp_path), "--num_fewshot": "3", "--limit": "5", "--seed": "7"}
    assert value_of(parts, "--gen_kwargs") == {"max_gen_toks": 12}


def test_figures_and_standard_errors_are_those_of_the_document() -> None:
    first, second = scores_of(DOCUMENT, condition="GPT3")
    assert first == ROW
    assert (second.metric, second.value, second.standard_error) == ("f1", 0.5, None)
    with pytest.raises(UserError, match="without any figure"):
        scores_of({"results": {"tiny": {"alias": "tiny"}}}, condition=None)


def test_a_finished_run_is_not_made_again(harness: Callable[..., str], tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny.yaml").write_text("task: tiny")
    options = HarnessOptions(python=harness(), include=tasks)

    def run(model: HarnessModel = EXPORT) -> list[HarnessScore]:
        return run_harness(["tiny"], ["GPT3", "GPT4"], model, options, folder=tmp_path / "out")[0]

    first = run()
    assert [row.condition for row in first] == ["GPT3", "GPT3", "GPT4", "GPT4"]
    assert first[0] == ROW
    assert len(calls(tmp_path)) == 2
    assert run() == first
    assert len(calls(tmp_path)) == 2
    (tasks / "tiny.yaml").write_text("task: tiny\nlimit: 3")  # the controls: another task, another model, a server
    run()
    run(HarnessModel(export=Path("/x/export"), sha256="b"))
    assert len(calls(tmp_path)) == 6
    run(SERVER)
    run(SERVER)
    assert len(calls(tmp_path)) == 10


def test_changed_data_and_code_of_a_task_are_run_again(harness: Callable[..., str], tmp_path: Path) -> None:
    tasks, data, more = tmp_path / "tasks", tmp_path / "my data.jsonl", tmp_path / "more"
    tasks.mkdir()
    more.mkdir()
    files = {"test": str(data), "dev": f"{more}/x.jsonl"}
    (tasks / "tiny.yaml").write_text(
        f"task: tiny\ndataset_path: {more}\ndataset_kwargs: {{data_files: {json.dumps(files)}}}\n"
        "doc_to_text: !function tiny.text\nlong: " + "x" * 5000
    )
    (tasks / "broken.yaml").write_text("a: [")
    changing = [tasks / "tiny.py", data, more / "x.jsonl", more / "y.jsonl"]
    for path in changing:
        path.write_text("1")
    options = HarnessOptions(python=harness(), include=tasks)

    def run() -> None:
        run_harness(["tiny"], ["GPT3"], EXPORT, options, folder=tmp_path / "out")

    run()
    run()
    assert len(calls(tmp_path)) == 1, "nothing has changed"
    for number, path in enumerate(changing, start=2):
        path.write_text("2")
        run()
        assert len(calls(tmp_path)) == number, path


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ({"versions": {}}, "has no lm-evaluation-harness; python3 -m venv"),
        ({"takes": False}, "cannot load a model with a condition"),
        (
            {"fails": "ConnectionError: Couldn't reach 'x' on the Hub"},
            "exit code 1: .*could not be fetched: run it once",
        ),
        ({"fails": "NotImplementedError: Loglikelihood is not supported"}, "name the exported folder instead"),
        ({"fails": "ValueError: Tasks not found: tinny"}, "lm-eval ls tasks"),
        ({"fails": "something else"}, "something else; repair the cause"),
    ],
)
def test_failures_say_what_to_do(made: Any, problem: str, harness: Callable[..., str], tmp_path: Path) -> None:
    options = HarnessOptions(python=harness(**made))
    with pytest.raises(UserError, match=problem):
        run_harness(["tiny"], ["GPT3"], EXPORT, options, folder=tmp_path / "out")


def test_a_server_needs_no_torch_in_the_harness(harness: Callable[..., str], tmp_path: Path) -> None:
    options = HarnessOptions(python=harness(takes=False))
    rows, versions = run_harness(["tiny"], ["GPT3"], SERVER, options, folder=tmp_path / "out")
    assert rows[0] == ROW
    assert versions == VERSIONS


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    options = HarnessOptions(python=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"--lm-eval-python .*nothing: cannot be started"):
        run_harness(["tiny"], [None], EXPORT, options, folder=tmp_path / "out")


def test_task_names() -> None:
    assert task_names("a,b, lm-eval:c,a") == ["a", "b", "c"]
    with pytest.raises(UserError, match="names no task"):
        task_names("")
