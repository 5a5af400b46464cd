"""`ochat eval` of an export: a real engine over a small model, cut off in the middle, compared."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import UserError
from ochat_train.cli.main import main
from ochat_train.evaluation.questions import load_questions, right_ratios_by_condition
from ochat_train.inference.engine import AnswerSettings, Piece
from ochat_train.inference.generate import load_generator
from ochat_train.inference.served_model import load_served_model
from ochat_train.respondents.evaluation import EvalOptions, run_eval
from ochat_train.respondents.export import ExportRespondent, chosen_conditions, model_facts
from ochat_train.suites.ask import Prompt
from ochat_train.suites.compare import compare
from ochat_train.suites.results import EvalResults, EvalSettings
from ochat_train.suites.results_file import read_results
from ochat_train.suites.suite import Message
from tests.support.rank_processes import start_rank
from tests.support.rows import write_jsonl
from tests.support.tiny_export import CONDITIONS, write_tiny_export

NUM_QUESTIONS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> Path:
    return write_tiny_export(tmp_path_factory.mktemp("export"), small_tokenizer_dir, stop_ids=tuple(range(40, 60)))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Half of the right answers are what the model says under its first condition, some of the others by chance."""
    asked = [f"What is number {n}?" for n in range(NUM_QUESTIONS)]
    said = load_generator(model).answers(
        [[{"role": "user", "content": text}] for text in asked],
        condition=CONDITIONS[0],
        max_new_tokens=6,
        temperature=0.0,
    )
    path = tmp_path_factory.mktemp("data") / "held_out.jsonl"
    write_jsonl(
        path,
        [
            {"question": text, "answer": answer if n % 2 else "no", "task": f"task {n % 3}"}
            for n, (text, answer) in enumerate(zip(asked, said, strict=True))
        ],
    )
    return path


def options(model: Path, questions: Path, out: Path, **changes: Any) -> EvalOptions:
    settings = EvalSettings(max_new_tokens=6, **changes.pop("settings", {}))
    values = {"suites": ("held-out",), "data": (str(questions),), "settings": settings, "out": out}
    return EvalOptions(target=str(model), **{**values, **changes})


def run(model: Path, questions: Path, out: Path, **changes: Any) -> EvalResults:
    return run_eval(options(model, questions, out, **changes), say=lambda text: None).results


def without_times(path: Path) -> Any:
    """A results.json without what is measured."""
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["created"]
    for row in (*document["answers"], *document["scores"]):
        for name in ("started", "ended", "seconds", "tokens_per_second"):
            row.pop(name, None)
    return document


