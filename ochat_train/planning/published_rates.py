"""Learning rates of supervised fine-tuning that others published: what the rule by width is compared with.

Facts only. Where a source gives conversations and not tokens, a conversation counts as 500 supervised tokens, which is
an assumption and near the mean of the instruction sets that were used.
"""

from __future__ import annotations

from typing import NamedTuple

_TOKENS_PER_CONVERSATION = 500


class PublishedRate(NamedTuple):
    """One published run. tokens_per_step: supervised, or all where a source gives only these; is_assumed: from a number
    of conversations.

    hidden_size: width of the base. rate: the peak. source: where it is written.
    """

    base: str
    hidden_size: int
    tokens_per_step: float
    rate: float
    source: str
    is_assumed: bool = False


def _conversations(base: str, hidden_size: int, number: int, rate: float, source: str) -> PublishedRate:
    return PublishedRate(base, hidden_size, number * _TOKENS_PER_CONVERSATION, rate, source, is_assumed=True)


_OPEN_INSTRUCT = "github.com/allenai/open-instruct, scripts/train"
_HANDBOOK = "github.com/huggingface/alignment-handbook, recipes"
_TULU_3 = "model card of allenai/Llama-3.1-Tulu-3-8B-SFT"

PUBLISHED_RATES: tuple[PublishedRate, ...] = (
    PublishedRate(
        "Mistral-7B (openchat_3.5)", 4096, 250_289, 1.25e-5, "model card of openchat/openchat_3.5 and its trainer"
    ),
    PublishedRate("Olmo 3 7B", 4096, 1_048_576, 8e-5, f"{_OPEN_INSTRUCT}/olmo3/7b_instruct_sft.sh"),
    PublishedRate("Olmo 3 32B", 5120, 4_194_304, 8e-5, f"{_OPEN_INSTRUCT}/olmo3/32b_instruct_sft.sh"),
    _conversations("OLMo 2 13B", 5120, 64, 5e-6, f"{_OPEN_INSTRUCT}/olmo2/finetune_13b.sh"),
    _conversations("OLMo 2 32B", 5120, 256, 4e-6, f"{_OPEN_INSTRUCT}/olmo2/finetune_32b.sh"),
    _conversations("Llama-3.1 8B (Tülu 3)", 4096, 128, 5e-6, _TULU_3),
    _conversations("Llama-3.1 70B (Tülu 3)", 8192, 128, 2e-6, _TULU_3),
    _conversations("Llama-3.1 405B (Tülu 3)", 16384, 256, 2e-6, _TULU_3),
    _conversations("StarCoder2 15B (StarChat2)", 6144, 128, 2e-5, f"{_HANDBOOK}/starchat2-15b/sft"),
    _conversations("Gemma 2B (Zephyr)", 2048, 128, 2e-5, f"{_HANDBOOK}/zephyr-2b-gemma/sft"),
    PublishedRate("SmolLM3 3B", 2048, 128 * 65_536, 2e-5, f"{_HANDBOOK}/smollm3/sft"),
    _conversations("SmolLM2 1.7B", 2048, 128, 3e-4, f"{_HANDBOOK}/smollm2/sft/config.yaml"),
    _conversations("SmolLM2 360M", 960, 128, 1e-3, f"{_HANDBOOK}/smollm2/sft/config_smol.yaml"),
)


class PublishedAdapterRate(NamedTuple):
    """One published run with LoRA or QLoRA. hidden_size: width of the base. conversations: of a step."""

    base: str
    hidden_size: int
    conversations: int
    rate: float
    source: str


_QLORA = "arXiv 2305.14314, hyperparameters on OASST1"

PUBLISHED_ADAPTER_RATES: tuple[PublishedAdapterRate, ...] = (
    PublishedAdapterRate("Llama 7B (QLoRA)", 4096, 16, 2e-4, _QLORA),
    PublishedAdapterRate("Llama 13B (QLoRA)", 5120, 16, 2e-4, _QLORA),
    PublishedAdapterRate("Llama 33B (QLoRA)", 6656, 16, 1e-4, _QLORA),
    PublishedAdapterRate("Llama 65B (QLoRA)", 8192, 16, 1e-4, _QLORA),
    PublishedAdapterRate(
        "Mistral-7B (Zephyr)", 4096, 64, 2e-4, f"{_HANDBOOK}/zephyr-7b-beta/sft/config_qlora.yaml, on 8 GPUs"
    ),
    PublishedAdapterRate("Llama 7B (Alpaca-LoRA)", 4096, 128, 3e-4, "github.com/tloen/alpaca-lora, finetune.py"),
)
