"""Messages of a conversation in the layouts that files have: a list of objects, columns, JSON text, plain texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from data_pipeline import nesting
from data_pipeline.conversation import Message
from data_pipeline.errors import RowError
from data_pipeline.formats.fields import CONTENT_KEYS, ROLE_KEYS, ROLES, ROLES_OF_RECIPES, Fields
from data_pipeline.formats.known_keys import ALWAYS_HARMLESS, HARMLESS
from data_pipeline.formats.marks import MARKS, ROW_MARKS, UNCLEAR_MARKS, Mark, joined_marks, mark_weight
from data_pipeline.formats.parts import REASONING_KEYS, message_with_parts, text_of_content
from data_pipeline.formats.row_format import ParsedRow
from data_pipeline.formats.unread import UnreadFieldError, content_leaves
from data_pipeline.formats.values import LONGEST_TEXT, list_of, message_of
from data_pipeline.text_rules import shown, text_problem
from data_pipeline.weight import LARGEST_WEIGHT

_ANSWER_PARTS = (*REASONING_KEYS, "tool_calls")
_PART_KEYS = frozenset((*_ANSWER_PARTS, "tool_call_id", "name"))
_SPEAKERS = ("user", "assistant")
PLACES = ("<image>", "<video>", "<audio>")
_OWN_LINE = re.compile(r"^[ \t]*<(image|video|audio)>[ \t]*$", re.M)
_PROCESSOR_PLACE = re.compile(
    r"<\|(image|video|audio)(_\d+|_pad)?\|>|<\|vision_start\|>|<(image|video|audio)_(placeholder|soft_token)>|"
    r"<(start_of|image)_image>|^\[IMG\]|\[IMG\]$"
)


class ChatReader:
    """Reads the messages of rows. fields: the keys; ignored: dotted names that need not be read."""

    usual_roles: ClassVar[Mapping[str, str]] = ROLES

    def __init__(self, fields: Fields, ignored: frozenset[str]) -> None:
        self._fields = fields
        self._key, self._role, self._content = fields.messages or "messages", fields.role, fields.content
        self._roles = {**self.usual_roles, **fields.roles}
        self._ignored_names = ignored
        names = {name.rpartition(".")[2] for name in ignored if name.rpartition(".")[0] == self._key}
        self._plain = frozenset((self._role or "role", self._content or "content"))
        self._own_marks = {fields.weight: True, fields.masked: False}
        marks = {*MARKS, *UNCLEAR_MARKS, fields.weight, fields.masked} - self._plain - names
        self._marks = frozenset(name for name in marks if name)
        self._ignored = names
        self._known = self._plain | self._marks | _PART_KEYS | ALWAYS_HARMLESS | names
        # most messages of most files have no other keys than these
        is_usual = "weight" in self._marks and self._own_marks.get("weight") is not False
        self._usual = self._plain | {"weight"} if is_usual else self._plain

    def __call__(self, row: Any) -> Sequence[ParsedRow]:
        """The conversation of a row, which is an object or the bare list of its messages."""
        if isinstance(row, list):
            row = {self._key: row}
        turns = self.turns(row, self._key)
        return [self.conversation(row, turns, self._row_weights(row, turns))]

    def turns(self, row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        """The messages of a key as objects with the role and content keys of this layout."""
        value = row.get(key)
        if isinstance(value, str):
            value = _from_json(value, key)
        if isinstance(value, Mapping):
            value = _from_columns(value, key)
        return self.as_objects(list_of(value, row, key), key)

    def _usual_message(self, role: str, turn: Mapping[str, Any], content: Any) -> Message | None:
        """A message of one text and at most a weight; None for all others, among them those that raise an error."""
        if not (role in _SPEAKERS and type(content) is str and turn.keys() <= self._usual):
            return None
        weight = turn.get("weight")
        if weight is not None:
            if type(weight) not in (int, float) or not 0 <= weight <= LARGEST_WEIGHT:
                return None
            weight = float(weight)
        if not content or content.isspace() or len(content) > LONGEST_TEXT or text_problem(content) is not None:
            return None
        our_role: Any = role
        return Message(role=our_role, content=content, weight=weight)

    def as_objects(self, turns: list[Any], key: str) -> list[Mapping[str, Any]]:
        """Turns in other shapes as objects: texts that alternate, and objects that hold a prompt and its answer."""
        if self._role is not None:
            for number, turn in enumerate(turns):
                if type(turn) is not dict and not isinstance(turn, Mapping):
                    raise RowError("wrong_type", f"{key}[{number}]: expected an object, found {shown(turn)}")
            return turns
        found: list[Mapping[str, Any]] = []
        for number, turn in enumerate(turns):
            where = f"{key}[{number}]"
            if isinstance(turn, str):
                found.append({"role": ("user", "assistant")[number % 2], "content": turn})
            elif isinstance(turn, Mapping):
                found += self._pair(turn, where)
            else:
                raise RowError("wrong_type", f"{where}: expected an object or text, found {shown(turn)}")
        return found

    def _pair(self, turn: Mapping[str, Any], where: str) -> Sequence[Mapping[str, Any]]:
        """A turn that holds a prompt and its answer under the names of their roles."""
        known = {"system": "system", "input": "user", "output": "assistant", **self._roles}
        turns: list[dict[str, Any]] = []
        of_answer = [*self._marks, *(name for name in _ANSWER_PARTS if name not in self._ignored)]
        more = {name: turn[name] for name in of_answer if turn.get(name) not in (None, "", [], {})}
        for name, value in turn.items():
            role = known.get(name) or known.get(name.lower())
            if role in ("system", "user", "assistant") and name not in self._ignored:
                if value not in (None, "") or role == "assistant":
                    turns.append({"role": role, "content": value})
            elif name not in self._known:
                self._refuse_content(name, value)
        if len({message["role"] for message in turns}) < len(turns):
            raise RowError("unknown_role", f"{where}: two keys are the same role: {', '.join(map(shown, turn))}")
        if not any(message["role"] != "system" for message in turns):
            found = ", ".join(map(shown, list(turn)[:10])) or "none"
            raise RowError("missing_key", f"{where}: no key is the name of a role; found: {found}")
        order = ("system", "user", "assistant")
        turns.sort(key=lambda message: order.index(message["role"]))
        turns[-1].update(more)  # of the answer, where there is one
        return turns

    def _row_weights(self, row: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]) -> Sequence[Mark] | None:
        """The weights of the messages that a list of the row gives, None without one."""
        if ROW_MARKS.isdisjoint(row):
            return None
        num_turns = len(turns)
        found: list[list[Mark]] = []
        for name in ROW_MARKS & row.keys():
            values = row[name]
            if values in (None, []) or name in self._fields.row_keys:
                continue
            if isinstance(values, str) and values.lstrip().startswith("["):  # a cell of a table
                values = _from_json(values, name)
            if not isinstance(values, list):
                raise RowError("invalid_weight", f"{name}: expected a list with a value for each message")
            answers = [n for n, turn in enumerate(turns) if self.role_of(turn, f"{self._key}[{n}]") == "assistant"]
            marks = [(name, mark_weight(name, value, name, more_is_more=True)) for value in values]
            if len(values) == len(answers) < num_turns:
                spread: list[Mark] = [(name, None)] * num_turns
                for number, mark in zip(answers, marks, strict=True):
                    spread[number] = mark
                marks = spread
            if len(marks) != num_turns:
                counts = f"{len(values)} values for {num_turns} messages and {len(answers)} answers"
                raise RowError("invalid_weight", f"{name}: {counts}; give one for each")
            found.append(marks)
        if not found:
            return None
        by_message = enumerate(zip(*found, strict=True), 1)
        return [(pairs[0][0], joined_marks(pairs, f"message {number}")) for number, pairs in by_message]

    def role_of(self, turn: Mapping[str, Any], where: str) -> str:
        """The role of a message: `system`, `user`, `assistant`, `tool` or `function_call`."""
        key = self._role or "role"
        role = turn.get(key)
        found = self._roles.get(role) if isinstance(role, str) else None
        if found is None and isinstance(role, str):
            found = self._roles.get(role.strip().lower())
        if found is None:
            known = ", ".join(name for name in self._roles if name not in ROLES) or "user, assistant, system, tool"
            if key not in turn:
                names = ", ".join(map(shown, list(turn)[:10])) or "none"
                found_keys = f"found the keys {names}; is `format` right? `format: auto` finds it"
                raise RowError("unknown_role", f"{where}.{key}: unknown role {shown(role)}; {found_keys}")
            raise RowError(
                "unknown_role",
                f"{where}.{key}: unknown role {shown(role)}; known: {known}, and other names of these; say which of "
                f"{', '.join(ROLES_OF_RECIPES)} it is with `fields: {{roles: {{{shown(role)}: ...}}}}`",
            )
        return found

    def conversation(
        self, row: Mapping[str, Any], turns: Sequence[Mapping[str, Any]], weights: Sequence[Mark] | None
    ) -> ParsedRow:
        """Messages from turns; a system message may come first."""
        key, content_key = self._key, self._content or "content"
        known, role_key = self._roles, self._role or "role"
        roles = []
        for number, turn in enumerate(turns):
            role = turn.get(role_key)
            found = known.get(role) if isinstance(role, str) else None
            roles.append(found or self.role_of(turn, f"{key}[{number}]"))
        system = row.get(self._fields.system) if self._fields.system else None
        text = "" if system in (None, "") else text_of_content(system, self._fields.system or "")
        num_kept = len(turns) - self._num_empty_at_end(turns, roles)
        messages: list[Message] = []
        for number, (role, turn) in enumerate(zip(roles, turns, strict=True)):
            if number >= num_kept:
                self._weight_of(turn, f"{key}[{number}]", None)  # its keys are still checked
                continue
            row_mark = None if weights is None else weights[number]
            content = turn.get(content_key)
            message = self._usual_message(role, turn, content) if row_mark is None else None
            if message is not None:
                messages.append(message)
            elif role == "system":
                text = self._system_text(turn, content, number, text, row_mark)
            else:
                where = f"{key}, turn {number + 1}"
                messages.append(self._with_parts(role, turn, content, where, f"{key}[{number}]", row_mark))
        return ParsedRow(system=text, messages=messages, num_cut=len(turns) - num_kept)

    def _system_text(
        self,
        turn: Mapping[str, Any],
        content: Any,
        number: int,
        text: str,
        row_mark: Mark | None,
    ) -> str:
        key = self._key
        if number:
            raise RowError("misplaced_system", f"{key}: a system message must be the first message, and the only one")
        if self._weight_of(turn, f"{key}[0]", row_mark):
            raise RowError("invalid_weight", f"{key}[0]: only assistant messages can have a weight, no system message")
        for name in _ANSWER_PARTS:
            if name not in self._ignored and turn.get(name) not in (None, "", [], {}):
                problem = f"only assistant messages have such a part, found {shown(turn[name])}"
                raise RowError("unsupported_content", f"{key}[0].{name}: {problem}")
        own = "" if content == "" else text_of_content(content, f"{key}[0].{self._content or 'content'}")
        if text and own and own != text:
            raise RowError("misplaced_system", f"both `system` and {key}[0] hold a system text; keep one")
        return own or text

    def _with_parts(
        self,
        role: str,
        turn: Mapping[str, Any],
        content: Any,
        where: str,
        place: str,
        row_mark: Mark | None,
    ) -> Message:
        """A message with more than a text, or with marks."""
        parts = {name: turn[name] for name in _PART_KEYS if name in turn and name not in self._ignored}
        weight = self._weight_of(turn, place, row_mark)
        if role == "function_call":
            call = _from_json(content, f"{place}.{self._content}") if isinstance(content, str) else content
            parts |= {"tool_calls": call if isinstance(call, list) else [call]}
            role, content = "assistant", ""
        if not parts and role in _SPEAKERS and isinstance(content, str):
            return message_of(role, content, weight, where)
        our_role: Any = role
        return message_with_parts(our_role, {**parts, "content": content, "weight": weight}, where)

    def _weight_of(self, turn: Mapping[str, Any], where: str, row_mark: Mark | None) -> float | None:
        """The weight that the marks of a message give. Every key that is not known is looked at."""
        for name in sorted(turn.keys() - self._known, key=str):
            self._refuse_second(name, turn, where)
            self._refuse_content(name, turn[name])
        found = [] if row_mark is None else [row_mark]
        for name in self._marks & turn.keys():
            found.append((name, mark_weight(name, turn[name], where, more_is_more=self._own_marks.get(name))))
        return joined_marks(found, where) if found else None

    def _refuse_second(self, name: str, turn: Mapping[str, Any], where: str) -> None:
        """Raise an error for a text, even of one word, and for another speaker under a second of the usual keys."""
        value = turn[name]
        if not isinstance(value, str) or not value.strip():
            return
        if name in CONTENT_KEYS:
            raise UnreadFieldError(f"{self._key}.{name}", value, "a second text")
        second = ROLES.get(value.strip().lower()) if name in ROLE_KEYS else None
        if second is not None and second != self.role_of(turn, where):
            raise UnreadFieldError(f"{self._key}.{name}", value, "another speaker")

    def _refuse_content(self, name: str, value: Any) -> None:
        if isinstance(value, bool) and name not in HARMLESS:  # nothing but a mark is true or false of a message
            raise UnreadFieldError(f"{self._key}.{name}", value, "a mark for training")
        for inner, inner_value, kind in content_leaves({name: value}, f"{self._key}.", self._ignored_names):
            raise UnreadFieldError(inner, inner_value, kind)

    def _num_empty_at_end(self, turns: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> int:
        """How many messages at the end say nothing. None of them where no answer comes before them."""
        key = self._content or "content"
        num = 0
        for turn in reversed(turns):
            value = turn.get(key)
            if not _is_blank(value):
                break
            if any(turn.get(name) not in (None, "", [], {}) for name in _ANSWER_PARTS):
                break
            num += 1
        if not num:
            return 0
        return 0 if {"assistant", "function_call"}.isdisjoint(roles[: len(roles) - num]) else num


def _is_blank(content: Any) -> bool:
    """Whether the content of a message says nothing: null, white space, or parts of text that are so."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) and len(part) <= 2 else part for part in content]
        return all(text is None or (isinstance(text, str) and not text.strip()) for text in texts)
    return content is None or (isinstance(content, str) and not content.strip())