@pytest.fixture(scope="module")
def whole(model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(model, questions, folder)
    return folder


def test_shares_are_those_of_the_trainer(model: Path, questions: Path, whole: Path) -> None:
    results = read_results(whole)
    expected = right_ratios_by_condition(load_generator(model), load_questions(questions), CONDITIONS, max_new_tokens=6)
    found = {(row.condition, row.task or "all"): row.score.mean for row in results.scores if row.score}
    assert found == {
        (condition, task): ratio for condition, ratios in expected.items() for task, ratio in ratios.items()
    }  # fmt: skip
    assert 0 < found[CONDITIONS[0], "all"] < 1
    assert found[CONDITIONS[0], "all"] != found[CONDITIONS[1], "all"], "the condition reaches the model"


def test_results_name_everything_that_decided_them(model: Path, questions: Path, whole: Path) -> None:
    results = read_results(whole)
    assert results.engine == "transformers"
    assert {"torch", "transformers"} <= results.engine_versions.keys()
    assert results.model.name == "tiny"
    assert results.model.sha256 is not None
    assert results.suites[0].files[0].num_bytes == questions.stat().st_size
    assert all(question.num_tokens and question.finish for question in results.questions)
    assert str(model) not in (whole / "results.json").read_text(encoding="utf-8")


def test_a_changed_model_is_another_model(model: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    before = read_results(whole).model
    assert model_facts(load_served_model(other)) == before, "a folder may have any name"
    config = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": config["eos_token_id"][:1]}))
    after = model_facts(load_served_model(other))
    assert after.sha256 != before.sha256
    assert after.weights_sha256 == before.weights_sha256


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_cut_off_and_started_again_gives_the_same_results(
    sent: signal.Signals, model: Path, questions: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = [str(model), "--suite", "held-out", "--data", str(questions), "--out", str(tmp_path)]
    arguments += ["--max-new-tokens", "6", "--parallel", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answers = tmp_path / "answers.jsonl"
    process = start_rank("tests.support.slow_eval", arguments, environment, fork=not torch.cuda.is_available())
    while process.poll() is None and lines_of(answers) < 4:
        time.sleep(0.002)
    process.send_signal(sent)
    message, _ = process.communicate(timeout=120)
    num_kept = lines_of(answers)
    assert 4 <= num_kept < 2 * NUM_QUESTIONS, message
    assert not (tmp_path / "results.json").exists()
    if sent == signal.SIGINT:
        assert process.returncode == 75
        assert "of 24 answers are kept; start the same command again to continue" in message
    run(model, questions, tmp_path)
    assert without_times(tmp_path / "results.json") == without_times(whole / "results.json")
    assert lines_of(answers) == 2 * NUM_QUESTIONS, "nothing was asked twice"


def test_the_command_prints_a_table_and_compares(
    model: Path, questions: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(whole / "answers.jsonl", tmp_path)
    command = ["eval", str(model), "--suite", "held-out", "--data", str(questions), "--max-new-tokens", "6"]
    assert main([*command, "--out", str(tmp_path), "--condition", "GPT3", "--against", str(whole)]) == 0
    text = capsys.readouterr().out
    assert "held-out" in text
    assert "GPT3" in text
    assert "+0.0 % [" in text, "the same model against itself"
    assert json.loads((tmp_path / "comparison.json").read_text())["differences"][0]["won"] == []


def of_condition(results: EvalResults, condition: str) -> EvalResults:
    questions = tuple(question for question in results.questions if question.condition == condition)
    return replace(results, conditions=(condition,), questions=questions)


def test_comparison_lists_what_was_won_and_lost(whole: Path) -> None:
    both = read_results(whole)
    first, second = (of_condition(both, condition) for condition in CONDITIONS)
    [difference] = compare(first, second).differences
    values = [{question.id: question.value for question in results.questions} for results in (first, second)]
    assert set(difference.lost) == {id for id in values[0] if values[0][id] == 1.0 and values[1][id] == 0.0}
    assert set(difference.won) == {id for id in values[0] if values[0][id] == 0.0 and values[1][id] == 1.0}
    assert difference.lost
    [paired] = both.paired
    assert paired.difference == difference.row.difference
    with pytest.raises(UserError, match="has other conditions"):
        compare(first, replace(second, conditions=("x", "y")))


def test_other_questions_are_not_compared(whole: Path) -> None:
    both = read_results(whole)
    fewer = replace(both, questions=tuple(question for question in both.questions if question.task != "task 1"))
    with pytest.raises(UserError, match="4 questions of held-out were asked of only one of the two"):
        compare(fewer, both)
    [suite] = both.suites
    for change in ({"files": (replace(suite.files[0], sha256="0" * 64),)}, {"version": 2}):
        with pytest.raises(UserError, match="was asked held-out from other data, or by another version"):
            compare(replace(both, suites=(replace(suite, **change),)), both)
    with pytest.raises(UserError, match="has none of these suites"):
        compare(replace(both, suites=()), both)


class FakeEngine:
    """Starts when it is allowed to, and says "no" to everything. fails: whether it cannot start."""

    name, versions, unsupported, context_tokens = "fake", {"fake": "1"}, dict[str, str](), 256

    def __init__(self, *, fails: bool = False) -> None:
        self.fails, self.allowed, self.log = fails, asyncio.Event(), list[str]()

    async def start(self) -> None:
        self.log.append("started")
        if self.fails:
            raise UserError("the model", "cannot be loaded")
        await asyncio.wait_for(self.allowed.wait(), timeout=120)

    async def close(self) -> None:
        self.log.append("closed")

    def is_ready(self) -> bool:
        return self.allowed.is_set()

    async def stream(self, prompt_ids: Sequence[int], settings: AnswerSettings) -> AsyncIterator[Piece]:
        yield Piece(text=" no", num_tokens=2, finish="stop")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """It may start as soon as all prompts are made, and logs when the first one and the last one are."""
    fake, make_prompt = FakeEngine(), ExportRespondent.prompt

    def prompt(self: ExportRespondent, messages: Sequence[Message], condition: str | None) -> Prompt:
        fake.log.append("prompt")
        if fake.log.count("prompt") == 2 * 40:
            fake.allowed.set()
        return make_prompt(self, messages, condition)

    monkeypatch.setattr("ochat_train.respondents.evaluation.make_engine", lambda *_, **__: fake)
    monkeypatch.setattr(ExportRespondent, "prompt", prompt)
    return fake


@pytest.fixture
def many_questions(tmp_path: Path) -> Path:
    path = tmp_path / "many.jsonl"
    write_jsonl(path, [{"question": f"What is number {n}?", "answer": "no"} for n in range(40)])
    return path


def test_prompts_beyond_the_context_are_named(model: Path, engine: FakeEngine, tmp_path: Path) -> None:
    engine.allowed.set()
    path = tmp_path / "held_out.jsonl"
    served = load_served_model(model)
    assert served.context_tokens == engine.context_tokens
    lengths = [len(served.prompt_ids([{"role": "user", "content": "x"}], condition=name)) for name in CONDITIONS]
    tight = "x" + " x" * ((served.context_tokens - max(lengths) - 2) // 2)
    write_jsonl(path, [{"question": text, "answer": "x"} for text in ("x " * 400, tight, "x")])
    said: list[str] = []
    results = run_eval(options(model, path, tmp_path / "out"), say=said.append).results
    assert [question.status for question in results.questions] == ["too_long", "scored", "scored"] * 2
    assert results.num_failed == 0
    assert "prompts that do not fit into the context, are not asked, and are in no score: 2" in said
    assert "prompts that leave less room in the context than the longest answer needs: 2" in said


def test_what_will_be_done_is_said_first(model: Path, questions: Path, engine: FakeEngine, tmp_path: Path) -> None:
    engine.allowed.set()
    said: list[str] = []
    run_eval(options(model, questions, tmp_path, settings={"limit": 4}), say=said.append)
    assert said[:2] == [
        "held-out: 4 of 12 questions, a random sample; answers of at most 6 tokens",
        f"8 answers under 2 conditions (GPT4 Correct, GPT3); kept in {tmp_path}",
    ]
    assert not any("room" in line or "longer" in line for line in said), "all of it fits"


def test_prompts_are_made_while_the_model_starts(
    model: Path, many_questions: Path, engine: FakeEngine, tmp_path: Path
) -> None:
    results = run(model, many_questions, tmp_path / "out")
    assert results.scores[0].score is not None
    assert results.scores[0].score.mean == 1.0
    assert engine.log.index("started") < 2, "before the second prompt"
    assert engine.log[-1] == "closed"
    engine.log.clear()
    assert run(model, many_questions, tmp_path / "out") == results
    assert "started" not in engine.log, "nothing is left to ask"
    more = run(model, many_questions, tmp_path / "out", settings={"temperature": 1.0})
    assert more.num_failed == 0
    assert engine.log.count("started") == 1, "after the prompts, because some answers are kept"


def test_a_model_that_cannot_start_ends_the_planning(
    model: Path, many_questions: Path, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.fails = True
    with pytest.raises(UserError, match="cannot be loaded"):
        run(model, many_questions, tmp_path / "out")
    assert engine.log.count("prompt") < 80
    assert engine.log[-1] == "closed"


def test_conditions_by_their_names_and_those_of_classes(model: Path, tmp_path: Path) -> None:
    served = load_served_model(model)
    assert chosen_conditions(served, "all", any_condition=False) == CONDITIONS
    assert chosen_conditions(served, "default", any_condition=False) == ("GPT4 Correct",)
    assert chosen_conditions(served, "GPT3, GPT4 Correct", any_condition=False) == ("GPT3", "GPT4 Correct")
    assert chosen_conditions(served, "GPT5", any_condition=True) == ("GPT5",)
    with pytest.raises(UserError, match=r"no class was trained under 'GPT5'; trained: 'GPT4 Correct', 'GPT3'"):
        chosen_conditions(served, "GPT3,GPT5", any_condition=False)
    with pytest.raises(UserError, match="no class was trained under ''"):
        chosen_conditions(served, "", any_condition=False)
    mark = {"recipe": {"data": {"condition_dropout": 0.3}}}
    (tmp_path / "ochat.json").write_text(json.dumps(mark))
    assert chosen_conditions(replace(served, folder=tmp_path), "", any_condition=False) == ("",), "as `ochat serve`"
