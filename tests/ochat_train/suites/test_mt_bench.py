"""MT-Bench: what a judge is asked, what is made of its words, and a judge that fails or is asked again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.suites.ask import Patience
from ochat_train.suites.data import SuiteData
from ochat_train.suites.judge import JUDGEMENTS_FILE, Judge, judge_all, rating_of
from ochat_train.suites.mt_bench import ABOUT_REFERENCE, ABOUT_SECOND_TURN, INSTRUCTIONS, SUITE, judge_prompt
from ochat_train.suites.suite import Answer, Question, Scored, Suite, SuiteOptions, Unscored

ROWS: list[dict[str, Any]] = [
    {"question_id": 1, "category": "writing", "turns": ["Write a line.", "Shorten it."]},
    {"question_id": 2, "category": "math", "turns": ["1 + 1?", "Times 3?"], "reference": ["It is 2.", "It is 6."]},
    {"question_id": 3, "category": "writing", "turns": ["Say no.", "Why?"], "reference": ["unused", "unused"]},
]


class StandIn(ThreadingHTTPServer):
    """A judge. said: part of a prompt -> what it answers in turn: a text, or a status with which it refuses.

    Anything else is answered with the rating 7.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.said: dict[str, list[str | int]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def reply(self, prompt: str) -> str | int:
        for part, replies in self.said.items():
            if part in prompt and replies:
                return replies.pop(0)
        return "Fine.\n[[7]]"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.add(self.headers.get("Authorization"))
        reply = self.server.reply(body["messages"][-1]["content"]) if self.path == "/v1/chat/completions" else 404
        if isinstance(reply, int):
            self.send_response(reply)
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        choices = [{"message": {"role": "assistant", "content": reply}}]
        data = json.dumps({"model": "judge-7", "system_fingerprint": "fp1", "choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as started:
        threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield started
        started.shutdown()


def judge_of(server: StandIn, folder: Path, **more: Any) -> Judge:
    patience = Patience(num_tries=3, first_wait_seconds=0.0, longest_wait_seconds=0.0, timeout_seconds=10.0)
    return Judge(url=server.url, model="judge", folder=folder, patience=patience, num_parallel=2, **more)


def suite_of(folder: Path, judge: Judge | None, rows: list[dict[str, Any]] = ROWS) -> Suite:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SUITE.make(SuiteOptions(data=SuiteData(file), judge=judge))


def answered(suite: Suite) -> list[tuple[Question, Answer]]:
    return [
        (
            question,
            Answer(texts=(f"A{question.id}", f"B{question.id}"), num_tokens=4, finish="stop", started=0.0, ended=1.0),
        )
        for question in suite.questions
    ]


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good.\n[[8]]", 8.0),
        ("[[8]] because it is good.", 8.0),
        ("It gives itself [[10]], without a reason.\n\nRating: [[ 3.5 ]]", 3.5),
        ("Between [[4]] and [[5]]: [[4.5]].", 4.5),
        ("8 of 10", None),
        ("Rating: [8]", None),
        ("[[rating]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("First [[7]], no: [[70]]", None),
        ("", None),
    ],
)
def test_the_rating_is_the_last_one_in_the_words_of_the_judge(text: str, rating: float | None) -> None:
    assert rating_of(text) == rating


def test_a_judge_sees_the_conversation_up_to_the_turn_it_rates(tmp_path: Path, server: StandIn) -> None:
    writing, math, _ = suite_of(tmp_path, judge_of(server, tmp_path)).questions
    first, second = (judge_prompt(math, ("2", "6"), turn) for turn in (0, 1))
    assert first[0]["content"] == f"{INSTRUCTIONS}\n\n{ABOUT_REFERENCE}"
    assert second[0]["content"] == f"{INSTRUCTIONS}\n\n{ABOUT_SECOND_TURN}\n\n{ABOUT_REFERENCE}"
    assert first[1]["content"] == (
        "=== user's question ===\n1 + 1?\n\n=== reference answer ===\nIt is 2.\n\n"
        "=== assistant's answer, the one to rate ===\n2\n\n=== end ==="
    )
    assert second[1]["content"] == (
        "=== user's question ===\n1 + 1?\n\n=== reference answer ===\nIt is 2.\n\n=== assistant's answer ===\n2\n\n"
        "=== user's question ===\nTimes 3?\n\n=== reference answer ===\nIt is 6.\n\n"
        "=== assistant's answer, the one to rate ===\n6\n\n=== end ==="
    )
    assert judge_prompt(writing, ("a", "b"), 0)[0]["content"] == INSTRUCTIONS


def test_questions_have_the_temperature_of_their_category(tmp_path: Path, server: StandIn) -> None:
    suite = suite_of(tmp_path, judge_of(server, tmp_path), [*ROWS, {**ROWS[0], "question_id": 9, "category": "new"}])
    assert [question.temperature for question in suite.questions] == [0.7, 0.0, 0.7, 0.7]
    assert [question.details["references"] for question in suite.questions] == [[], ["It is 2.", "It is 6."], [], []]
    assert (suite.highest, suite.metric) == (10.0, "points")
    assert suite.facts["judge"] == "judge"


def test_scores_are_means_of_both_turns_with_the_name_of_the_judge(tmp_path: Path, server: StandIn) -> None:
    server.said = {"rate ===\nA1": ["Poor [[2]]"], "rate ===\nB2": ["Perfect [[10]]"]}
    suite = suite_of(tmp_path, judge_of(server, tmp_path, key="sk-1"))
    scores = suite.score(answered(suite))
    assert [score.value for score in scores if isinstance(score, Scored)] == [4.5, 8.5, 7.0]
    first = scores[0]
    assert isinstance(first, Scored)
    assert first.others == {"turn 1": 2.0, "turn 2": 7.0}
    assert first.details == {"judgements": ["Poor [[2]]", "Fine.\n[[7]]"], "judge": ["judge-7 fp1"]}
    assert {(body["model"], body["temperature"]) for body in server.bodies} == {("judge", 0.0)}
    assert server.keys == {"Bearer sk-1"}
    assert "sk-1" not in (tmp_path / JUDGEMENTS_FILE).read_text()


def test_what_is_not_rated_is_no_score_and_only_that_is_asked_again(tmp_path: Path, server: StandIn) -> None:
    """Failures that pass are tried again; a judge that gives no rating twice leaves the question without a score."""
    server.said = {
        "rate ===\nA1": [503, 429, "Late [[3]]"],
        "rate ===\nA2": ["No rating.", "Still none."],
        "rate ===\nB3": ["", "x", "no"],
    }
    suite = suite_of(tmp_path, judge_of(server, tmp_path))
    first, second, third = suite.score(answered(suite))
    assert isinstance(first, Scored)
    assert first.value == 5.0
    assert second == Unscored(reason="the judge: no rating in 'Still none.'")
    assert third == Unscored(reason="the judge: no rating in 'no'")
    num_asked = len(server.bodies)
    again = suite_of(tmp_path, judge_of(server, tmp_path)).score(answered(suite))
    assert [score.value for score in again if isinstance(score, Scored)] == [5.0, 7.0, 7.0]
    assert len(server.bodies) == num_asked + 2  # the two without a rating
    judge_all(judge_of(server, tmp_path), [[{"role": "user", "content": "another prompt"}]])  # the control
    assert len(server.bodies) == num_asked + 3


def test_a_judge_that_does_not_answer_is_counted_and_one_that_refuses_ends_the_run(tmp_path: Path) -> None:
    with StandIn() as server:
        gone = judge_of(server, tmp_path)
    [found] = judge_all(gone, [[{"role": "user", "content": "x"}]])
    assert found == Unscored(reason="the judge: no answer (ConnectError)")


def test_a_refused_key_ends_the_run(tmp_path: Path, server: StandIn) -> None:
    server.said = {"x": [401]}
    with pytest.raises(UserError, match=r"--judge http.*: answers with status 401"):
        judge_all(judge_of(server, tmp_path), [[{"role": "user", "content": "x"}]])


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_addresses(end: str, tmp_path: Path) -> None:
    assert Judge(url=f"http://h{end}", model="m", folder=tmp_path).endpoint == "http://h/v1/chat/completions"


@pytest.mark.parametrize(
    "change", [{"turns": []}, {"turns": ["a", 1]}, {"category": None}, {"reference": ["a", "b", "c"]}, {"reference": 1}]
)
def test_damaged_questions_are_refused(change: dict[str, Any], tmp_path: Path, server: StandIn) -> None:
    with pytest.raises(UserError, match=r"questions.jsonl:1: "):
        suite_of(tmp_path, judge_of(server, tmp_path), [{**ROWS[0], **change}])


def test_no_judge_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a judge"):
        suite_of(tmp_path, None)


def test_reference_answers_of_a_folder_are_found(tmp_path: Path, server: StandIn) -> None:
    """The layout in which the benchmark is published."""
    folder = tmp_path / "mt_bench"
    (folder / "reference_answer").mkdir(parents=True)
    rows = [{key: value for key, value in row.items() if key != "reference"} for row in ROWS]
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = {"question_id": 2, "choices": [{"index": 0, "turns": ["two", "six"]}]}
    (folder / "reference_answer" / "gpt-4.jsonl").write_text(json.dumps(reference) + "\n")
    suite = SUITE.make(SuiteOptions(data=SuiteData(folder), judge=judge_of(server, tmp_path)))
    assert [question.details["references"] for question in suite.questions] == [[], ["two", "six"], []]
    assert len(suite.files) == 2


def test_a_proxy_of_the_environment_is_not_asked_for_a_judge_of_this_machine(
    tmp_path: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is at the proxy's address. The control is a judge elsewhere; there the stand-in is the proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    judge, prompt = judge_of(server, tmp_path), [{"role": "user", "content": "x"}]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    [here] = judge_all(judge, [prompt])
    assert (type(here).__name__, len(server.bodies)) == ("Judgement", 1)
    monkeypatch.setenv("http_proxy", server.url)
    with pytest.raises(UserError, match="404"):  # a proxy gets the whole address as the path
        judge_all(replace(judge, url="http://judge.example:80", folder=tmp_path / "other"), [prompt])
    assert len(server.bodies) == 2
