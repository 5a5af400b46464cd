"""`check_chat_template`, which takes 50 ms and which `prepare` calls every time, once per tokenizer and template."""

from __future__ import annotations

import functools

from data_pipeline.prompt.chat_folder import check_chat_template
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TokenizerSpec


@functools.cache
def _check(spec: TokenizerSpec, template_name: str) -> None:
    check_chat_template(spec, TEMPLATES[template_name])


def check_once(spec: TokenizerSpec, template: AnyTemplate) -> None:
    """Templates of ours only; others may be changed by a test."""
    if TEMPLATES.get(template.name) == template:
        _check(spec, template.name)
    else:
        check_chat_template(spec, template)
