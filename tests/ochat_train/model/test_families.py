"""The table of families: its learning rates, its templates, and its copy in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.model.families import FAMILIES, Family, family_by_name, family_of
from ochat_train.planning.learning_rate import auto_learning_rate

OWN_BASE_PAGE = Path(__file__).resolve().parents[3] / "docs" / "own-base.md"
VOCABULARIES = (0, 1, 31_999, 32_000, 32_002, 33_023, 33_024, 49_152, 64_000, 99_999, 100_000, 102_400, 128_255)
VOCABULARIES += (128_256, 128_258, 129_279, 129_280, 131_072, 256_000)
OTHER_LLAMA = "other bases of the Llama architecture"


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_learning_rates_are_those_of_the_first_release(vocab_size: int) -> None:
    """Runs that were started with `auto` resume with their rate: 3e-4 over these numbers, by size alone for Llama."""
    divisors = {"mistral": 6.0, "gemma": 5.5, "llama": 5.3 if vocab_size >= 100_000 else 1.0}
    for model_type, divisor in divisors.items():
        rate = auto_learning_rate(model_type=model_type, vocab_size=vocab_size, supervised_tokens_per_step=4e6)
        assert rate == 3e-4 / divisor


@pytest.mark.parametrize(
    ("model_type", "vocab_size", "title", "template"),
    [
        ("llama", 32_000, "Llama-2", "openchat_3.2"),
        ("llama", 32_002, "Llama-2", "openchat_3.2"),  # OpenChat-3.2 itself
        ("llama", 128_256, "Llama-3", "openchat_3.6"),
        ("llama", 128_258, "Llama-3", "openchat_3.6"),
        ("mistral", 32_002, "Mistral", "openchat_3.5"),
        ("gemma", 256_000, "Gemma", None),
        ("llama", 49_152, OTHER_LLAMA, None),  # SmolLM2
        ("llama", 102_400, OTHER_LLAMA, None),  # DeepSeek
        ("llama", None, OTHER_LLAMA, None),
    ],
)
def test_a_base_belongs_to_one_family(
    model_type: str, vocab_size: int | None, title: str, template: str | None
) -> None:
    family = family_of(model_type, vocab_size)
    assert family is not None
    assert (family.title, family.template) == (title, template)
    assert (family.learning_rate_of is None) == (title != OTHER_LLAMA)


@pytest.mark.parametrize("model_type", ["gemma2", "qwen2", "phi3", ""])
def test_other_architectures_belong_to_none(model_type: str) -> None:
    assert family_of(model_type, 32_000) is None


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("mistralai/Mistral-7B-v0.1", "mistral"),
        ("HuggingFaceH4/zephyr-7b-beta", "mistral"),
        ("someone/mistral-7b-from-llama3-answers", "mistral"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3"),
        ("org/llama2-13b", "llama-2"),
        ("models/llama-2-7b", "llama-2"),
        ("google/gemma-7b", "gemma"),
        ("google/codegemma-2b", "gemma"),
        ("google/gemma-2-9b", None),
        ("google/gemma-3-4b-pt", None),
        ("google/recurrentgemma-2b", None),
        ("llama-2-models/Qwen2.5-7B", None),
    ],
)
def test_families_by_name(name: str, family: str | None) -> None:
    found = family_by_name(name)
    assert (found.name if found else None) == family


def test_every_template_exists_and_every_name_is_used_once() -> None:
    assert {family.template for family in FAMILIES} - {None} <= set(TEMPLATES)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def documented(family: Family) -> str:
    sizes = family.vocab_sizes
    upwards = f"{sizes.start:,} or more" if sizes.start else "any"
    downwards = f"{sizes.start:,} to {sizes[-1]:,}" if sizes.start else f"up to {sizes[-1]:,}"
    rate = f"3e-4 / {family.learning_rate_divisor:g}"
    cells = (
        family.title,
        f"`{family.model_type}`",
        upwards if sizes[-1] > 1e9 else downwards,
        f"`{family.template or 'chatml'}`",
        f"{rate}, as {family.learning_rate_of}" if family.learning_rate_of else rate,
    )
    return f"| {' | '.join(cells)} |"


def test_the_documentation_shows_this_table() -> None:
    page = OWN_BASE_PAGE.read_text(encoding="utf-8")
    header = "| family | `model_type` | `vocab_size` | template | learning rate |\n| --- | --- | --- | --- | --- |\n"
    table = page.partition(header)[2].partition("\n\n")[0]
    assert table.splitlines() == [documented(family) for family in FAMILIES]
