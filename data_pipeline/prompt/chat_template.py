"""Prompts of exports: the Jinja chat template that gives the ids of training.

Two files are written. `chat_template.jinja` is plain Jinja, which every engine reads. `chat_template_mask.jinja` gives
the same prompts and marks what is learned with `{% generation %}`. Only `transformers` and some engines know that tag;
a parser of plain Jinja refuses a template that has it, even where it is not reached. So it is in another file, and not
a second named template either: engines that expect a tokenizer's `chat_template` to be one text fail with two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_pipeline.prompt.templates import Template
from data_pipeline.text_rules import RESERVED_CHARACTER

CHAT_TEMPLATE = "chat_template.jinja"
MASK_TEMPLATE = "chat_template_mask.jinja"
# What `transformers` puts behind the text that `continue_final_message` continues; it cuts the prompt there.
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
# What a prompt of `transformers` may have and this template cannot show. Left out silently, it would be lost.
_NOT_SHOWN = {"tools": "tools", "documents": "documents"}
_NOT_SHOWN_IN_MESSAGES = {
    "tool_calls": "tool calls",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "thinking": "reasoning",
}


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

    The template refuses what it cannot show (tools, documents, tool calls, reasoning). `continuing` set to true goes
    with `continue_final_message`, see `_continued`.
    """
    assert all(len(token) > 1 for token in special_tokens), "a one-character control token cannot be broken up"
    default = f"{_literal(inference_condition)} if condition is not defined or condition is none else condition"
    names = json.dumps(dict(template.role_names), ensure_ascii=True)
    end = _output(template.end_of_turn + template.after_turn)
    system = "{{- content }}" if template.system_name is None else _header(template, _literal(template.system_name))
    turn = _header(template, "lead ~ names[message['role']]") + end
    return "\n".join(
        (
            *_plain_macro(special_tokens),
            *(_refused(name, name, what) for name, what in _NOT_SHOWN.items()),
            f"{{%- set names = {names} -%}}",
            f"{{%- set condition = plain({default}) -%}}",
            "{%- set lead = condition ~ ' ' if condition else '' -%}",
            _output(bos_token),
            "{%- for message in messages -%}",
            *(_refused(f"message['{key}']", key, what) for key, what in _NOT_SHOWN_IN_MESSAGES.items()),
            "{%- if message['content'] is not string -%}{{- raise_exception('content must be text') -}}{%- endif -%}",
            "{%- set content = plain(message['content']) -%}",
            "{%- if message['role'] == 'system' and loop.first -%}",
            f"{{%- if content %}}{system}{end}{{%- endif %}}",
            *(_marked_answer(template) if marks_answers else ()),
            "{%- elif message['role'] in names -%}",
            turn,
            "{%- else -%}",
            "{{- raise_exception('unknown role, or a system message that is not the first: ' ~ message['role']) -}}",
            "{%- endif -%}",
            *_continued(),
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            _header(template, "lead ~ names['assistant']", content=None),
            "{%- endif -%}",
        )
    )


def _literal(text: str | None) -> str:
    return json.dumps(text or "", ensure_ascii=True)


def _output(text: str | None) -> str:
    return f"{{{{- {_literal(text)} }}}}"


def _header(template: Template, role: str, *, content: str | None = "content") -> str:
    """role, content: expressions. content: None for a header alone."""
    role = role + " ~ " + _literal((template.header_close or "") + template.header_suffix)
    head = f"{{{{- {_literal(template.header_open)} ~ {role} }}}}"
    if content is None:
        return head
    return head + f"{{%- if {content} %}}{{{{- {_literal(template.content_lead)} ~ {content} }}}}{{%- endif %}}"


def _plain_macro(special_tokens: Sequence[str]) -> tuple[str, ...]:
    """A text in which no control token can be found."""
    return (
        "{%- macro plain(text) -%}",
        "{%- set ns = namespace(text=text) -%}",
        f"{{%- for token in {json.dumps(list(special_tokens), ensure_ascii=True)} -%}}",
        f"{{%- set ns.text = ns.text | replace(token, token[:1] ~ {_literal(RESERVED_CHARACTER)} ~ token[1:]) -%}}",
        "{%- endfor -%}",
        "{{- ns.text -}}",
        "{%- endmacro -%}",
    )


def _refused(expression: str, name: str, what: str) -> str:
    """Raises where an expression holds anything. An absent or empty one is fine."""
    error = f"the prompt format of this model has no place for {what}: leave out `{name}`"
    return f"{{%- if {expression} -%}}{{{{- raise_exception({_literal(error)}) -}}}}{{%- endif -%}}"


def _marked_answer(template: Template) -> tuple[str, ...]:
    """An assistant message with a mark around what training learns of it."""
    text = f"({_literal(template.content_lead)} ~ content if content else '') ~ {_literal(template.end_of_turn)}"
    return (
        "{%- elif message['role'] == 'assistant' -%}",
        _header(template, "lead ~ names['assistant']", content=None),
        f"{{%- generation -%}}{{{{- {text} -}}}}{{%- endgeneration -%}}",
        _output(template.after_turn),
    )


def _continued() -> tuple[str, ...]:
    """What `continue_final_message` of `transformers` needs where the final message spells a control token.

    `transformers` puts a tag behind the text, looks for the text in the prompt, and cuts the prompt at the tag. A text
    that spells a control token is broken up in the prompt and would not be found, so it is repeated behind the tag,
    where it is cut off. In a prompt that is not cut, the repeated text would hold real control tokens. The template
    cannot see which prompt it is, and somebody may have typed the tag. So the caller has to say so: with
    `continuing=true`, which no message can set.
    """
    tag, bare = _literal(_CONTINUE_TAG), _literal(_CONTINUE_TAG.strip())
    length = len(_CONTINUE_TAG)
    no_tag = "continuing is only for continue_final_message, with a text that does not hold its tag"
    unsaid = (
        "a control token is spelled in the message that continue_final_message continues: set continuing to true too"
    )
    return (
        "{%- if loop.last and continuing -%}",
        f"{{%- set text = message['content'][:-{length}] -%}}",
        f"{{%- if message['content'] != text ~ {tag} or {bare} in text -%}}",
        f"{{{{- raise_exception({_literal(no_tag)}) -}}}}",
        "{%- endif -%}",
        "{%- if content != message['content'] -%}{{- text -}}{%- endif -%}",
        "{%- elif loop.last and content != message['content'] and not add_generation_prompt",
        f" and message['content'][-{length}:] == {tag} -%}}",
        f"{{{{- raise_exception({_literal(unsaid)}) -}}}}",
        "{%- endif -%}",
    )
