"""Sessions, commands and saved chats as values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_pipeline.read.rows import parse_row
from data_pipeline.settings.sources import SourceSettings
from ochat_train.chat.answerer import ChatError
from ochat_train.chat.commands import COMMANDS, Call, help_text, read_line
from ochat_train.chat.saved import save
from ochat_train.chat.session import Lane, Session, Turn
from tests.support.processes import ROOT


def turn(number: int, condition: str | None = "A", *, is_whole: bool = True) -> Turn:
    return Turn(
        number=number, user=f"u{number}", answer=f"a{number} {condition}", condition=condition, is_whole=is_whole
    )


def test_other_conditions_continue_the_history_and_known_ones_keep_theirs() -> None:
    session = Session(lanes=(Lane(condition="A"),)).answered([turn(1)])
    both = session.under(["B", "A"])
    assert [(lane.condition, lane.turns) for lane in both.lanes] == [("B", (turn(1),)), ("A", (turn(1),))]
    both = both.answered([turn(2, "B"), None])
    assert both.next_number == 3
    assert both.under(["A"]).lanes == (Lane(condition="A", turns=(turn(1),)),)
    undone, message = both.undone()
    assert message == "u2"
    assert [lane.turns for lane in undone.lanes] == [(turn(1),), (turn(1),)], (
        "only the lane with the last message loses it"
    )
    assert undone.undone()[0].undone() == (undone.undone()[0], None)
    assert both.reset().next_number == 1


def test_messages_are_those_of_the_lane() -> None:
    lane = Lane(condition="A", turns=(turn(1),))
    assert lane.messages("Be brief.", "next") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "u1"},
        {"role": "assistant", "content": "a1 A"},
        {"role": "user", "content": "next"},
    ]
    assert lane.messages("")[0]["role"] == "user"


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("hello\n", "hello"),
        ("  two words \r\n", "  two words "),
        ("//etc\n", "/etc"),
        ("\n", None),
        ("/condition GPT4 Correct\n", Call(name="condition", argument="GPT4 Correct")),
        ("/condition\n", Call(name="condition", argument="")),
        ("/save  a b.jsonl ", Call(name="save", argument="a b.jsonl")),
    ],
)
def test_lines_are_messages_or_commands(line: str, read: Call | str | None) -> None:
    assert read_line(line) == read


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("/conditoin GPT3", "unknown command '/conditoin'; did you mean `/condition`?\ncommands: /condition /compare"),
        ("/ what", "unknown command '/'"),
        ("/save", "/save FILE"),
        ("/undo 3", "/undo takes nothing after it, not '3'"),
        ("a\ufdd0b", "U+FDD0"),
        ("half \ud83d", "surrogate"),
    ],
)
def test_what_is_not_a_command_or_a_text_is_refused(line: str, problem: str) -> None:
    with pytest.raises(ChatError) as error:
        read_line(line)
    assert problem in str(error.value)


def test_the_help_has_every_command() -> None:
    assert all(f"/{command.name} " in help_text() and command.meaning in help_text() for command in COMMANDS)


def test_the_page_has_every_command() -> None:
    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8").replace("<code>", "`").replace("</code>", "`")
    rows = re.findall(r"^\| `/([a-z-]+) ?(.*?)` \| (.*) \|$", page.replace("&#124;", "|"), flags=re.MULTILINE)
    assert rows == [(command.name, command.argument, command.meaning) for command in COMMANDS]


def test_a_saved_chat_is_training_data(tmp_path: Path) -> None:
    """`ochat prepare` reads it, and nobody trains on an answer that ends in the middle."""
    lanes = (
        Lane(condition=None, turns=(turn(1, None), turn(2, "A"))),
        Lane(condition="B", turns=(turn(1), turn(2, "B", is_whole=False))),
    )
    session = Session(lanes=lanes, system="Be brief.")
    path = tmp_path / "chat.jsonl"
    said = save(session, path, model="small", default="A")
    assert said == (
        f"{path}: 2 conversations, format `messages`; 1 of the answers end in the middle, and have `weight: 0`; "
        "without `condition` where it changed during a conversation"
    )
    first, second = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert (first["condition"], "condition" in second) == ("A", False)
    assert [message.get("weight") for message in second["messages"]] == [None, None, None, None, 0]
    source = SourceSettings.model_validate({"path": str(path), "format": "messages", "class": "expert"})
    read = parse_row(second, place="chat.jsonl:2", source=source)
    assert read.system == "Be brief."
    assert [(message.content, message.weight) for message in read.messages] == [
        ("u1", None),
        ("a1 A", None),
        ("u2", None),
        ("a2 B", 0.0),
    ]
    with pytest.raises(ChatError, match="exists"):
        save(session, path, model="small", default="A")
    with pytest.raises(ChatError, match="nothing to save"):
        save(session.reset(), tmp_path / "other.jsonl", model="small", default="A")
    with pytest.raises(ChatError, match="No such file"):
        save(session, tmp_path / "no" / "chat.jsonl", model="small", default="A")
