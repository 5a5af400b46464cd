"""From the tokens of a conversation back to its class, its turns and their text.

Nothing is guessed: every turn must begin with exactly the tokens that the template writes for a role under the
condition of one class, and weights must be where the template puts them. So a file of another tokenizer, template or
shift is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.classes.tagging import ClassTable, ConversationClass
from data_pipeline.conversation import Conversation, Message, Role, TaggedConversation, Text, TokenizedConversation
from data_pipeline.errors import RowError
from data_pipeline.prompt.render import header_segments
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.tokenization import TemplateTokenizer
from data_pipeline.prompt.uniform import uniform_format
from data_pipeline.text_rules import quoted, shown

_WEIGHT_TOLERANCE = 1e-4  # relative; for weights that a recipe gives as exp(reward / beta)
_SHOWN_IDS = 24


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What a turn begins with. class_name: None for a system text. text_start: where its last stretch of text
    begins.
    """

    class_name: str | None
    role: Role | Literal["system"]
    ids: tuple[int, ...]
    text_start: int
    text: str  # of that stretch


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Tokens start:end of a conversation, the end-of-turn token included; number: from 1."""

    number: int
    start: int
    end: int
    header: _Header

    @property
    def content(self) -> slice:
        """Its content, with the end of turn."""
        return slice(self.start + len(self.header.ids), self.end)


class TurnReader:
    """Reads tokenized conversations that belong to the classes of a recipe."""

    def __init__(
        self, tokenizer: TemplateTokenizer, template: Template, classes: ClassTable, *, bos_token: str | None
    ) -> None:
        assert uniform_format(template) is not None, "OpenChat's formats are"
        self._tokenizer, self._template, self._classes = tokenizer, template, classes
        self._bos = None if bos_token is None else tokenizer.control_id(bos_token)
        self._end_of_turn = tokenizer.control_id(template.end_of_turn)
        roles: tuple[Role, ...] = ("user", "assistant")
        self._headers = [self._header(role, spec) for spec in classes.values() for role in roles]
        self._system = self._header("system", None)
        self._longest_header = max(len(header.ids) for header in (*self._headers, self._system))

    def _header(self, role: Role | Literal["system"], spec: ConversationClass | None) -> _Header:
        segments = header_segments(self._template, role, spec.condition if spec else "")
        if not segments:
            return _Header(class_name=None, role=role, ids=(), text_start=0, text="")
        tokens = self._tokenizer.tokenize([segments])[0]
        assert not isinstance(tokens, RowError), "headers are made of texts that the recipe's sections have checked"
        ids = tokens.input_ids.tolist()
        last = segments[-1]
        assert isinstance(last, Text), "a header ends with text"
        is_control = self._tokenizer.is_control[ids]
        start = int(np.flatnonzero(is_control)[-1]) + 1 if is_control.any() else 0
        return _Header(
            class_name=spec.name if spec else None, role=role, ids=tuple(ids), text_start=start, text=last.prefix
        )

    def __call__(self, tokens: TokenizedConversation, *, place: str, class_name: str | None) -> TaggedConversation:
        """Find class, turns and texts; class_name: of the source, None where the condition of the row decides.

        Raises RowError for a row that the template and the classes do not explain.
        """
        ids, weights = tokens.input_ids, tokens.loss_weights
        outside = (ids < 0) | (ids >= len(self._tokenizer.is_control))
        if outside.any():
            raise RowError(
                "id_outside_vocabulary",
                f"token {int(np.argmax(outside))} is {int(ids[np.argmax(outside)])}, but the tokenizer has "
                f"{len(self._tokenizer.is_control)} ids; use the tokenizer that the file was made with",
            )
        turns = self._turns(ids, class_name)
        names = {turn.header.class_name for turn in turns if turn.header.class_name is not None}
        if len(names) != 1:
            found = (
                f"conditions of several classes ({', '.join(sorted(names))})" if names else "no user or assistant turn"
            )
            raise RowError("unknown_header", f"the row has {found}")
        spec = self._classes[names.pop()]
        if not any(turn.header.role == "assistant" for turn in turns):
            raise RowError("no_assistant_message", "no assistant message: nothing to learn from")
        message_weights = _message_weights(turns, weights, spec)
        texts = self._texts(turns, ids)
        system = texts.pop(0) if turns[0].header.role == "system" else ""
        roles = [turn.header.role for turn in turns if turn.header.role != "system"]
        messages = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=True)]
        conversation = Conversation(id=place, place=place, messages=tuple(messages), system=system)
        return TaggedConversation(
            conversation=conversation,
            class_name=spec.name,
            condition=spec.condition,
            message_weights=tuple(message_weights[-len(messages) :]),
        )

    def _turns(self, ids: np.ndarray, class_name: str | None) -> list[_Turn]:
        start = 0
        if self._bos is not None:
            if ids[0] != self._bos:
                problem = (
                    f"begins with id {int(ids[0])} and not with the tokenizer's beginning of sequence, {self._bos}"
                )
                raise RowError(
                    "unknown_header", f"{problem}; use the tokenizer and template that the file was made with"
                )
            start = 1
        turns: list[_Turn] = []
        ends = [*(np.flatnonzero(ids == self._end_of_turn) + 1).tolist(), len(ids)]
        for end in ends:
            if end > start:  # the last turn has no end of turn where it was cut
                turns.append(self._turn(ids, len(turns) + 1, start, end, class_name))
                start = end
        return turns

    def _turn(self, ids: np.ndarray, number: int, start: int, end: int, class_name: str | None) -> _Turn:
        head = tuple(ids[start : start + self._longest_header].tolist())
        header = next(
            (h for h in self._headers if head[: len(h.ids)] == h.ids and class_name in (None, h.class_name)), None
        )
        if header is None and number == 1 and head[: len(self._system.ids)] == self._system.ids:
            header = self._system
        if header is None:
            [text] = self._tokenizer.text_of([ids[start:end][:_SHOWN_IDS].tolist()])
            conditions = [spec.condition for spec in self._classes.values() if class_name in (None, spec.name)]
            raise RowError(
                "unknown_header",
                f"turn {number} begins with {shown(text)}, which is not a role under the condition "
                f"{' or '.join(map(quoted, conditions))}; correct the classes, or use the tokenizer and template of "
                "the file (or somebody typed a control token, which OpenChat's tokenization can take for a real one)",
            )
        turn = _Turn(number=number, start=start, end=end, header=header)
        inside = ids[turn.content]
        if np.count_nonzero(self._tokenizer.is_control[inside]) != (inside[-1:] == self._end_of_turn).sum():
            raise RowError("control_token_in_text", f"the text of turn {number} holds a control token; remove the row")
        return turn

    def _texts(self, turns: Sequence[_Turn], ids: np.ndarray) -> list[str]:
        """The content of each turn, as far as tokens tell it."""
        stretches = [ids[turn.start + turn.header.text_start : turn.end] for turn in turns]
        texts = self._tokenizer.text_of([stretch[stretch != self._end_of_turn].tolist() for stretch in stretches])
        return [self._content(turn, text) for turn, text in zip(turns, texts, strict=True)]

    def _content(self, turn: _Turn, text: str) -> str:
        content = text.removeprefix(turn.header.text)
        turns = self._template.turns
        turn_format = {"system": turns.system, "user": turns.user, "assistant": turns.assistant}[turn.header.role]
        lead = "" if turn_format is None else turn_format.lead
        if content and not content.startswith(lead):
            raise RowError(
                "unknown_header",
                f"turn {turn.number} reads {shown(text)}: after its role the template `{self._template.name}` has "
                f"{lead!r}",
            )
        return content.removeprefix(lead)


def _message_weights(turns: Sequence[_Turn], weights: np.ndarray, spec: ConversationClass) -> list[float]:
    """The weight of each turn: that of all its content (as far as the conversation goes) and of nothing else.

    Raises RowError for any other weights: shifted ones, those of another tokenization, or of single tokens.
    """
    found = []
    for turn in turns:
        where = f"turn {turn.number} ({turn.header.role})"
        if weights[turn.start : turn.content.start].any():
            raise RowError(
                "invalid_weight",
                f"{where}: the role has a weight and not only the text; are the weights shifted by one?",
            )
        inside = weights[turn.content]
        if inside.any() and turn.header.role != "assistant":
            raise RowError("invalid_weight", f"{where}: only assistant messages can have a weight in a class")
        others = np.flatnonzero(inside != inside[:1])
        if len(others):
            at = int(others[0])
            raise RowError(
                "invalid_weight",
                f"{where}: its first token has weight {inside[0]:.6g} and token {at + 1} has {inside[at]:.6g}, but a "
                "message and its end of turn have one weight; are they shifted by one? Make the file again",
            )
        weight = float(inside[0]) if len(inside) else 0.0
        if weight and spec.weight is not None and not math.isclose(weight, spec.weight, rel_tol=_WEIGHT_TOLERANCE):
            raise RowError(
                "other_weight",
                f"{where}: weight {weight:.6g} is not that of class {spec.name}, {spec.weight:.6g}; correct it, or "
                "leave out `reward` and `weight` of the class to take the weights of the file",
            )
        found.append(weight)
    return found
