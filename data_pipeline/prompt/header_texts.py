"""Where a role prefix ends in a prepared row: ids do not say it, but the template knows what it may have written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from data_pipeline.prompt.template import CONDITION, Template, Turn


def texts_after(control_token: str | None, template: Template, condition: str) -> tuple[str, ...]:
    """What the template may write right after a control token and before any content. control_token: None for the
    beginning of a row.
    """
    written = template.condition_text(condition)
    opens = [text.replace(CONDITION, written) for turn in _turns(template) for text in turn.opens]
    headers = {_leading_text(template, text) for text in opens} - {""}
    if control_token not in template.control_tokens:  # the beginning of a row
        return tuple({_leading_text(template, template.begin)} - {""} if template.begin else headers)
    reasoning, answer = template.reasoning, template.turns.assistant
    inner = [*opens, answer.begin, *(() if reasoning is None else (reasoning.open, reasoning.close, reasoning.empty))]
    found = {text for whole in inner for text in _texts_behind(template, whole, control_token)}
    ends = [template.begin, *(text for turn in _turns(template) for text in turn.close_before.values())]
    ends += [text + turn.after for turn in _turns(template) for text in (turn.close, turn.close_last or turn.close)]
    for end in ends:
        behind = _texts_behind(template, end, control_token)
        found |= set(behind)
        if behind and template.pieces(end)[-2:] == (control_token, behind[-1]):
            found |= {behind[-1] + header for header in headers}
        elif template.pieces(end)[-1:] == (control_token,):
            found |= headers
    return tuple(found - {""})


def _leading_text(template: Template, text: str) -> str:
    """The plain text at the beginning of a text of the template."""
    pieces = template.pieces(text)
    return "" if not pieces or template.is_control(pieces[0]) else pieces[0]


def _texts_behind(template: Template, text: str, control_token: str | None) -> list[str]:
    """The plain text right behind each place of a control token in a text of the template."""
    pieces = template.pieces(text)
    return [
        behind
        for piece, behind in itertools.pairwise(pieces)
        if piece == control_token and not template.is_control(behind)
    ]


def _turns(template: Template) -> Sequence[Turn]:
    turns = template.turns
    return [turn for turn in (turns.system, turns.user, turns.assistant, turns.tool) if turn is not None]
