"""Families of base models: which one a base belongs to, and the prompt format, learning rate and notes that go with it.

The one table behind `ochat init`, `optimizer.learning_rate: auto` and docs/bases.md. To add a family, add a row (the
first that fits counts) and print the page again; a test compares the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANY_SIZE = range(2**63 - 1)
_MOST_ADDED_TOKENS = 1024  # control tokens and padding; other vocabularies built on Llama's are larger by 10,000s


@dataclass(frozen=True, kw_only=True)
class Family:
    """Bases that share an architecture, a tokenizer and a rule for the learning rate.

    name: short, unique. title: for a sentence ("the learning rate of ...").
    model_types: as in the base's `config.json`.
    vocab_sizes: its `vocab_size`, tokens that were added to the base included.
    template: the prompt format of OpenChat's models of this family, None where OpenChat has none that is known here.
    learning_rate_divisor: divides OpenChat's learning rate of Llama-2 (its `ochat/training_deepspeed/train.py`); None
    where OpenChat has no constant: then the base's width decides (planning/learning_rate.py).
    learning_rate_of: title of the family whose constant this one takes, None if OpenChat has one for it.
    name_pattern: regular expression that finds the family in a model's name, for bases whose config is not at hand;
    None where no name tells.
    notes: for docs/bases.md, what a user should know before training such a base.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    vocab_sizes: range = _ANY_SIZE
    template: str | None = None
    learning_rate_divisor: float | None = None
    learning_rate_of: str | None = None
    name_pattern: str | None = None
    notes: str = ""


def _with_added_tokens(vocab_size: int) -> range:
    return range(vocab_size, vocab_size + _MOST_ADDED_TOKENS)


_OTHER_LLAMA = "other bases of the Llama architecture"
_EXPERTS = "Mixture of experts."
_BORDERS = "right everywhere, slow without a GPU and the packages whose kernels take borders of conversations"

# Families for which OpenChat has a constant, and other Llamas. Runs that were started with `auto` resume with the rate
# that is here.
_OPENCHAT = (
    Family(
        name="mistral",
        title="Mistral",
        model_types=("mistral",),
        template="openchat_3.5",
        learning_rate_divisor=6.0,
        name_pattern=r"mistral(?!-(small|medium|large))|zephyr",
        notes="The base of openchat_3.5.",
    ),
    Family(
        name="gemma",
        title="Gemma",
        model_types=("gemma",),
        learning_rate_divisor=5.5,
        name_pattern=r"^(code)?gemma-(1\.1|2b|7b)",  # Gemma 2 and later have other architectures
        notes="The first generation.",
    ),
    Family(
        name="llama-3",
        title="Llama-3",
        model_types=("llama",),
        vocab_sizes=_with_added_tokens(128_256),
        template="openchat_3.6",
        learning_rate_divisor=5.3,
        name_pattern=r"llama-?3",
        notes="The base of openchat_3.6. Llama 3.1, 3.2 and 3.3 too.",
    ),
    Family(
        name="llama-2",
        title="Llama-2",
        model_types=("llama",),
        vocab_sizes=_with_added_tokens(32_000),
        template="openchat_3.2",
        learning_rate_divisor=1.0,
        name_pattern=r"llama-?2",
        notes="The rate is high compared with other published ones (2e-5): newer bases of this shape may want less.",
    ),
    Family(
        name="llama-large-vocabulary",
        title=_OTHER_LLAMA,
        model_types=("llama",),
        vocab_sizes=range(100_000, _ANY_SIZE.stop),
        learning_rate_divisor=5.3,
        learning_rate_of="Llama-3",
        notes="The constant is that of the Llama with the nearest vocabulary. Compare it with other rates.",
    ),
    Family(
        name="llama-small-vocabulary",
        title=_OTHER_LLAMA,
        model_types=("llama",),
        vocab_sizes=range(100_000),
        learning_rate_divisor=1.0,
        learning_rate_of="Llama-2",
        name_pattern=r"smollm2|smollm-|tinyllama",
        notes="SmolLM2, TinyLlama, Yi. The constant is that of Llama-2. Compare it with other rates.",
    ),
)

