"""Prompts of exports: the Jinja chat template that gives the ids of training."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_pipeline.prompt.templates import Template
from data_pipeline.text_rules import RESERVED_CHARACTER


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
