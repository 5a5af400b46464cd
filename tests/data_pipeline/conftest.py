"""What keeps the tests of the data pipeline quick."""

from __future__ import annotations

import functools

import pytest

from data_pipeline.prepare import prepare as prepare_module
from data_pipeline.prompt.chat_folder import check_chat_template
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TokenizerSpec


@functools.cache
def _check_once(spec: TokenizerSpec, template_name: str) -> None:
    check_chat_template(spec, TEMPLATES[template_name])


@pytest.fixture(autouse=True)
def _prove_each_tokenizer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare` proves the tokenizer's chat template every time (50 ms); here, once per tokenizer and template."""

    def check(spec: TokenizerSpec, template: AnyTemplate) -> None:
        if template.name in TEMPLATES:
            _check_once(spec, template.name)
        else:
            check_chat_template(spec, template)

    monkeypatch.setattr(prepare_module, "check_chat_template", check)
