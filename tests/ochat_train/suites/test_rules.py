"""Each rule on answers of its own kind, with what it overlooks."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.suites.numbers import last_number
from ochat_train.suites.rules import RULES
from ochat_train.suites.stated import comparable, stated_letter, stated_text
from ochat_train.suites.suite import Answer, Scored, Suite, SuiteOptions
from ochat_train.suites.table import make_suites
from tests.support.rows import write_jsonl

LETTERS = ("A", "B", "C", "D")


def answer_of(text: str) -> Answer:
    return Answer(texts=(text,), num_tokens=1, finish="stop", started=0.0, ended=1.0)


def scores(suite: Suite, *texts: str) -> list[Scored]:
    """One answer for each question of the suite."""
    found = suite.score([(q, answer_of(text)) for q, text in zip(suite.questions, texts, strict=True)])
    assert all(isinstance(scored, Scored) for scored in found)
    return list(found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "answer", "found", "is_answer"),
    [
        ("first letter A-F", "it is (B)", "B", True),
        ("first letter A-F", "Answer: B", "A", True),  # what the card's rule overlooks
        ("first letter A-F", "(F), though there is no F", "F", True),
        ("first letter A-F", "I do not know", None, False),
        ("first letter A-F", "", None, False),
        ("first option letter", "Fine: D", "D", True),
        ("first option letter", "it is (b)", None, False),
        ("BBH choice", "So the answer is (C).", "(C)", True),
        ("BBH choice", "the answer is (B) and not (A)", "(A)", True),  # in the order of the alphabet
        ("BBH choice", "the answer is (A). Wait, the answer is (D).", "(D)", True),
        ("BBH choice", "the answer is B", "B", False),
        ("BBH choice", "The answer is(B)", "The answer is(B)", False),  # no space after the phrase
        ("BBH choice", "(B)", "(B)", False),  # compared, but not answered
        ("BBH text", "So the answer is True.", "True", True),
        ("BBH text", "the answer is ] ] )", "] ] )", True),
        ("BBH text", "the answer is 3.14", "3.14", True),
        ("BBH text", "the answer is a b c..", "a b c.", True),
        ("BBH text", "False", "False", False),
        ("BBH text", "the answer is ", "", False),
        ("MMLU", "The answer is (D).", "(D)", True),
        ("MMLU", "the answer is:(B)", "(B)", True),
        ("MMLU", "The Answer is (D)", "(C)", False),
        ("MMLU", "the answer is (E)", "(C)", False),
        ("MMLU", "", "(C)", False),
        ("last digits", "so 18 eggs", "18", True),
        ("last digits", "1,234.50 dollars", "234.50", True),
        ("last digits", "-5", "5", True),
        ("last digits", "none", "none", False),
        ("stated", "The answer is (B).", "B", True),
        ("stated", "The answer is B, because A is wrong", "B", True),
        ("stated", "Answer: B", "B", True),
        ("stated", "**Answer:** (C)", "C", True),
        ("stated", "The correct answer is **D**", "D", True),
        ("stated", "the answer is (A)... no, the answer is (B)", "B", True),
        ("stated", "I choose option C.", "C", True),
        ("stated", "B", "B", True),
        ("stated", "B.", "B", True),
        ("stated", " (B) because of it", "B", True),
        ("stated", "B: Paris", "B", True),
        ("stated", "It must be (D) since nothing else fits", "D", True),
        ("stated", "It is not (A), so it is (B)", "B", True),
        ("stated", "(A) is incorrect.", None, False),
        ("stated", "The answer is not (A).", None, False),
        ("stated", "The answer is not (A) but (B).", "B", True),
        ("stated", "The answer is (A) or (B).", None, False),
        ("stated", "(A) or (B)", None, False),
        ("stated", "Both (A) and (C).", None, False),
        ("stated", "(A) red\n(B) blue\n(C) green", None, False),  # the options once more
        ("stated", "A:", None, False),  # the label of an answer
        ("stated", "A:\n\nA:", None, False),
        ("stated", "A: B", "B", True),
        ("stated", "C: Sam", "C", True),
        ("stated", "A: The answer is (C)", "C", True),
        ("stated", "The answer is (C).\n\nQ: And this?\nA: The answer is (D).", "C", True),  # the next one is its own
        ("stated", "The adjective order that Option (A) has is [3. age]", None, False),
        ("stated", "The answer is (C). The third option (B) is not logical", "C", True),
        ("stated", "Option B is correct", "B", True),
        ("stated", "I would go with option D.", "D", True),
        ("stated", "A is wrong. So the answer must be B.", "B", True),
        ("stated", "The answer is A dog.", None, False),
        ("stated", "The answer is b.", "B", True),
        ("stated", "(b)", "B", True),
        ("stated", "The answer is 'B'.", "B", True),
        ("stated", "### Answer\nC", "C", True),
        ("stated", "<answer>B</answer>", "B", True),
        ("stated", r"The answer is $\boxed{\text{(B)}}$.", "B", True),
        ("stated", r"\boxed{B}", "B", True),
        ("stated", "\u7b54\u6848\u662fB", "B", True),
        ("stated", "\u6545\u9009\uff1a\uff08B\uff09", "B", True),
        ("stated", "A man walks into Berlin", None, False),
        ("stated", "the answer is Berlin", None, False),
        ("stated", "the answer is (F)", None, False),  # no such option
        ("stated", "Because they said so", None, False),
        ("stated", "", None, False),
        ("stated text", "So the answer is **Yes**.", "yes", True),
        ("stated text", "The answer is no.\n\nThe sentence is not plausible.", "no", True),
        ("stated text", "the answer is True.\n\nQ: And now?\nA: The answer is False.", "true", True),
        ("stated text", "Answer: $\\boxed{\\text{12}}$", "12", True),
        ("stated text", "the answer is ] ] )", "] ] )", True),
        ("stated text", "the answer is -3.5.", "-3.5", True),
        ("stated text", "the answer is", None, False),
        ("stated text", "True", None, False),
    ],
)
def test_what_a_rule_finds(rule: str, answer: str, found: str | None, is_answer: bool) -> None:
    result = RULES[rule].find(answer, LETTERS)
    assert (result.text, result.is_answer) == (found, is_answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 18", "18"),
        ("3 + 4 = 7\n#### 7\nThat took 2 steps", "7"),
        ("so he pays $1,234.50.", "2469/2"),
        ("1,234,567 in all", "1234567"),
        ("12,34", "34"),  # a list, no thousands
        ("-7", "-7"),
        ("the change is −7", "-7"),
        ("10 - 3 = 7", "7"),
        ("5-3", "3"),
        ("she eats 3/4", "3/4"),
        ("1/0", None),
        (".5", "1/2"),
        ("no number", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_the_number_of_an_answer(text: str, expected: str | None) -> None:
    number = last_number(text)
    assert (None if number is None else str(number)) == expected


# ---- the five suites of the card ----

# Own questions in OpenChat's layout: folder of the benchmark, file of the task.
OPENCHAT = {
    "zs/agieval/riddles.zero-shot": {"question": "Q: A fish? (A)cod (B)cow", "label": ["A"], "options": ["A", "B"]},
    "zs/bbh_mc_orca/pets": {"question": "Barks? (A) cat (B) dog", "label": ["B", "C"], "options": ["A", "B", "C"]},
    "zs/truthfulqa_orca/facts": {"question": "Is ice warm? (A) yes (B) no", "label": ["B"], "options": ["A", "B"]},
    "fs_cothub/bbh/letters": {"question": "Q: first of a b?\nA:", "label": ["(A)"], "options": ["(A)", "(B)"]},
    "fs_cothub/bbh/sums": {"question": "Q: 2 + 2?\nA:", "label": ["4"], "options": None},
    "fs_cothub/mmlu/colours": {"question": "Snow is\n(A) red (B) blue (C) white (D) green", "label": "(C)",
                               "options": ["(A)", "(B)", "(C)", "(D)"]},
}  # fmt: skip


def write_openchat(folder: Path) -> Path:
    for name, row in OPENCHAT.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [row])
    return folder


@pytest.fixture(params=["folder", "tar"])
def openchat(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = write_openchat(tmp_path / "eval_data")
    if request.param == "folder":
        return folder
    archive = tmp_path / "eval_data.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder, arcname=".")
    return archive


def test_the_suites_of_the_card_are_read_from_a_folder_or_an_archive(openchat: Path) -> None:
    suites = make_suites(["openchat"], [str(openchat)], SuiteOptions())
    assert [suite.name for suite in suites] == ["agieval", "bbh-mc", "bbh-cot", "truthfulqa", "mmlu"]
    assert [question.id for question in suites[2].questions] == ["letters/1", "sums/1"]
    assert suites[0].questions[0].turns == ("Q: A fish? (A)cod (B)cow",)
    assert suites[0].questions[0].task == "riddles"
    assert all(len(file.sha256) == 64 for suite in suites for file in suite.files)


def test_their_answers_are_scored_by_the_rule_of_the_card_and_strictly(openchat: Path) -> None:
    agieval, bbh, cot, truthful, mmlu = make_suites(["openchat"], [str(openchat)], SuiteOptions())
    [careless] = scores(agieval, "Answer: B")
    assert (careless.value, careless.others) == (1.0, {"strict": 0.0})
    [second] = scores(bbh, "the answer is C")
    assert (second.value, second.others) == (1.0, {"strict": 1.0}), "any of several right answers"
    choice, free = scores(cot, "the answer is (A)", "the answer is 4.")
    assert (choice.value, choice.others, free.value, free.others) == (1.0, {"strict": 1.0}, 1.0, {"strict": 1.0})
    choice, free = scores(cot, "(A)", "4")
    assert (choice.value, choice.is_answered, choice.others) == (1.0, False, {"strict": 1.0})
    assert (free.value, free.is_answered, free.others) == (1.0, False, {"strict": 0.0})
    [none] = scores(truthful, "")
    assert (none.value, none.is_answered) == (0.0, False)
    [silent] = scores(mmlu, "")
    assert (silent.value, silent.is_answered, silent.found, silent.others) == (1.0, False, None, {"strict": 0.0})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "label": ["A"]}, "has no options, and agieval is multiple choice"),
        ({"question": "", "label": ["A"], "options": ["A"]}, "expected a text `question`"),
        ({"question": "q", "label": [], "options": ["A"]}, "expected a right answer"),
        ({"question": "q", "label": ["A"], "options": [1]}, "expected a list of letters"),
    ],
)
def test_rows_that_are_no_questions_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "agieval" / "t.jsonl"
    path.parent.mkdir()
    write_jsonl(path, [row])
    with pytest.raises(UserError, match=rf"t\.jsonl:1: {message}"):
        make_suites(["agieval"], [str(tmp_path)], SuiteOptions())


def test_a_suite_without_its_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data: the suite mmlu needs a folder mmlu"):
        make_suites(["mmlu"], [], SuiteOptions())
    with pytest.raises(UserError, match="holds no questions of the suite openchat"):
        make_suites(["openchat"], [str(tmp_path)], SuiteOptions())
    with pytest.raises(UserError, match=r"mmul is no suite; did you mean `mmlu`\?"):
        make_suites(["mmul"], [], SuiteOptions())
    (tmp_path / "broken.tar.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="is damaged, not a tar archive"):
        make_suites(["mmlu"], [str(tmp_path / "broken.tar.xz")], SuiteOptions())
    with pytest.raises(UserError, match="is not there"):
        make_suites(["mmlu"], [str(tmp_path / "nowhere")], SuiteOptions())


# ---- numbers and formulas ----


def test_gsm8k_of_its_authors(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k_test.jsonl"
    write_jsonl(path, [{"question": "How many?", "answer": "2 * 600 = 1200\n#### 1,200"}])
    for data in (str(path), str(tmp_path), f"gsm8k={path}"):
        [suite] = make_suites(["gsm8k"], [data], SuiteOptions())
        assert suite.questions[0].worked.endswith("1,200")
    [right] = scores(suite, "That makes $1,200.00.")
    assert (right.value, right.others) == (1.0, {"card": 0.0})
    [by_card] = scores(suite, "1200")
    assert (by_card.value, by_card.others) == (1.0, {"card": 1.0})
    [none] = scores(suite, "I cannot say")
    assert (none.value, none.is_answered) == (0.0, False)
    write_jsonl(path, [{"question": "How many?", "answer": "1,200"}])
    with pytest.raises(UserError, match="expected a number after `####`"):
        make_suites(["gsm8k"], [str(path)], SuiteOptions())


def conversation(question: str, answer: str, *, is_correct: bool) -> dict[str, Any]:
    items = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"items": items, "condition": "x", "meta": {"is_correct": is_correct}}


def test_gsm8k_of_conversations_counts_what_has_no_right_answer(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    rows = [
        conversation("a", "#### 3", is_correct=False),
        conversation("a", "#### 4", is_correct=True),
        conversation("b", "#### 5", is_correct=False),
        conversation("c", "#### 6", is_correct=True),
        conversation("c", "#### 6.0", is_correct=True),
    ]
    write_jsonl(path, rows)
    [suite] = make_suites(["gsm8k"], [str(path)], SuiteOptions())
    assert [(q.id, q.turns[0], q.right) for q in suite.questions] == [
        ("gsm8k/1", "a", ("4",)),
        ("gsm8k/4", "c", ("6",)),
    ]
    assert suite.left_out == {"problems without a right answer in the file": 1}
    write_jsonl(path, [*rows, conversation("c", "#### 7", is_correct=True)])
    with pytest.raises(UserError, match=r"two\.jsonl:6: is marked right with 7, and an earlier one with 6"):
        make_suites(["gsm8k"], [str(path)], SuiteOptions())


@pytest.mark.parametrize(
    ("answer", "is_right", "is_answered"),
    [
        ("So it is $\\boxed{\\frac{3}{4}}$.", True, True),
        ("\\boxed{\\dfrac34}", True, True),
        ("\\boxed{0.75}", True, True),
        ("\\boxed{3/4}", True, True),
        ("\\boxed{ \\frac {3} {4} }", True, True),
        ("\\boxed{x = \\frac{3}{4}}", True, True),
        ("\\boxed{1} and then \\fbox{\\frac{3}{4}\\text{ units}}", True, True),
        ("the answer is $\\frac{3}{4}$.", True, True),
        ("\\boxed{\\frac{4}{3}}", False, True),
        ("\\boxed{-\\frac{3}{4}}", False, True),
        ("\\boxed{75\\%}", False, True),
        ("\\boxed{\\frac{3}{0}}", False, True),
        ("\\boxed{}", False, False),
        ("\\boxed{", False, False),
        ("three quarters", False, False),
    ],
)
def test_math_compares_spellings_and_values(answer: str, is_right: bool, is_answered: bool, tmp_path: Path) -> None:
    folder = tmp_path / "MATH" / "test" / "algebra"
    folder.mkdir(parents=True)
    problem = {"problem": "What?", "solution": "It is $\\boxed{\\frac34}$.", "type": "Algebra", "level": "Level 1"}
    (folder / "7.json").write_text(json.dumps(problem))
    (tmp_path / "MATH" / "train").mkdir()
    (tmp_path / "MATH" / "train" / "8.json").write_text("{}")
    [suite] = make_suites(["openchat"], [str(tmp_path)], SuiteOptions())
    assert [(question.id, question.task) for question in suite.questions] == [("algebra/7", "Algebra")]
    [scored] = scores(suite, answer)
    assert (bool(scored.value), scored.is_answered) == (is_right, is_answered)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("(1, 2)", "(1,2)", True),
        ("1,234", "1234", True),
        ("90^\\circ", "90", True),
        ("\\left( 3 \\right)", "(3)", True),
        ("\\$5", "5.00", True),
        ("\\sqrt2", "\\sqrt{2}", True),
        ("\\text{Tuesday}", "Tuesday", True),
        ("−3", "-3", True),
        ("2x+2x", "4x", False),
        ("(1,2)", "(2,1)", False),
        ("", "", False),
    ],
)
def test_formulas_that_are_the_same(one: str, other: str, is_same: bool) -> None:
    from ochat_train.suites import math

    assert math.is_same(one, other) is math.is_same(other, one) is is_same


def test_held_out_questions_by_pattern(tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    write_jsonl(path, [{"question": "2 + 2?", "answer": "so 4", "task": "sums"}])
    [whole] = make_suites(["held-out"], [str(tmp_path)], SuiteOptions())
    [last] = make_suites(["held-out"], [str(path)], SuiteOptions(answer_pattern=r"\d+"))
    assert [s.value for suite in (whole, last) for s in scores(suite, "it is 4")] == [0.0, 1.0]
    assert [s.value for suite in (whole, last) for s in scores(suite, " so 4\n")] == [1.0, 1.0]


@pytest.mark.parametrize("mark", ["\n", " ", "*", "$", "\\[", "not (A) ", "thus ", "`"])
def test_a_mark_that_a_model_repeats_ten_thousand_times_takes_no_longer(mark: str) -> None:
    """Work that grows with the square of the length needs minutes for such an answer."""
    repeated = (mark * 40_000)[:40_000]
    stated = "" if mark == "not (A) " else "B"
    assert stated_letter(f"The answer is B. {repeated}", "ABCD") == "B"
    assert stated_letter(f"The answer is {repeated}{stated}", "ABCD") == (stated or None)
    assert stated_text(f"The answer is {repeated}") in (None, comparable(repeated))
