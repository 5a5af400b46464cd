"""The steps that plain messages take at once give what the slow steps give, for every built-in format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from data_pipeline.conversation import Conversation, Message, Role, Segment, Span, TaggedConversation, ToolCall
from data_pipeline.errors import RowError
from data_pipeline.formats.chat import ChatReader
from data_pipeline.formats.row_format import ParsedRow
from data_pipeline.formats.table import FORMATS
from data_pipeline.prompt.render import render
from data_pipeline.prompt.segment_writer import Writer
from data_pipeline.prompt.templates import TEMPLATES

_NO_FRAMES = ("glm-4", "llama-2")  # nothing ends a message, or more than one control token
_ROLES: tuple[Role, ...] = ("user", "assistant", "tool")


def _conversations() -> list[TaggedConversation]:
    """Every order of up to four roles, with texts that are blank at an end or empty, with and without a system text,
    a condition and a second kind of answer in between."""
    found = []
    texts = ["Hi there", "  two\n", "", "<|im_end|> [/INST]", "5"]
    calls = (ToolCall(name="look", arguments="{}"),)
    spans = (Span(text="a", weight=0.5), Span(text="b"))
    for length in (1, 2, 3, 4):
        for number, roles in enumerate(itertools.product(_ROLES, repeat=length)):
            messages = [Message(role=role, content=texts[(number + place) % 5]) for place, role in enumerate(roles)]
            if number % 3 == 1 and roles[0] == "assistant":
                messages[0] = Message(role="assistant", content="ab", spans=spans)
            if number % 3 == 2 and roles[-1] == "assistant":
                messages[-1] = Message(role="assistant", content="c", tool_calls=calls)
            conversation = Conversation(
                id="a", place="a", messages=tuple(messages), system="Be brief. " if number % 2 else ""
            )
            found.append(
                TaggedConversation(
                    conversation=conversation,
                    class_name="x",
                    condition=("", "GPT4 Correct")[number // 2 % 2],
                    message_weights=tuple((0.0, 0.25, 1.0)[(number + place) % 3] for place in range(length)),
                )
            )
    return found


def _rendered(conversations: Sequence[TaggedConversation], name: str) -> list[tuple[Segment, ...] | str]:
    found: list[tuple[Segment, ...] | str] = []
    for conversation in conversations:
        try:
            found.append(render(conversation, TEMPLATES[name], bos_token="<s>"))
        except RowError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_messages_in_one_step_have_the_segments_of_the_slow_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conversations = _conversations()
    done: list[bool] = []
    plain = Writer.plain

    def counted(self: Writer, *args: object) -> bool:
        done.append(plain(self, *args))  # type: ignore[arg-type]
        return done[-1]

    monkeypatch.setattr(Writer, "plain", counted)
    fast = _rendered(conversations, name)
    assert any(done) == (name not in _NO_FRAMES), "some message is written in one step"
    monkeypatch.setattr(Writer, "plain", lambda *_: False)
    assert fast == _rendered(conversations, name)


_CONTENTS = ("Hi", " a ", "", " \n", "\ufdd0", "a\ufdd0b", "\ud800", "äß", "<image>", "<image> a", None, 3, ["a"])
_WEIGHTS = (None, 0, 1, 0.5, 1e9, -1, True, False, float("nan"), float("inf"), "1", 10**400)


@pytest.mark.parametrize("name", ["messages", "sharegpt", "openchat"])
@pytest.mark.parametrize("marks", [{}, {"masked": "weight"}, {"weight": "weight"}, {"weight": "w"}])
def test_usual_messages_are_read_as_all_others(
    name: str, marks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = FORMATS[name].fields
    fields = replace(usual, weight=marks.get("weight"), masked=marks.get("masked"))
    role, content = fields.role or "", fields.content or ""
    extras: list[dict[str, object]] = [{}, {"w": 0.5}, {"name": "n"}, {"unknown": "a b"}]
    for weight in _WEIGHTS:
        extras.append({"weight": weight})
    rows = [
        {fields.messages: [{role: "user", content: "x"}, {role: speaker, content: text, **extra}]}
        for speaker in ("user", "assistant", "system", "tool", "?")
        for text in _CONTENTS
        for extra in extras
    ]

    def read(ignored: frozenset[str]) -> list[Sequence[ParsedRow] | str]:
        parser = FORMATS[name].parser
        assert parser is not None
        reader = parser(fields, ignored)
        found: list[Sequence[ParsedRow] | str] = []
        for row in rows:
            try:
                found.append(reader(row))
            except RowError as error:
                found.append(f"{error.reason}: {error}")
        return found

    cases = (frozenset[str](), frozenset((f"{fields.messages}.weight",)))
    fast = [read(ignored) for ignored in cases]
    monkeypatch.setattr(ChatReader, "_usual_message", lambda *_: None)
    assert fast == [read(ignored) for ignored in cases]
