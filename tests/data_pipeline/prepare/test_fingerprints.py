"""Fingerprints: datasets that were prepared by earlier versions are still recognised."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.prepare.fingerprints import input_fingerprints, template_fingerprint
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.uniform import UniformFormat, uniform_format
from data_pipeline.settings.data import DataSettings

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


OTHER_VALUES: dict[str, Any] = {
    "name": "other",
    "control_tokens": ("<|im_start|>", "<|im_end|>", "<|x|>"),
    "bos": True,
    "begin": "<|x|>",
    "condition": "{condition}: ",
    "inference_condition": "Other",
    "default_system": "Be brief.",
    "turns": {"user": {"close": "<|x|>"}},
    "system_in_user": {"close": "\n"},
    "reasoning": {"close": "</r>"},
    "tools": {"each": " "},
    "tool_calls": {"between": " "},
}


@pytest.mark.parametrize("name", Template.model_fields)
def test_every_key_of_a_template_is_part_of_its_fingerprint(name: str) -> None:
    template = TEMPLATES["qwen3"]
    value = OTHER_VALUES[name]
    if isinstance(value, dict):  # one key inside
        old = getattr(template, name)
        value = template if old is None else old.model_copy(update=value)
        if name == "turns":
            value = template.turns.model_copy(
                update={"user": template.turns.user.model_copy(update=OTHER_VALUES[name]["user"])}
            )
    assert template_fingerprint(template.model_copy(update={name: value})) != template_fingerprint(template)


@pytest.mark.parametrize("name", [field.name for field in fields(UniformFormat)])
def test_every_field_of_a_first_format_is_part_of_its_fingerprint(name: str) -> None:
    first = uniform_format(TEMPLATES["openchat_3.6"])
    assert first is not None
    others = {field.name: f"<|{field.name}|>" for field in fields(UniformFormat)}
    others |= {"name": "other", "header_suffix": ";", "content_lead": "\t", "after_turn": "\n", "system_name": "S"}
    value = {"user": "Human", "assistant": "Assistant"} if name == "role_names" else others[name]
    changed = replace(first, **{name: value}).as_template()
    assert uniform_format(changed) == replace(first, **{name: value})
    assert template_fingerprint(changed) != template_fingerprint(first.as_template())


class LaterTemplate(Template):
    """A template of a later version, with a new key."""

    tool_name: str | None = None


def test_new_key_counts_only_where_it_is_used() -> None:
    for name in ("chatml", "qwen3"):
        values = {key: value for key, value in TEMPLATES[name]}
        earlier = template_fingerprint(TEMPLATES[name])
        assert template_fingerprint(LaterTemplate(**values, tool_name="tool")) != earlier
    assert template_fingerprint(LaterTemplate(**values)) == earlier


SETTINGS: dict[str, Any] = {
    "prepared_dir": "prepared",
    "classes": {"a": {"condition": "A", "weight": 1.0}},
    "sources": [{"path": "x.jsonl", "format": "messages", "class": "a"}],
}


def settings_fingerprint(**source: str) -> str:
    settings = copy.deepcopy(SETTINGS)
    settings["sources"][0].update(source)
    data = DataSettings.model_validate(settings)
    tokenizer: Any = SimpleNamespace(fingerprint="t")
    job = PrepareJob(data=data, template=TEMPLATES["chatml"], tokenizer=tokenizer, max_length_tokens=8, seed=0)
    return input_fingerprints(job, with_sources=False)["settings"]


def test_a_new_key_of_a_source_counts_only_where_it_is_used() -> None:
    """As first released; a change here makes every user prepare again."""
    released = "8af520555bd38e8c42dae5bc1e1e2b4cbb09fa2c179a94943a5801124e35e301"
    assert settings_fingerprint() == released
    others = {settings_fingerprint(**{key: "x"}) for key in ("subset", "split")}
    others.add(settings_fingerprint(path="hf://a/b", revision="x", split="train"))
    assert len(others | {released}) == 4