def refuse_placeholder(text: str, *, is_answer: bool) -> None:
    """Raise RowError for a text with the place of an image, a video or a sound.

    That is one alone on a line, or under a name that only processors of images write, and in what is not an answer
    also one at the beginning or end. Elsewhere `<image>` may be a tag that a conversation is about.
    """
    if "<" not in text and "[" not in text:
        return
    at_edge = not is_answer and (text.startswith(PLACES) or text.endswith(PLACES))
    if at_edge or _OWN_LINE.search(text) or _PROCESSOR_PLACE.search(text):
        raise RowError(
            "unsupported_content", "a message holds the place of an image, video or sound; remove it or the row"
        )


def _from_json(text: str, where: str) -> Any:
    """What a JSON text holds."""
    try:
        return nesting.loads(text)
    except ValueError:
        raise RowError("wrong_type", f"{where}: expected a list, or one as JSON text, found {shown(text)}") from None


def _from_columns(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A list of objects from lists of equal length: `{"role": [...], "content": [...]}`."""
    lists = {name: value for name, value in columns.items() if value is not None}
    lengths = {name: len(value) if isinstance(value, list) else -1 for name, value in lists.items()}
    if not lists or len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise RowError(
            "wrong_type", f"{where}: expected a list, or an object of lists of one length, found {shown(columns)}"
        )
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
