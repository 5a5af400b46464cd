"""The prompt formats that a recipe can name: one YAML file each, in `template_files/`. `template.py` says what is in
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import yaml

from data_pipeline.prompt.template import Template

_FOLDER = Path(__file__).parent / "template_files"
# in the order in which they are offered: those of OpenChat, what fits most bases, and those of vendors
_NAMES = (
    "openchat_3.2",
    "openchat_3.5",
    "openchat_3.6",
    "chatml",
    "chatml-smollm2",
    "gemma-2",
    "gemma-3",
    "glm-4",
    "gpt-oss",
    "llama-2",
    "llama-3",
    "llama-3.1",
    "mistral-v1",
    "mistral-v2",
    "mistral-v3",
    "phi-3",
    "phi-4",
    "qwen2.5",
    "qwen3",
    "smollm3",
    "zephyr",
)


class _Templates(Mapping[str, Template]):
    """Name -> template. A file is read when its template is asked for."""

    def __getitem__(self, name: str) -> Template:
        if name not in _NAMES:
            raise KeyError(name)
        return _read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


@cache
def _read(name: str) -> Template:
    template = Template.model_validate(yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
    assert template.name == name, "a file has the name of its template"
    return template


TEMPLATES: Mapping[str, Template] = _Templates()


def is_template_file(name: str) -> bool:
    """Whether `model.template` names a YAML file of the user's."""
    return name.endswith((".yaml", ".yml"))
