"""Prompt formats: the only place that knows prompt text, for training (`render`) and for inference (`chat_template`).

A prompt is a row of control tokens with text between them, for example for `openchat_3.5`:

    <s>  GPT4 Correct User: Hello  <|end_of_turn|>  GPT4 Correct Assistant: Hi  <|end_of_turn|>
         `------ prefix -----'`content'

Everything between two control tokens is tokenized as one text with control tokens switched off. So what a person typed
(or a condition) can never become a control id, and the ids are those of the whole prompt string, with any white space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.conversation import ControlToken, Role, Segment, TaggedConversation, Text
from data_pipeline.text_rules import RESERVED_CHARACTER


@dataclass(frozen=True, kw_only=True)
class Template:
    """A prompt format.

    A message is: header_open? + `CONDITION ROLE` + (header_close token | header_suffix) + content + end_of_turn +
    after.

    role_names: what `user` and `assistant` are called. system_name: None where a system text stands alone.
    header_open, header_close: control tokens around the role, or None for a header that is plain text.
    header_suffix: plain text after the role (after `header_close` where there is one).
    content_lead: stands between header and content, left out with an empty content (so `User:` has no trailing space).
    after_turn: plain text after `end_of_turn`.
    inference_condition: the condition that published models of this template are prompted with.
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

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The control tokens that the template writes, beside beginning-of-sequence."""
        return tuple(token for token in (self.header_open, self.header_close, self.end_of_turn) if token)


def _openchat(name: str, inference_condition: str) -> Template:
    return Template(
        name=name,
        role_names={"user": "User", "assistant": "Assistant"},
        system_name=None,
        header_open=None,
        header_close=None,
        header_suffix=":",
        content_lead=" ",
        end_of_turn="<|end_of_turn|>",
        after_turn="",
        inference_condition=inference_condition,
    )


TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        _openchat("openchat_3.2", inference_condition="GPT4"),
        _openchat("openchat_3.5", inference_condition="GPT4 Correct"),
        Template(
            name="openchat_3.6",
            role_names={"user": "User", "assistant": "Assistant"},
            system_name="System",
            header_open="<|start_header_id|>",
            header_close="<|end_header_id|>",
            header_suffix="\n\n",
            content_lead="",
            end_of_turn="<|eot_id|>",
            after_turn="",
            inference_condition="GPT4 Correct",
        ),
        Template(
            name="chatml",
            role_names={"user": "user", "assistant": "assistant"},
            system_name="system",
            header_open="<|im_start|>",
            header_close=None,
            header_suffix="\n",
            content_lead="",
            end_of_turn="<|im_end|>",
            after_turn="\n",
            inference_condition="",
        ),
    )
}


def render(tagged: TaggedConversation, template: Template, *, bos_token: str | None) -> tuple[Segment, ...]:
    """The segments of a whole conversation. Weights stand on content and end-of-turn; everything else weighs 0."""
    return tuple(_segments(tagged, template, bos_token))


def header_segments(template: Template, role: Role | Literal["system"], condition: str) -> tuple[Segment, ...]:
    """What stands before the content of a message: nothing before a system text that stands alone."""
    if role == "system":
        return tuple(_header(template, template.system_name, "", 0.0))
    return tuple(_header(template, _with_condition(condition, template.role_names[role]), "", 0.0))


def _segments(tagged: TaggedConversation, template: Template, bos_token: str | None) -> Iterator[Segment]:
    if bos_token:
        yield ControlToken(text=bos_token)
    if tagged.conversation.system:
        yield from _header(template, template.system_name, tagged.conversation.system, 0.0)
        yield from _end(template, 0.0)
    for message, weight in zip(tagged.conversation.messages, tagged.message_weights, strict=True):
        role = _with_condition(tagged.condition, template.role_names[message.role])
        yield from _header(template, role, message.content, weight)
        yield from _end(template, weight)


def texts_after(control_token: str | None, template: Template, condition: str) -> tuple[str, ...]:
    """What the template itself may write right after a control token, before any content (None: where nothing stands
    before).

    The counterpart of `render` for showing rows: ids do not say where a role prefix ends.
    """
    roles = [_with_condition(condition, name) for name in template.role_names.values()]
    roles += [template.system_name] if template.system_name else []
    if template.header_open and control_token != template.header_open:
        between = template.header_suffix if control_token == template.header_close else template.after_turn
        return (between,) if between else ()
    return tuple(roles) if template.header_close else tuple(role + template.header_suffix for role in roles)


def _with_condition(condition: str, role: str) -> str:
    return f"{condition} {role}" if condition else role


def _header(template: Template, role: str | None, content: str, weight: float) -> Iterator[Segment]:
    prefix = ""
    if role is not None:
        if template.header_open:
            yield ControlToken(text=template.header_open)
        prefix = role
        if template.header_close:
            yield Text(prefix=role)
            yield ControlToken(text=template.header_close)
            prefix = ""
        prefix += template.header_suffix
        if content:
            content = template.content_lead + content
    if prefix or content:
        yield Text(prefix=prefix, content=content, weight=weight)


def _end(template: Template, weight: float) -> Iterator[Segment]:
    yield ControlToken(text=template.end_of_turn, weight=weight)
    if template.after_turn:
        yield Text(prefix=template.after_turn)


def chat_template(
    template: Template, *, bos_token: str | None, special_tokens: Sequence[str], inference_condition: str
) -> str:
    """The Jinja chat template of an export: same ids as `render`, for the `condition` given (or the default).

    special_tokens: every control token of the tokenizer. Where a message or the condition spells one, the reserved
    character U+FDD0 is put inside it; the exported tokenizer's normalizer takes it out again after control tokens have
    been looked for, so the text is tokenized as plain text, as in training.
    """
    assert all(len(token) > 1 for token in special_tokens), "a one-character control token cannot be broken up"

    def literal(text: str | None) -> str:
        return json.dumps(text or "", ensure_ascii=True)

    def header(role: str, content: str) -> str:
        role = role + " ~ " + literal((template.header_close or "") + template.header_suffix)
        head = f"{{{{- {literal(template.header_open)} ~ {role} }}}}"
        return head + f"{{%- if {content} %}}{{{{- {literal(template.content_lead)} ~ {content} }}}}{{%- endif %}}"

    end = f"{{{{- {literal(template.end_of_turn + template.after_turn)} }}}}"
    system = "{{- content }}" if template.system_name is None else header(literal(template.system_name), "content")
    default = f"{literal(inference_condition)} if condition is not defined or condition is none else condition"
    names = json.dumps(dict(template.role_names), ensure_ascii=True)
    return "\n".join(
        (
            "{%- macro plain(text) -%}",
            "{%- set ns = namespace(text=text) -%}",
            f"{{%- for token in {json.dumps(list(special_tokens), ensure_ascii=True)} -%}}",
            f"{{%- set ns.text = ns.text | replace(token, token[:1] ~ {literal(RESERVED_CHARACTER)} ~ token[1:]) -%}}",
            "{%- endfor -%}",
            "{{- ns.text -}}",
            "{%- endmacro -%}",
            f"{{%- set names = {names} -%}}",
            f"{{%- set condition = plain({default}) -%}}",
            "{%- set lead = condition ~ ' ' if condition else '' -%}",
            f"{{{{- {literal(bos_token)} }}}}",
            "{%- for message in messages -%}",
            "{%- if message['content'] is not string -%}{{- raise_exception('content must be text') -}}{%- endif -%}",
            "{%- set content = plain(message['content']) -%}",
            "{%- if message['role'] == 'system' and loop.first -%}",
            f"{{%- if content %}}{system}{end}{{%- endif %}}",
            "{%- elif message['role'] in names -%}",
            header("lead ~ names[message['role']]", "content") + end,
            "{%- else -%}",
            "{{- raise_exception('unknown role, or a system message that is not the first: ' ~ message['role']) -}}",
            "{%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            header("lead ~ names['assistant']", "''"),
            "{%- endif -%}",
        )
    )
