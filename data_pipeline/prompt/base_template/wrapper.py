"""The chat template of an export: that of the base, with a beginning that takes `condition=` and makes texts plain.

Before the base's own text, `messages` and `tools` are replaced by what training renders: every text in them is plain
(U+FDD0 inside control tokens that it spells), and the condition is where `model.condition_in` says. All other variables
reach the base's template as they are given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.prompt.base_template.chat import LINE
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.chat_template import CHAT_TEMPLATE, MASK_TEMPLATE
from data_pipeline.text_rules import RESERVED_CHARACTER

_BLOCK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def wrapped_templates(
    template: BaseTemplate, *, special_tokens: Sequence[str], inference_condition: str
) -> Mapping[str, str]:
    """File name -> text of the chat templates of an export.

    `chat_template.jinja` is plain Jinja. Where the base's template marks answers with `{% generation %}`,
    `chat_template_mask.jinja` is the same with these marks; they cannot be put into a template that has none.
    """
    assert all(len(token) > 1 for token in special_tokens), "a one-character control token cannot be broken up"
    head = _head(template, special_tokens, inference_condition)
    found = {CHAT_TEMPLATE: head + _without_marks(template.text) + _foot(template)}
    if template.marks_answers:
        found[MASK_TEMPLATE] = head + _body(template.text) + _foot(template)
    return found


def _body(text: str) -> str:
    """A template without its last line break, which Jinja leaves out at the end of a template only."""
    return re.sub(r"\r?\n\Z", "", text)


def _without_marks(text: str) -> str:
    return _body(_BLOCK.sub(lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", text))


def _head(template: BaseTemplate, special_tokens: Sequence[str], inference_condition: str) -> str:
    default = f"{_literal(inference_condition)} if condition is not defined or condition is none else condition"
    lines = (
        *_plain_macro(special_tokens),
        *_WALK,
        f"{{%- set ochat_condition = ochat_plain({default}) -%}}",
        f"{{%- set ochat_lead = {_lead(template)} -%}}",
        *(_variable(name, value, template) for name, value in template.variables.items()),
        *_dates(template.dates),
        *_MESSAGES,
        *(_SYSTEM if template.condition_in == "system" else ()),
        *_TOOLS,
        "{%- set messages = ochat.messages %}",  # the line break behind it is left out (`trim_blocks`)
    )
    return "\n".join(lines) + "\n"


def _lead(template: BaseTemplate) -> str:
    """What comes before every answer."""
    if template.condition_in != "assistant":
        return "''"
    return f"ochat_condition ~ {_literal(LINE)} if ochat_condition else ''"


def _foot(template: BaseTemplate) -> str:
    if template.condition_in != "assistant":
        return ""
    return f"{{{{ {_literal(template.gap)} ~ ochat_lead if add_generation_prompt and ochat_lead else '' }}}}"


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=True)


def _variable(name: str, value: Any, template: BaseTemplate) -> str:
    """Named tokens are those of training, whatever the tokenizer calls its end of turn; others can be given."""
    setting = f"{{%- set {name} = {_literal(value)} -%}}"
    if name in template.named_tokens:
        return setting
    return f"{{%- if {name} is not defined -%}}{setting}{{%- endif -%}}"


def _dates(dates: Mapping[str, str]) -> tuple[str, ...]:
    """The day of training, in the formats that the template asks for."""
    if not dates:
        return ()
    return (
        "{%- macro strftime_now(format) -%}",
        f"{{{{- {_literal(dates)}[format] -}}}}",
        "{%- endmacro -%}",
    )


def _plain_macro(special_tokens: Sequence[str]) -> tuple[str, ...]:
    """A text in which no control token can be found."""
    return (
        "{%- macro ochat_plain(text) -%}",
        "{%- set ns = namespace(text=text) -%}",
        f"{{%- for token in {_literal(list(special_tokens))} -%}}",
        "{%- if token in ns.text -%}",
        f"{{%- set ns.text = ns.text | replace(token, token[:1] ~ {_literal(RESERVED_CHARACTER)} ~ token[1:]) -%}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{{- ns.text -}}",
        "{%- endmacro -%}",
    )


# A macro can only give text, so this one leaves its result, a value of any kind, in `ochat.value`.
_WALK = (
    "{%- set ochat = namespace(value=none, messages=[]) -%}",
    "{%- macro ochat_walk(value) -%}",
    "{%- if value is string -%}",
    "{%- set ochat.value = ochat_plain(value) -%}",
    "{%- elif value is mapping -%}",
    "{%- set here = namespace(pairs=[]) -%}",
    "{%- for key, item in value.items() -%}",
    "{{- ochat_walk(item) -}}",
    "{%- set here.pairs = here.pairs + [[ochat_plain(key) if key is string else key, ochat.value]] -%}",
    "{%- endfor -%}",
    "{%- set ochat.value = dict(here.pairs) -%}",
    "{%- elif value is iterable -%}",
    "{%- set here = namespace(items=[]) -%}",
    "{%- for item in value -%}",
    "{{- ochat_walk(item) -}}",
    "{%- set here.items = here.items + [ochat.value] -%}",
    "{%- endfor -%}",
    "{%- set ochat.value = here.items -%}",
    "{%- else -%}",
    "{%- set ochat.value = value -%}",
    "{%- endif -%}",
    "{%- endmacro -%}",
)
_WITH_TEXT_BEFORE = (  # puts ochat_text before the content of ochat_message
    "{%- if ochat_message.content is string -%}",
    "{%- set ochat_content = ochat_text ~ ochat_message.content -%}",
    "{%- elif ochat_message.content is iterable -%}",
    "{%- set ochat_content = [{'type': 'text', 'text': ochat_text}] + ochat_message.content -%}",
    "{%- else -%}",
    "{%- set ochat_content = ochat_text -%}",
    "{%- endif -%}",
    "{%- set ochat_message = dict(ochat_message, content=ochat_content) -%}",
)
_MESSAGES = (
    "{%- for ochat_given in messages -%}",
    "{{- ochat_walk(ochat_given) -}}",
    "{%- set ochat_message = ochat.value -%}",
    "{%- set ochat_text = ochat_lead -%}",
    "{%- if ochat_message.role == 'assistant' -%}",
    "{%- set ochat_thought = namespace(text=none) -%}",
    "{%- for key in ['reasoning', 'thinking', 'reasoning_content'] -%}",
    "{%- if ochat_message[key] is defined and ochat_message[key] is not none -%}",
    "{%- set ochat_thought.text = ochat_message[key] -%}",
    "{%- endif -%}",
    "{%- endfor -%}",
    "{%- if ochat_thought.text is not none -%}",
    "{%- set ochat_message = dict(ochat_message, reasoning_content=ochat_thought.text) -%}",
    "{%- if ochat_message.thinking is not defined -%}",
    "{%- set ochat_message = dict(ochat_message, thinking=ochat_thought.text) -%}",
    "{%- endif -%}",
    "{%- endif -%}",
    "{%- if ochat_lead -%}",
    *_WITH_TEXT_BEFORE,
    "{%- endif -%}",
    "{%- endif -%}",
    "{%- set ochat.messages = ochat.messages + [ochat_message] -%}",
    "{%- endfor -%}",
)
_SYSTEM = (
    "{%- if ochat_condition -%}",
    "{%- if ochat.messages and ochat.messages[0].role == 'system' -%}",
    "{%- set ochat_message = ochat.messages[0] -%}",
    f"{{%- set ochat_text = ochat_condition ~ {json.dumps(LINE)} if ochat_message.content else ochat_condition -%}}",
    *_WITH_TEXT_BEFORE,
    "{%- set ochat.messages = [ochat_message] + ochat.messages[1:] -%}",
    "{%- else -%}",
    "{%- set ochat.messages = [{'role': 'system', 'content': ochat_condition}] + ochat.messages -%}",
    "{%- endif -%}",
    "{%- endif -%}",
)
_TOOLS = (
    "{%- if tools is defined and tools -%}",
    "{{- ochat_walk(tools) -}}",
    "{%- set tools = ochat.value -%}",
    "{%- endif -%}",
    "{%- if documents is defined and documents -%}",
    "{{- ochat_walk(documents) -}}",
    "{%- set documents = ochat.value -%}",
    "{%- endif -%}",
)
