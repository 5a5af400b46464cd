"""Asking: many at once, nothing twice, failures named and never scored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.suites.ask import NoAnswer, Patience, TurnAnswer, ask_all
from ochat_train.suites.plan import Plan, plan_evaluation, results_of, sampled
from ochat_train.suites.results import EvalResults, EvalSettings
from ochat_train.suites.results_file import read_results, write_results
from ochat_train.suites.store import AnswerStore, FolderLock
from ochat_train.suites.suite import Message, Question, Scored, Suite, each
from ochat_train.suites.text import results_text
from tests.support.respondents import NO_WAIT, Speaker, asker

CONDITIONS = ("GPT4 Correct", "GPT3")


def counting_suite(num_questions: int = 12, **values: Any) -> Suite:
    """What follows a number: right under the first condition, and one question in three under the second."""
    questions = tuple(
        Question(id=f"next/{n}", task=f"task {n % 2}", turns=(f"after {n}?",), right=(str(n + 1),), worked=str(n + 1))
        for n in range(num_questions)
    )
    score = each(lambda question, answer: Scored(value=float(answer == question.right[0]), is_answered=bool(answer)))
    fixed = {"name": "counting", "title": "Counting", "version": 1, "metric": "accuracy", "rule": "equal"}
    return Suite(**{**fixed, "max_new_tokens": 8, "questions": questions, "score": score, **values})


def say(messages: Sequence[Message], condition: str | None) -> str:
    number = int(messages[-1]["content"].removeprefix("after ").removesuffix("?"))
    return str(number + 1) if condition == "GPT4 Correct" or number % 3 == 0 else str(number)


def run(plan: Plan, folder: Path, **options: Any) -> EvalResults:
    folder.mkdir(exist_ok=True)
    store = AnswerStore(folder)
    values = {"num_parallel": 3, "patience": NO_WAIT, "progress": None, **options}
    failures = asyncio.run(ask_all(plan.asker.respondent, plan.requests, store, **values))
    return results_of(plan, store, failures)


def plan_of(speaker: Speaker, suite: Suite | None = None, **settings: Any) -> Plan:
    return asyncio.run(
        plan_evaluation([suite or counting_suite()], CONDITIONS, asker(speaker), EvalSettings(**settings))
    )


def test_scores_of_every_condition_and_task(tmp_path: Path) -> None:
    results = run(plan_of(Speaker(say)), tmp_path)
    means = {(row.condition, row.task): row.score.mean for row in results.scores if row.score}
    assert means[("GPT4 Correct", None)] == 1.0
    assert means[("GPT3", None)] == pytest.approx(4 / 12)
    assert means[("GPT3", "task 0")] == pytest.approx(2 / 6)
    [paired] = results.paired
    assert paired.difference is not None
    assert paired.difference.mean == pytest.approx(4 / 12 - 1)
    assert (paired.num_first_better, paired.num_second_better) == (8, 0)
    text = results_text(results)
    assert "100.0 % [" in text
    assert "33.3 % [" in text


def test_questions_that_are_there_twice_are_named(tmp_path: Path) -> None:
    suite = counting_suite()
    assert run(plan_of(Speaker(say), suite), tmp_path).suites[0].facts == {}
    first = suite.questions[0]
    more = (replace(first, id="again"), replace(first, id="otherwise", right=("another",)))
    twice = replace(suite, questions=(*suite.questions, *more))
    facts = run(plan_of(Speaker(say), twice), tmp_path).suites[0].facts
    assert facts == {
        "repeated questions": "2 of 14 repeat the text of an earlier one, 1 of them with another right "
        "answer; all of them count"
    }


def test_several_are_asked_at_once_and_no_more(tmp_path: Path) -> None:
    speaker = Speaker(say)
    run(plan_of(speaker), tmp_path, num_parallel=5)
    assert speaker.most_at_once == 5
    assert set(speaker.asked.values()) == {1}


def test_a_second_start_asks_nothing_and_gives_the_same_file(tmp_path: Path) -> None:
    first = write_results(tmp_path, run(plan_of(Speaker(say)), tmp_path)).read_bytes()
    speaker = Speaker(say)
    again = write_results(tmp_path, run(plan_of(speaker), tmp_path)).read_bytes()
    assert again == first
    assert not speaker.asked
    assert read_results(tmp_path).num_failed == 0


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"temperature": 0.5}},
        {"settings": {"max_new_tokens": 3}},
        {"settings": {"few_shot": 1}},
        {"sha256": "2" * 64},
    ],
)
def test_another_model_or_setting_is_asked_again(change: dict[str, Any], tmp_path: Path) -> None:
    run(plan_of(Speaker(say)), tmp_path)
    speaker = Speaker(say)
    who = asker(speaker, sha256=change.get("sha256", "0" * 64))
    settings = EvalSettings(**change.get("settings", {}))
    plan = asyncio.run(plan_evaluation([counting_suite()], CONDITIONS, who, settings))
    run(plan, tmp_path)
    assert sum(speaker.asked.values()) == 24


def test_another_rule_scores_the_same_answers(tmp_path: Path) -> None:
    run(plan_of(Speaker(say)), tmp_path)
    speaker = Speaker(say)
    suite = counting_suite(version=2)
    run(plan_of(speaker, suite), tmp_path)
    assert not speaker.asked


def test_a_greedy_answer_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    run(plan_of(Speaker(say), seed=1), tmp_path)
    greedy, random = Speaker(say), Speaker(say)
    run(plan_of(greedy, seed=2), tmp_path)
    run(plan_of(random, seed=2, temperature=1.0), tmp_path)
    assert (sum(greedy.asked.values()), sum(random.asked.values())) == (0, 24)


def test_what_failed_for_a_while_is_asked_again_and_counted(tmp_path: Path) -> None:
    busy = [NoAnswer("busy", is_temporary=True), NoAnswer("empty answer", is_temporary=True)]
    results = run(plan_of(Speaker(say, failures={"after 4?": busy})), tmp_path)
    assert results.num_failed == 0
    assert results.failed_tries == {"busy": 1, "empty answer": 1}
    assert results.scores[0].score is not None
    assert results.scores[0].score.mean == 1.0
    again = run(plan_of(Speaker(say)), tmp_path)
    assert again == results, "failures that an answer was preceded by are kept with it"


def test_what_failed_for_good_is_never_wrong(tmp_path: Path) -> None:
    refused = {"after 4?": [NoAnswer("refused", is_temporary=False)] * 2}
    results = run(plan_of(Speaker(say, failures=refused)), tmp_path)
    row = results.scores[0]
    assert (row.num_questions, row.num_scored, row.num_failed) == (12, 11, 1)
    assert row.score is not None
    assert row.score.mean == 1.0
    assert results.num_failed == 2
    assert "1 failed" in results_text(results)
    again = run(plan_of(Speaker(say)), tmp_path)
    assert again.num_failed == 0, "it is asked again at the next start"


def test_waits_grow_and_a_server_may_name_its_own(tmp_path: Path) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    failures = [NoAnswer("busy", is_temporary=True) for _ in range(3)]
    failures[1] = NoAnswer("busy", is_temporary=True, wait_seconds=7.0)
    speaker = Speaker(say, failures={"after 0?": failures})
    request, store = plan_of(speaker, counting_suite(1)).requests[0], AnswerStore(tmp_path)
    asyncio.run(ask_all(speaker, [request], store, num_parallel=1, patience=Patience(), sleep=sleep))
    assert waits == [1.0, 7.0, 4.0]


def test_a_dead_model_ends_the_run_and_keeps_the_answers(tmp_path: Path) -> None:
    dead = {f"after {n}?": [NoAnswer("no connection", is_temporary=True)] * 99 for n in range(5, 60)}
    speaker, twice = Speaker(say, failures=dead), Patience(num_tries=2, first_wait_seconds=0.0)
    with pytest.raises(UserError, match=r"9 questions in a row.*no connection"):
        run(plan_of(speaker, counting_suite(60)), tmp_path, num_parallel=1, patience=twice)
    assert sum(speaker.asked.values()) == 5 + 9 * 2
    speaker = Speaker(say)
    run(plan_of(speaker, counting_suite(60)), tmp_path)
    assert sum(speaker.asked.values()) == 2 * 60 - 5


def test_a_try_takes_no_longer_than_its_time(tmp_path: Path) -> None:
    class Slow(Speaker):
        async def answer(self, prompt: Any, settings: Any) -> Any:
            await asyncio.sleep(30)

    plan = plan_of(Slow(say), counting_suite(1))
    patience = Patience(num_tries=2, first_wait_seconds=0.0, timeout_seconds=0.02)
    results = run(plan, tmp_path, patience=patience)
    assert results.num_failed == 2
    assert results.failed_tries == {"no answer within 0.02 seconds": 4}


def test_a_prompt_without_room_is_named_and_not_asked(tmp_path: Path) -> None:
    speaker = Speaker(say, room=lambda text: 0 if text == "after 4?" else 5)
    results = run(plan_of(speaker), tmp_path)
    assert results.scores[0].num_too_long == 1
    assert ("after 4?", "GPT3") not in speaker.asked
    assert {settings.max_new_tokens for settings in speaker.settings} == {5}, "8 tokens do not fit"
    assert results.scores[0].num_had_less_room == 0, "answers of one word fit into 5 tokens"
    text = results_text(results)
    assert "1 too long" in text
    assert "counting, GPT3: 1 of 12 questions do not fit into the context and are in no score: next/4" in text


def test_answers_that_the_context_cuts_are_told_from_those_of_full_length(tmp_path: Path) -> None:
    class Cut(Speaker):
        async def answer(self, prompt: Any, settings: Any) -> Any:
            return TurnAnswer(text="1", num_tokens=settings.max_new_tokens, finish="length")

    def rooms(text: str) -> int:
        return 5 if text in ("after 4?", "after 6?") else 8

    results = run(plan_of(Cut(say, room=rooms)), tmp_path)
    assert [row.num_had_less_room for row in results.scores if row.task is None] == [2, 2]
    assert [row.cut for row in results.scores if row.task is None] == [1.0, 1.0]
    assert {question.id for question in results.questions if question.had_less_room} == {"next/4", "next/6"}
    assert "counting, GPT3: 2 answers were cut before 8 tokens" in results_text(results)
    kept = tmp_path / "answers.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["value"].pop("had_less_room") for line in lines].count(True) == 4
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(plan_of(Cut(say, room=rooms)), tmp_path) == results, "of a version that did not write it down"


def test_a_server_says_by_its_count_that_an_answer_was_cut_early(tmp_path: Path) -> None:
    class Cut(Speaker):
        async def answer(self, prompt: Any, settings: Any) -> Any:
            messages, _ = prompt.content
            number = int(messages[-1]["content"].removeprefix("after ").removesuffix("?"))
            return TurnAnswer(text="1", num_tokens=[8, 3, None][number % 3], finish="length")

    results = run(plan_of(Cut(say)), tmp_path)
    assert results.scores[0].num_had_less_room == 4


def test_each_turn_is_asked_after_the_answer_before(tmp_path: Path) -> None:
    heard: list[Any] = []

    def listen(messages: Sequence[Message], condition: str | None) -> str:
        heard.append([message["content"] for message in messages])
        return f"answer {len(messages)}"

    question = Question(id="two/1", task="", turns=("first", "second"), right=("x",), temperature=0.7)
    suite = counting_suite(questions=(question,))
    plan = asyncio.run(plan_evaluation([suite], [None], asker(Speaker(listen)), EvalSettings()))
    [found] = run(plan, tmp_path).questions
    assert heard == [["first"], ["first", "answer 1", "second"]]
    assert found.texts == ("answer 1", "answer 3")
    assert found.num_tokens == 4
    assert plan.requests[0].settings.temperature == 0.7


def test_a_sample_is_the_same_for_a_seed_and_fair_to_tasks() -> None:
    sizes = {"large": 60, "small": 30, "tiny": 10}
    questions = tuple(Question(id=f"{task}/{n}", task=task, turns=("?",)) for task in sizes for n in range(sizes[task]))
    suite = counting_suite(questions=questions)
    sample = sampled(suite, limit=21, seed=0)
    of_task = [sum(question.task == task for question in sample) for task in sizes]
    assert of_task == [13, 6, 2]  # 12.6, 6.3 and 2.1: the whole parts, and one for the largest rest
    assert sample == sampled(suite, limit=21, seed=0) != sampled(suite, limit=21, seed=1)
    assert sample == sorted(sample, key=questions.index)
    assert len(sampled(suite, limit=None, seed=0)) == len(sampled(suite, limit=500, seed=0)) == 100


def test_examples_are_worked_answers_of_other_questions_of_the_task(tmp_path: Path) -> None:
    plan = plan_of(Speaker(say), few_shot=2)
    for planned in plan.questions:
        contents = [message["content"] for message in planned.request.before]
        assert [message["role"] for message in planned.request.before] == ["user", "assistant"] * 2
        numbers = [int(text.removeprefix("after ").removesuffix("?")) for text in contents[::2]]
        own = int(planned.question.id.removeprefix("next/"))
        assert own not in numbers
        assert {number % 2 for number in numbers} == {own % 2}
        assert contents[1::2] == [str(number + 1) for number in numbers]
    with pytest.raises(UserError, match=r"--few-shot: 6 examples are asked for, and counting has 5 worked answers"):
        plan_of(Speaker(say), few_shot=6)


def test_two_evaluations_do_not_share_a_folder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "out")
    with pytest.raises(UserError, match="another `ochat eval` writes there"):
        FolderLock(tmp_path / "out")
    lock.close()
    FolderLock(tmp_path / "out").close()


def test_damaged_lines_are_asked_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = run(plan_of(Speaker(say)), tmp_path)
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\0" * 40 + b"\n", *lines[1:-1], lines[-1][:30]]))
    speaker = Speaker(say)
    found = run(plan_of(speaker), tmp_path)
    assert sum(speaker.asked.values()) == 2
    assert [question.texts for question in found.questions] == [question.texts for question in whole.questions]
    assert "left out 1 damaged line(s)" in capfd.readouterr().err
