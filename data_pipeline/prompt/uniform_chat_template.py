"""The chat template of formats in which all turns are alike (`uniform.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_pipeline.prompt.jinja_parts import (
    NOT_SHOWN,
    NOT_SHOWN_IN_MESSAGES,
    continued,
    literal,
    output,
    plain_macro,
    refused,
)
from data_pipeline.prompt.uniform import UniformFormat


def uniform_chat_template(
    template: UniformFormat,
    *,
    bos_token: str | None,
    special_tokens: Sequence[str],
    inference_condition: str,
    marks_answers: bool,
) -> str:
    """As `chat_template.chat_template` says. The text is the same as ever, letter by letter."""
    default = f"{literal(inference_condition)} if condition is not defined or condition is none else condition"
    names = json.dumps(dict(template.role_names), ensure_ascii=True)
    end = output(template.end_of_turn + template.after_turn)
    system = "{{- content }}" if template.system_name is None else _header(template, literal(template.system_name))
    turn = _header(template, "lead ~ names[message['role']]") + end
    return "\n".join(
        (
            *plain_macro(special_tokens),
            *(refused(name, name, what) for name, what in NOT_SHOWN.items()),
            f"{{%- set names = {names} -%}}",
            f"{{%- set condition = plain({default}) -%}}",
            "{%- set lead = condition ~ ' ' if condition else '' -%}",
            output(bos_token),
            "{%- for message in messages -%}",
            *(refused(f"message['{key}']", key, what) for key, what in NOT_SHOWN_IN_MESSAGES.items()),
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
            *continued(),
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            _header(template, "lead ~ names['assistant']", content=None),
            "{%- endif -%}",
        )
    )


def _header(template: UniformFormat, role: str, *, content: str | None = "content") -> str:
    """role, content: expressions. content: None for a header alone."""
    role = role + " ~ " + literal((template.header_close or "") + template.header_suffix)
    head = f"{{{{- {literal(template.header_open)} ~ {role} }}}}"
    if content is None:
        return head
    return head + f"{{%- if {content} %}}{{{{- {literal(template.content_lead)} ~ {content} }}}}{{%- endif %}}"


def _marked_answer(template: UniformFormat) -> tuple[str, ...]:
    """An assistant message with a mark around what training learns of it."""
    text = f"({literal(template.content_lead)} ~ content if content else '') ~ {literal(template.end_of_turn)}"
    return (
        "{%- elif message['role'] == 'assistant' -%}",
        _header(template, "lead ~ names['assistant']", content=None),
        f"{{%- generation -%}}{{{{- {text} -}}}}{{%- endgeneration -%}}",
        output(template.after_turn),
    )
