"""Pieces of Jinja that every exported chat template is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_pipeline.text_rules import RESERVED_CHARACTER

# What `transformers` puts behind the text that `continue_final_message` continues; it cuts the prompt there.
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
# What a prompt of `transformers` may have and this template cannot show. Left out silently, it would be lost.
NOT_SHOWN = {"tools": "tools", "documents": "documents"}
NOT_SHOWN_IN_MESSAGES = {
    "tool_calls": "tool calls",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "thinking": "reasoning",
}


def literal(text: str | None) -> str:
    """A text as an expression of Jinja."""
    return json.dumps(text or "", ensure_ascii=True)


def output(text: str | None) -> str:
    """Writes a text."""
    return f"{{{{- {literal(text)} }}}}"


def plain_macro(special_tokens: Sequence[str]) -> tuple[str, ...]:
    """A text in which no control token can be found."""
    return (
        "{%- macro plain(text) -%}",
        "{%- set ns = namespace(text=text) -%}",
        f"{{%- for token in {json.dumps(list(special_tokens), ensure_ascii=True)} -%}}",
        f"{{%- set ns.text = ns.text | replace(token, token[:1] ~ {literal(RESERVED_CHARACTER)} ~ token[1:]) -%}}",
        "{%- endfor -%}",
        "{{- ns.text -}}",
        "{%- endmacro -%}",
    )


def refused(expression: str, name: str, what: str) -> str:
    """Raises where an expression holds anything. An absent or empty one is fine."""
    error = f"the prompt format of this model has no place for {what}: leave out `{name}`"
    return f"{{%- if {expression} -%}}{{{{- raise_exception({literal(error)}) -}}}}{{%- endif -%}}"


def continued(own: str = "message['content']") -> tuple[str, ...]:
    """What `continue_final_message` of `transformers` needs where the final message spells a control token.

    `transformers` puts a tag behind the text, looks for the text in the prompt, and cuts the prompt at the tag. A text
    that spells a control token is broken up in the prompt and would not be found, so it is repeated behind the tag,
    where it is cut off. In a prompt that is not cut, the repeated text would hold real control tokens. The template
    cannot see which prompt it is, and somebody may have typed the tag. So the caller has to say so: with
    `continuing=true`, which no message can set.
    """
    tag, bare = literal(_CONTINUE_TAG), literal(_CONTINUE_TAG.strip())
    length = len(_CONTINUE_TAG)
    no_tag = "continuing is only for continue_final_message, with a text that does not hold its tag"
    unsaid = (
        "a control token is spelled in the message that continue_final_message continues: set continuing to true too"
    )
    return (
        "{%- if loop.last and continuing -%}",
        f"{{%- set text = message['content'][:-{length}] -%}}",
        f"{{%- if message['content'] != text ~ {tag} or {bare} in text -%}}",
        f"{{{{- raise_exception({literal(no_tag)}) -}}}}",
        "{%- endif -%}",
        f"{{%- if content != {own} -%}}{{{{- text -}}}}{{%- endif -%}}",
        f"{{%- elif loop.last and content != {own} and not add_generation_prompt",
        f" and message['content'][-{length}:] == {tag} -%}}",
        f"{{{{- raise_exception({literal(unsaid)}) -}}}}",
        "{%- endif -%}",
    )
