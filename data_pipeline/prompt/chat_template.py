"""Prompts of exports: the Jinja chat template that gives the ids of training.

Two files are written. `chat_template.jinja` is plain Jinja, which every engine reads. `chat_template_mask.jinja` gives
the same prompts and marks what is learned with `{% generation %}`. Only `transformers` and some engines know that tag;
a parser of plain Jinja refuses a template that has it, even where it is not reached. So it is in another file, and not
a second named template either: engines that expect a tokenizer's `chat_template` to be one text fail with two.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.prompt.jinja_parts import (
    NOT_SHOWN,
    NOT_SHOWN_IN_MESSAGES,
    continued,
    literal,
    plain_macro,
    refused,
)
from data_pipeline.prompt.template import CONDITION, Template, Turn
from data_pipeline.prompt.uniform import uniform_format
from data_pipeline.prompt.uniform_chat_template import uniform_chat_template
from data_pipeline.text_rules import RESERVED_CHARACTER

CHAT_TEMPLATE = "chat_template.jinja"
MASK_TEMPLATE = "chat_template_mask.jinja"
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def chat_template(
    template: Template,
    *,
    bos_token: str | None,
    special_tokens: Sequence[str],
    inference_condition: str,
    marks_answers: bool = False,
) -> str:
    """The Jinja chat template of an export: same ids as `render`, for the `condition` given (or the default).

    special_tokens: every control token of the tokenizer. Where a message or the condition spells one, the reserved
    character U+FDD0 is put inside it; the exported tokenizer's normalizer takes it out again after control tokens have
    been looked for, so the text is tokenized as plain text, as in training.

    marks_answers: with `{% generation %}` around what is learned of each assistant message, its end of turn included.

    The template refuses what it cannot show: documents, and tools and reasoning where the format has no place for them.
    `continuing` set to true goes with `continue_final_message`, see `continued`.
    """
    assert all(len(token) > 1 for token in special_tokens), "a one-character control token cannot be broken up"
    uniform = uniform_format(template)
    if uniform is not None:
        return uniform_chat_template(
            uniform,
            bos_token=bos_token,
            special_tokens=special_tokens,
            inference_condition=inference_condition,
            marks_answers=marks_answers,
        )
    return "\n".join(_Jinja(template, special_tokens, marks_answers).lines(bos_token, inference_condition))


class _Jinja:
    """Writes the chat template of any format, piece by piece in the order of `render.py`."""

    def __init__(self, template: Template, special_tokens: Sequence[str], marks_answers: bool) -> None:
        self._template, self._special, self._marks = template, special_tokens, marks_answers

    def lines(self, bos_token: str | None, inference_condition: str) -> list[str]:
        """All of it."""
        rules = self._template
        default = f"{literal(inference_condition)} if condition is not defined or condition is none else condition"
        before, after = rules.condition.split(CONDITION)
        return [
            *plain_macro(self._special),
            *(refused(n, n, what) for n, what in NOT_SHOWN.items() if n != "tools" or rules.tools is None),
            f"{{%- set condition = plain({default}) -%}}",
            f"{{%- set lead = {literal(before)} ~ condition ~ {literal(after)} if condition else '' -%}}",
            "{%- set ns = namespace(system='', previous='', last_user=-1, answer='') -%}",
            "{{- " + literal(bos_token) + " -}}",
            self._write(rules.begin),
            *self._system(),
            *self._last_user(),
            "{%- for message in messages -%}",
            "{%- set following = '' if loop.last else messages[loop.index]['role'] -%}",
            *self._message(),
            "{%- endfor -%}",
            *self._waiting_system(),
            *self._generation_prompt(),
        ]

    def _text(self, text: str) -> str:
        """A text of the template as an expression, with `lead` for the condition. Only its own control tokens stay."""
        parts = []
        for piece in self._template.pieces(text):
            plain = piece if self._template.is_control(piece) else _broken_up(piece, self._special)
            parts.append(f" ~ lead ~ {''}".join(map(literal, plain.split(CONDITION))))
        return " ~ ".join(parts) if parts else "''"

    def _write(self, text: str) -> str:
        return f"{{{{- {self._text(text)} -}}}}" if text else ""

    def _open(self, turn: Turn) -> str:
        opening = self._text(turn.open)
        for role, text in turn.open_after.items():
            opening = f"({self._text(text)} if ns.previous == {literal(role)} else {opening})"
        return "{{- " + opening + " -}}"

    def _close(self, turn: Turn) -> str:
        """An expression for the end of a turn and what is behind it: what is learned, without `after`."""
        close = self._text(turn.close)
        if turn.close_last is not None:
            close = f"({self._text(turn.close_last)} if loop.last and not add_generation_prompt else {close})"
        for role, text in turn.close_before.items():
            close = f"({self._text(text)} if following == {literal(role)} else {close})"
        return close

    def _after(self, turn: Turn) -> str:
        if not turn.after:
            return ""
        if not turn.close_before:
            return self._write(turn.after)
        return f"{{%- if following not in {list(turn.close_before)} -%}}{self._write(turn.after)}{{%- endif -%}}"

    def _system(self) -> list[str]:
        """Reads the system text and the tools, and writes their turn, if they have one."""
        rules, turn = self._template, self._template.turns.system
        lines = [
            "{%- if messages and messages[0]['role'] == 'system' -%}",
            *_must_be_text("messages[0]['content']"),
            "{%- set ns.system = messages[0]['content'] -%}",
            "{%- endif -%}",
        ]
        if rules.default_system:
            lines.append(
                f"{{%- if not ns.system -%}}{{%- set ns.system = {literal(rules.default_system)} -%}}{{%- endif -%}}"
            )
        if (tools := rules.tools) is not None:
            lead = f"({literal(tools.lead)} if ns.system else '')"
            lines += [
                "{%- if tools -%}",
                f"{{%- set ns.system = ns.system ~ {lead} ~ {literal(tools.open)} -%}}",
                "{%- for tool in tools -%}",
                f"{{%- set ns.system = ns.system ~ {literal(tools.each)} ~ (tool | tojson) -%}}",
                "{%- endfor -%}",
                f"{{%- set ns.system = ns.system ~ {literal(tools.close)} -%}}",
                "{%- endif -%}",
            ]
        if turn is None:
            if rules.system_in_user is None:
                lines.append(refused("ns.system", "system", "a system text"))
            return [*lines, "{%- set ns.system = plain(ns.system) -%}"]
        text = "ns.system | trim" if turn.trim else "ns.system"
        lines += [
            "" if rules.default_system is not None else "{%- if ns.system -%}",
            self._write(turn.open),
            f"{{%- set ns.system = plain({text}) -%}}",
            f"{{%- if ns.system -%}}{{{{- {self._text(turn.lead)} ~ ns.system -}}}}{{%- endif -%}}",
            self._write(turn.close),
            self._write(turn.after),
            "{%- set ns.previous = 'system' -%}",
            "" if rules.default_system is not None else "{%- endif -%}",
        ]
        return lines

    def _last_user(self) -> list[str]:
        if self._template.reasoning is None:
            return []
        return [
            "{%- for message in messages -%}",
            "{%- if message['role'] == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}",
            "{%- endfor -%}",
        ]

    def _message(self) -> list[str]:
        turns = self._template.turns
        lines = [
            "{%- if message['role'] == 'system' and loop.first -%}",
            "{%- elif message['role'] == 'user' -%}",
            *self._plain_turn(turns.user, system=True),
            "{%- elif message['role'] == 'assistant' -%}",
            *self._answer(),
        ]
        if turns.tool is not None:
            lines += ["{%- elif message['role'] == 'tool' -%}", *self._plain_turn(turns.tool)]
        return [
            *lines,
            "{%- else -%}",
            "{{- raise_exception('unknown role, or a system message that is not the first: ' ~ message['role']) -}}",
            "{%- endif -%}",
            "{%- if message['role'] != 'system' -%}",
            "{%- set ns.previous = message['role'] -%}",
            "{%- endif -%}",
        ]

    def _plain_turn(self, turn: Turn, *, system: bool = False) -> list[str]:
        wrap = self._template.system_in_user if system else None
        lines = [
            *(refused(f"message['{key}']", key, what) for key, what in NOT_SHOWN_IN_MESSAGES.items()),
            *_must_be_text("message['content']"),
            f"{{%- set own = message['content']{' | trim' if turn.trim else ''} -%}}",
            "{%- set content = plain(own) -%}",
            self._open(turn),
        ]
        if wrap is not None:
            lines += [
                "{%- if ns.system -%}",
                f"{{{{- {self._text(wrap.open)} ~ ns.system ~ {self._text(wrap.close)} -}}}}",
                "{%- set ns.system = '' -%}",
                "{%- endif -%}",
            ]
        return [
            *lines,
            f"{{%- if content -%}}{{{{- {self._text(turn.lead)} ~ content -}}}}{{%- endif -%}}",
            f"{{{{- {self._close(turn)} -}}}}",
            self._after(turn),
            *continued("own"),
        ]

    def _answer(self) -> list[str]:
        rules, turn = self._template, self._template.turns.assistant
        known = {key for key in _REASONING_KEYS if rules.reasoning} | ({"tool_calls"} if rules.tool_calls else set())
        has_parts = " or ".join(f"message['{key}']" for key in sorted(known))
        lines = [refused(f"message['{k}']", k, what) for k, what in NOT_SHOWN_IN_MESSAGES.items() if k not in known]
        lines.append("{%- set own = message['content'] -%}")
        if has_parts:
            lines.append(
                f"{{%- if own is not string and not own and ({has_parts}) -%}}{{%- set own = '' -%}}{{%- endif -%}}"
            )
        return [
            *lines,
            *_must_be_text("own"),
            "{%- set own = own | trim -%}" if turn.trim else "",
            "{%- set content = plain(own) -%}",
            self._open(turn),
            "{%- set ns.answer = '' -%}",
            *self._reasoning(),
            self._add(turn.begin),
            f"{{%- if content -%}}{{%- set ns.answer = ns.answer ~ {self._text(turn.lead)} ~ content -%}}",
            "{%- endif -%}",
            *self._tool_calls(),
            f"{{%- set ns.answer = ns.answer ~ {self._close(turn)} -%}}",
            "{%- generation -%}{{- ns.answer -}}{%- endgeneration -%}" if self._marks else "{{- ns.answer -}}",
            self._after(turn),
            *continued("own"),
        ]

    def _add(self, text: str) -> str:
        return f"{{%- set ns.answer = ns.answer ~ {self._text(text)} -%}}" if text else ""

    def _reasoning(self) -> list[str]:
        rule = self._template.reasoning
        if rule is None:
            return []
        keys = " or ".join(f"message['{key}']" for key in _REASONING_KEYS)
        lines = [
            f"{{%- set thought = {keys} -%}}",
            "{%- if thought is string and thought | trim -%}",
            "{%- set thought = plain(thought.strip('\\n')) -%}",
            "{%- elif thought -%}{{- raise_exception('reasoning must be text') -}}",
            "{%- else -%}{%- set thought = '' -%}",
            "{%- endif -%}",
            "{%- if loop.index0 > ns.last_user -%}" if rule.shown == "after_last_user" else "{%- if true -%}",
            "{%- if thought -%}",
            f"{{%- set ns.answer = {self._text(rule.open)} ~ thought ~ {self._text(rule.close)} -%}}",
        ]
        if rule.empty:
            lines += ["{%- elif loop.last -%}", self._write(rule.empty)]
        return [*lines, "{%- endif -%}", "{%- endif -%}"]

    def _tool_calls(self) -> list[str]:
        calls = self._template.tool_calls
        if calls is None:
            return []
        before, middle, end = map(self._text, calls.parts)
        between = f"({self._text(calls.between)} if not loop.first else ({self._text(calls.lead)} if content else ''))"
        arguments = "arguments if arguments is string else (arguments | tojson)"
        return [
            "{%- for tool_call in message['tool_calls'] or [] -%}",
            "{%- set call = tool_call['function'] if tool_call['function'] else tool_call -%}",
            "{%- set arguments = call['arguments'] -%}",
            "{%- if not arguments or arguments is string and not arguments | trim -%}",
            "{%- set arguments = '{}' -%}",
            "{%- endif -%}",
            f"{{%- set ns.answer = ns.answer ~ {between} ~ {before} ~ plain(call['name']) ~ {middle}"
            f" ~ plain({arguments}) ~ {end} -%}}",
            "{%- endfor -%}",
        ]

    def _waiting_system(self) -> list[str]:
        if self._template.system_in_user is None:
            return []
        return [refused("ns.system", "the system message", "a system text without a user message")]

    def _generation_prompt(self) -> list[str]:
        rules = self._template
        lines = ["{%- if add_generation_prompt -%}", self._open(rules.turns.assistant)]
        if rules.reasoning is not None and rules.reasoning.empty:
            lines += [
                "{%- if enable_thinking is defined and enable_thinking is false -%}",
                self._write(rules.reasoning.empty),
                "{%- endif -%}",
            ]
        return [*lines, "{%- endif -%}"]


def _must_be_text(expression: str) -> tuple[str, ...]:
    return (
        f"{{%- if {expression} is not string -%}}{{{{- raise_exception('content must be text') -}}}}{{%- endif -%}}",
    )


def _broken_up(text: str, special_tokens: Sequence[str]) -> str:
    """The same as the macro `plain`, for a text of the template."""
    for token in special_tokens:
        text = text.replace(token, token[:1] + RESERVED_CHARACTER + token[1:])
    return text
