"""Which questions of a benchmark appear in a prepared dataset, against a plain search in texts."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UserError
from ochat_train.suites.contamination import LONGEST_RUN, MOST_SHARED, SHORTEST_RUN, Contamination, contamination
from ochat_train.suites.word_hashes import runs_of, words_of
from tests.support.data import make_job, prepare_rows, rows_of, source
from tests.support.rows import write_jsonl
from tests.support.tokenizers import write_small_tokenizer

WAY_OF_ASKING = "Choose the right one of the answers below and write only its letter in one line"
MANY = [f"{WAY_OF_ASKING}: case{number}" for number in range(MOST_SHARED + 1)]


def spoken(name: str, num_words: int) -> str:
    """A question that shares no word with another one."""
    return " ".join(f"{name}{number}" for number in range(num_words)) + "?"


def part(name: str, start: int, num_words: int) -> str:
    return " ".join(spoken(name, 30).split()[start : start + num_words])


# name -> (the question, a message of the training data, whether it is that question)
CASES: Mapping[str, tuple[str, str, bool]] = {
    "layout": (spoken("Layout", 20), "So:\n" + spoken("LAYOUT", 20).replace(" ", " -\n ,"), True),
    "thirteen": (spoken("thirteen", 20), f"so {part('thirteen', 3, LONGEST_RUN)} indeed", True),
    "twelve": (spoken("twelve", 20), f"so {part('twelve', 3, LONGEST_RUN - 1)} indeed", False),
    "split": (spoken("split", 20), part("split", 0, 10), False),  # the rest is in the next message
    "quoted": (spoken("quoted", SHORTEST_RUN), f"He asked: {spoken('quoted', SHORTEST_RUN)} Nobody knew.", True),
    "changed": (spoken("changed", 9), spoken("changed", 9).replace("4", "four"), False),
    "short": ("Why is short?", "why is SHORT", True),
    "short quoted": ("Why is that?", "He asked: Why is that? Nobody knew.", False),
    "short, more before": ("Or this?", "Now this, or this?", False),
    "short, more behind": ("Or what?", "Or what? Yes.", False),
    "one of many": (MANY[3], MANY[3], True),
    **{f"filler {number}": (text := spoken(f"filler{number}", 9), text, True) for number in range(6)},
}
SEED = 2
NEXT = {"split": part("split", 10, 10)}


@pytest.fixture(scope="module", params=["openchat_3.5", "chatml"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversation for each of the CASES: its message is a user's in every second one, and an answer in the others.

    The seed is one that holds out fillers only.
    """
    folder = tmp_path_factory.mktemp("contamination")
    data = write_jsonl(folder / "rows.jsonl", training_rows())
    prepare_rows(
        make_job(
            folder / "prepared",
            [source(data)],
            write_small_tokenizer(folder / "tokenizer"),
            template=request.param,
            max_length_tokens=512,
            validation_ratio=0.15,
            seed=SEED,
        )
    )
    return folder / "prepared"


def training_rows() -> list[dict[str, Any]]:
    rows = []
    for number, (name, (_, text, _)) in enumerate(CASES.items()):
        texts = [text, NEXT.get(name, "No.")] if number % 2 else [f"Say it, {name}.", "What?", f"So {number}", text]
        rows.append({"id": name, "messages": [message(i, content) for i, content in enumerate(texts)]})
    return rows


def message(number: int, content: str) -> dict[str, Any]:
    return {"role": ("user", "assistant")[number % 2], "content": content}


def asked(prepared: Path, *more: str) -> Contamination:
    return contamination({"all": [question for question, _, _ in CASES.values()] + [*more]}, prepared)["all"]


def test_questions_are_found_by_the_rule_in_the_conversations_that_have_them(prepared: Path) -> None:
    found = asked(prepared, *MANY)
    trained = {row.id for row in rows_of(prepared)}
    held_out = {row.id for row in rows_of(prepared, "validation")}
    assert len(held_out) == 2
    assert all(name.startswith("filler") for name in held_out)
    names = list(CASES)
    by_name = {names[number]: place for number, place in found.seen.items() if number < len(names)}
    assert by_name == {name: name for name, (_, _, is_seen) in CASES.items() if is_seen and name in trained}
    assert found.num_conversations == len(trained) == len(CASES) - 2


def test_what_many_questions_share_is_not_evidence(prepared: Path) -> None:
    both = contamination({"many": [*MANY, WAY_OF_ASKING, "?!"], "fewer": MANY[: MOST_SHARED - 1]}, prepared)
    many, fewer = both["many"], both["fewer"]
    assert set(many.seen) == {3}  # its last 13 words are its own
    assert many.unchecked == {len(MANY), len(MANY) + 1}
    assert len(fewer.seen) == MOST_SHARED - 1  # the control: shared by few enough


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared dataset"):
        contamination({"a": ["a"]}, tmp_path)


def plain_words(text: str) -> list[str]:
    """Words by the rule in the module's docstring, character by character."""
    words, current = [], ""
    for character in unicodedata.normalize("NFKC", text).casefold():
        alone = "\u4e00" <= character < "\ua000"
        if alone or unicodedata.category(character)[0] not in "LNM":
            words += [current] if current else []
            words += [character] if alone else []
            current = ""
        else:
            current += character
    return words + ([current] if current else [])


def test_words_are_those_of_a_plain_search() -> None:
    rng = random.Random(0)
    alphabet = ["a", "B", "é", "7", " ", " ", ".", "-", "\n", "中", "文", "ß", "\u0301", "ﬁ", "🙂", "٣", "_", "\0"]
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(300)]
    found = words_of(texts)
    spelled = [plain_words(text) for text in texts]
    flat = [word for words in spelled for word in words]
    ours = found.hashes[~found.is_separator]
    assert len(ours) == len(flat)
    assert found.counts(len(texts)).tolist() == [*map(len, spelled), 0]
    by_word: dict[str, set[int]] = {}
    for word, value in zip(flat, ours.tolist(), strict=True):
        by_word.setdefault(word, set()).add(value)
    assert all(len(values) == 1 for values in by_word.values())
    assert len({min(values) for values in by_word.values()}) == len(by_word)


def test_runs_are_equal_only_for_equal_words() -> None:
    texts = ["one two three four", "two three four one", "two three four", "ne two three fouro"]
    runs = runs_of(words_of(texts), num_words=3).tolist()
    flat = " | ".join(["", *texts, ""]).split()
    spelled = [tuple(flat[place : place + 3]) for place in range(len(flat) - 2)]
    assert len(runs) == len(spelled) > len(set(spelled)) == len(set(runs))
    assert len(set(zip(runs, spelled, strict=True))) == len(set(runs))
    assert len(runs_of(words_of([]), num_words=13)) == 0
    assert np.unique(words_of(["ab ba aab aba baa"]).hashes).size == 6  # five words and the separator