_BY_WIDTH = (
    Family(
        name="mixtral",
        title="Mixtral",
        model_types=("mixtral",),
        name_pattern=r"mixtral",
        notes=_EXPERTS,
    ),
    Family(
        name="ministral",
        title="Ministral and Mistral 3",
        model_types=("ministral", "ministral3", "mistral3", "mistral4"),
        name_pattern=r"ministral|mistral-(small|medium|large)",
        notes="`mistral3` holds a vision part.",
    ),
    Family(
        name="llama-4",
        title="Llama 4",
        model_types=("llama4_text", "llama4"),
        name_pattern=r"llama-?4",
        notes=f"{_EXPERTS} `llama4` holds a vision part.",
    ),
    Family(
        name="qwen-hybrid",
        title="Qwen3-Next and Qwen3.5",
        model_types=("qwen3_next", "qwen3_5_text", "qwen3_5", "qwen3_5_moe_text", "qwen3_5_moe"),
        name_pattern=r"qwen-?(3-next|3\.[5-9])",
        notes=f"Hybrid of attention and linear attention: {_BORDERS}.",
    ),
    Family(
        name="qwen-moe",
        title="Qwen, mixture of experts",
        model_types=("qwen2_moe", "qwen3_moe"),
        name_pattern=r"qwen.*-a\d",
        notes=_EXPERTS,
    ),
    Family(
        name="qwen",
        title="Qwen2, Qwen2.5 and Qwen3",
        model_types=("qwen2", "qwen3"),
        name_pattern=r"qwen|qwq",
        notes="The tokenizer has the control tokens of `chatml`.",
    ),
    Family(
        name="gemma-2",
        title="Gemma 2",
        model_types=("gemma2",),
        name_pattern=r"^gemma-2-",
        notes="Soft-caps attention scores and logits.",
    ),
    Family(
        name="gemma-3",
        title="Gemma 3",
        model_types=("gemma3_text", "gemma3", "gemma3n_text", "gemma3n"),
        name_pattern=r"^(med)?gemma-3",
        notes="`gemma3` holds a vision part, `gemma3_text` (270M, 1B) does not.",
    ),
    Family(
        name="gemma-4",
        title="Gemma 4",
        model_types=("gemma4_text", "gemma4", "gemma4_unified_text", "gemma4_unified"),
        name_pattern=r"^gemma-4",
        notes="Soft-caps logits. `gemma4` holds a vision part.",
    ),
    Family(
        name="olmo",
        title="OLMo",
        model_types=("olmo", "olmo2", "olmo3", "olmoe", "flex_olmo"),
        name_pattern=r"^olmo",
        notes="`olmoe` and `flex_olmo` are mixtures of experts.",
    ),
    Family(
        name="smollm3",
        title="SmolLM3",
        model_types=("smollm3",),
        name_pattern=r"smollm-?3",
    ),
    Family(
        name="phi",
        title="Phi",
        model_types=("phi", "phi3", "phimoe"),
        name_pattern=r"^phi-",
        notes="Phi-3, Phi-3.5 and Phi-4 are `phi3`. Bases of 128,000 positions scale rotations by the text's length.",
    ),
    Family(
        name="glm",
        title="GLM 4",
        model_types=("glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
        name_pattern=r"^glm-",
        notes="`glm4_moe` and later are mixtures of experts. Sparse attention (`glm_moe_dsa`) is refused.",
    ),
    Family(
        name="granite-hybrid",
        title="Granite 4",
        model_types=("granitemoehybrid",),
        name_pattern=r"granite-4",
        notes=f"With Mamba-2 layers: {_BORDERS}.",
    ),
    Family(
        name="granite",
        title="Granite",
        model_types=("granite", "granitemoe", "granitemoeshared"),
        name_pattern=r"granite",
        notes="Scales embeddings, residuals and logits.",
    ),
    Family(
        name="cohere",
        title="Cohere Command",
        model_types=("cohere", "cohere2", "cohere2_moe"),
        name_pattern=r"command-|^c4ai|^aya-",
        notes="Scales logits.",
    ),
    Family(
        name="gpt-oss",
        title="gpt-oss",
        model_types=("gpt_oss",),
        name_pattern=r"gpt-oss",
        notes=f"{_EXPERTS} Attention sinks. Published weights are quantised (MXFP4): convert them to bfloat16 first.",
    ),
    Family(
        name="deepseek",
        title="DeepSeek",
        model_types=("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4"),
        name_pattern=r"deepseek-(v[2-9]|r\d$)",
        notes=f"{_EXPERTS} Published weights of V3 and later are float8: convert them to bfloat16 first. Sparse "
        "attention (`deepseek_v32`, `deepseek_v4`) is refused.",
    ),
    Family(
        name="minimax",
        title="MiniMax",
        model_types=("minimax", "minimax_m2"),
        name_pattern=r"minimax",
        notes=f"{_EXPERTS} `minimax` has lightning attention: right everywhere, but slow.",
    ),
    Family(
        name="hybrid",
        title="other hybrids",
        model_types=("lfm2", "lfm2_moe", "falcon_h1", "bamba", "nemotron_h", "jamba", "zamba2", "olmo_hybrid"),
        name_pattern=r"^lfm2|falcon-h1|^bamba|nemotron-(h|nano)|jamba|zamba2",
        notes=f"Short convolutions, Mamba or linear attention between attention layers: {_BORDERS}.",
    ),
    Family(
        name="other-experts",
        title="other mixtures of experts",
        model_types=("ernie4_5_moe", "hunyuan_v1_moe", "dots1", "afmoe", "longcat_flash", "solar_open"),
        name_pattern=r"^ernie-4\.5.*-a\d|^hunyuan.*-a\d|^dots\.llm|longcat",
        notes=_EXPERTS,
    ),
    Family(
        name="other-dense",
        title="other dense bases",
        model_types=(
            *("apertus", "arcee", "ernie4_5", "exaone4", "falcon", "gpt2", "gpt_neox", "helium", "hunyuan_v1_dense"),
            *("internlm3", "nemotron", "opt", "seed_oss", "stablelm", "starcoder2"),
        ),
        name_pattern=r"^(apertus|exaone|seed-oss|starcoder2|falcon|pythia|gpt2|opt-|stablelm|internlm3|nemotron)",
        notes="All others that `transformers` knows as causal LMs take the same rule.",
    ),
)

# Names are also searched in this order: a Mistral fine-tuned on a Llama's answers is a Mistral.
FAMILIES: tuple[Family, ...] = (*_OPENCHAT, *_BY_WIDTH)


def family_of(model_type: str, vocab_size: int | None) -> Family | None:
    """The family of a base by its `config.json`, None where it belongs to none.

    vocab_size: None if the config does not say; only families that accept every size are found then, or the last of
    an architecture.
    """
    return next(
        (family for family in FAMILIES if model_type in family.model_types and (vocab_size or 0) in family.vocab_sizes),
        None,
    )


def family_by_name(name: str) -> Family | None:
    """The family that a base's name (Hub id or folder) mentions, None where it mentions none."""
    plain = name.rpartition("/")[2].lower()
    named = (family for family in FAMILIES if family.name_pattern is not None)
    return next((family for family in named if re.search(family.name_pattern or "", plain)), None)
