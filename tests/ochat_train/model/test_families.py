"""The table of families: its learning rates, its templates, its names. docs/bases.md is compared in tests/docs."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.model.families import FAMILIES, family_by_name, family_of
from ochat_train.planning.learning_rate import auto_learning_rate

VOCABULARIES = (0, 1, 31_999, 32_000, 32_002, 33_023, 33_024, 49_152, 64_000, 99_999, 100_000, 102_400, 128_255)
VOCABULARIES += (128_256, 128_258, 129_279, 129_280, 131_072, 256_000)
OTHER_LLAMA = "other bases of the Llama architecture"


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_learning_rates_are_those_of_the_first_release(vocab_size: int) -> None:
    """Runs that were started with `auto` resume with their rate: 3e-4 over these numbers, by size alone for Llama."""
    divisors = {"mistral": 6.0, "gemma": 5.5, "llama": 5.3 if vocab_size >= 100_000 else 1.0}
    for model_type, divisor in divisors.items():
        rate = auto_learning_rate(
            model_type=model_type, vocab_size=vocab_size, hidden_size=64, supervised_tokens_per_step=4e6
        )
        assert rate.value == 3e-4 / divisor


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


@pytest.mark.parametrize("model_type", ["unheard", ""])
def test_other_architectures_belong_to_none(model_type: str) -> None:
    assert family_of(model_type, 32_000) is None


def test_openchats_constants_are_for_its_own_families_only() -> None:
    of_openchat = [family for family in FAMILIES if family.learning_rate_divisor and family.learning_rate_of is None]
    assert [family.title for family in of_openchat] == ["Mistral", "Gemma", "Llama-3", "Llama-2"]
    others = [family for family in FAMILIES if family not in of_openchat and family.model_types != ("llama",)]
    assert len(others) > 20
    assert all(family.learning_rate_divisor is None and family.template is None for family in others)


def test_every_architecture_is_one_that_transformers_knows_and_in_one_family() -> None:
    named = [name for family in FAMILIES for name in family.model_types if family.model_types != ("llama",)]
    assert len(named) == len(set(named))
    if Version(transformers.__version__) >= Version("5.23"):  # older ones do not know the newest
        assert set(named) <= set(CONFIG_MAPPING_NAMES)


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
        ("google/gemma-2-9b", "gemma-2"),
        ("google/gemma-3-4b-pt", "gemma-3"),
        ("google/recurrentgemma-2b", None),
        ("llama-2-models/Qwen2.5-7B", "qwen"),
        ("Qwen/Qwen3-0.6B-Base", "qwen"),
        ("Qwen/Qwen3-30B-A3B-Base", "qwen-moe"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen-hybrid"),
        ("Qwen/Qwen3.5-4B", "qwen-hybrid"),
        ("mistralai/Ministral-3-8B-Base-2512", "ministral"),
        ("mistralai/Mistral-Small-3.1-24B-Base-2503", "ministral"),
        ("mistralai/Mistral-Nemo-Base-2407", "mistral"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral"),
        ("meta-llama/Llama-4-Scout-17B-16E", "llama-4"),
        ("meta-llama/Llama-3.2-1B", "llama-3"),
        ("HuggingFaceTB/SmolLM2-1.7B", "llama-small-vocabulary"),
        ("HuggingFaceTB/SmolLM3-3B-Base", "smollm3"),
        ("allenai/Olmo-3-1025-7B", "olmo"),
        ("microsoft/phi-4", "phi"),
        ("zai-org/GLM-4-9B-0414", "glm"),
        ("ibm-granite/granite-3.3-8b-base", "granite"),
        ("ibm-granite/granite-4.0-h-tiny-base", "granite-hybrid"),
        ("CohereLabs/c4ai-command-r7b-12-2024", "cohere"),
        ("openai/gpt-oss-20b", "gpt-oss"),
        ("deepseek-ai/DeepSeek-V3-Base", "deepseek"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen"),
        ("tiiuae/Falcon-H1-1.5B-Base", "hybrid"),
        ("LiquidAI/LFM2-1.2B", "hybrid"),
        ("someone/unheard-7b", None),
    ],
)
def test_families_by_name(name: str, family: str | None) -> None:
    found = family_by_name(name)
    assert (found.name if found else None) == family


def test_every_template_exists_and_every_name_is_used_once() -> None:
    assert {family.template for family in FAMILIES} - {None} <= set(TEMPLATES)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
