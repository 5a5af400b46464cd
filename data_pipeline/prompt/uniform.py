"""Formats in which all turns are alike: role names between the same tokens.

They were the first that there were, so datasets have been prepared and models exported with them. What is written of
them is the same as ever: the fingerprint of a prepared dataset, and the exported chat template, letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.conversation import Role
from data_pipeline.prompt.template import CONDITION, AnswerTurn, Template, Turn, Turns

_ROLE_NAME = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class UniformFormat:
    """A format in which a message is: header_open? + `CONDITION ROLE` + (header_close token | header_suffix) +
    content + end_of_turn + after.

    role_names: what `user` and `assistant` are called. system_name: None where a system text has no header.
    header_open, header_close: control tokens around the role, or None for a header that is plain text.
    header_suffix: plain text after the role (after `header_close` where there is one).
    content_lead: text between header and content, left out for an empty content (so `User:` has no trailing space).
    after_turn: plain text after `end_of_turn`.
    inference_condition: the condition that published models of this format are prompted with.
    """

    name: str
    role_names: Mapping[Role, str]
    system_name: str | None
    header_open: str | None
    header_close: str | None
    header_suffix: str
    content_lead: str
    end_of_turn: str
    after_turn: str
    inference_condition: str

    def as_template(self) -> Template:
        """The same as a template."""
        tokens = [token for token in (self.header_open, self.header_close, self.end_of_turn) if token]

        def header(name: str) -> str:
            return (self.header_open or "") + name + (self.header_close or "") + self.header_suffix

        def turn(role: Role) -> dict[str, Any]:
            name = CONDITION + self.role_names[role]
            return {
                "open": header(name),
                "lead": self.content_lead,
                "close": self.end_of_turn,
                "after": self.after_turn,
            }

        headless = self.system_name is None
        return Template(
            name=self.name,
            control_tokens=tuple(dict.fromkeys(tokens)),
            inference_condition=self.inference_condition,
            turns=Turns(
                system=Turn(
                    open="" if self.system_name is None else header(self.system_name),
                    lead="" if headless else self.content_lead,
                    close=self.end_of_turn,
                    after=self.after_turn,
                ),
                user=Turn(**turn("user")),
                assistant=AnswerTurn(**turn("assistant")),
            ),
        )


def uniform_format(template: Template) -> UniformFormat | None:
    """The format that is the same as a template, None where its turns are not all alike."""
    turns = template.turns
    user, assistant = (_header(template, turn.open.replace(CONDITION, "", 1)) for turn in (turns.user, turns.assistant))
    system = None if turns.system is None else _header(template, turns.system.open)
    if user is None or assistant is None or turns.system is None:
        return None
    header_open, user_name, header_close, suffix = user
    try:
        found = UniformFormat(
            name=template.name,
            role_names={"user": user_name, "assistant": assistant[1]},
            system_name=None if system is None else system[1],
            header_open=header_open,
            header_close=header_close,
            header_suffix=suffix,
            content_lead=turns.assistant.lead,
            end_of_turn=turns.assistant.close,
            after_turn=turns.assistant.after,
            inference_condition=template.inference_condition,
        )
        return found if found.as_template() == template else None
    except ValueError:  # a format that cannot be written so
        return None


def _header(template: Template, text: str) -> tuple[str | None, str, str | None, str] | None:
    """Control token, role name, control token and text of a header; None where it is none."""
    pieces = list(template.pieces(text))
    first = pieces.pop(0) if pieces and template.is_control(pieces[0]) else None
    named = pieces.pop(0) if pieces else ""
    if pieces and template.is_control(pieces[0]):
        return first, named, pieces.pop(0), "".join(pieces)
    name = _ROLE_NAME.match(named)
    return None if name is None or pieces else (first, name[0], None, named[name.end() :])
