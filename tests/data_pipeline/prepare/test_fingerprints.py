"""Fingerprints: datasets that were prepared by earlier versions are still recognised."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest

from data_pipeline.prepare.fingerprints import template_fingerprint
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES

# as first released; a change here makes every user prepare again
RELEASED = {
    "openchat_3.2": "90ebd4e70ffb21cc2523518c7b979e90e711a12dd8a73b3159824ed31f6663ea",
    "openchat_3.5": "6145c5d98e1a60f7406446532d078a4adc5f017191e9f0b8beebe60033629017",
    "openchat_3.6": "b4cd6a8c721b40f94251dc732f921239b5b007dcdc567c887b8af418c7966c78",
    "chatml": "1a3215a223657135a4dfb55f554867cfdc6a6fbf5b6b0872e8ebd37962dd34f6",
}


@pytest.mark.parametrize("name", RELEASED)
def test_fingerprint_of_a_template_is_that_of_its_release(name: str) -> None:
    assert template_fingerprint(TEMPLATES[name]) == RELEASED[name]


OTHER_VALUES = {
    "name": "other",
    "role_names": {"user": "Human", "assistant": "Assistant"},
    "system_name": "System text",
    "header_open": "<|open|>",
    "header_close": "<|close|>",
    "header_suffix": ";",
    "content_lead": "\t",
    "end_of_turn": "<|end|>",
    "after_turn": "\n\n",
    "inference_condition": "Other",
}


@pytest.mark.parametrize("name", [field.name for field in fields(Template)])
def test_every_field_of_a_template_is_part_of_its_fingerprint(name: str) -> None:
    template = TEMPLATES["openchat_3.5"]
    changed = replace(template, **{name: OTHER_VALUES[name]})
    assert template_fingerprint(changed) != template_fingerprint(template)


@dataclass(frozen=True, kw_only=True)
class LaterTemplate(Template):
    """A template of a later version, with a new field."""

    tool_name: str | None = None


def test_new_field_counts_only_where_it_is_used() -> None:
    values = {field.name: getattr(TEMPLATES["chatml"], field.name) for field in fields(Template)}
    assert template_fingerprint(LaterTemplate(**values)) == RELEASED["chatml"]
    assert template_fingerprint(LaterTemplate(**values, tool_name="tool")) != RELEASED["chatml"]
