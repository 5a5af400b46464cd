"""Prints the tables of docs/adapters.md that say what fits on which GPUs, as the memory plan computes it.

    python docs/generate_gpu_choices.py --write

puts them into the page; without `--write` they are only printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from ochat_train.model.config import model_without_weights, num_parameters
from ochat_train.planning.memory import MemoryPlan
from ochat_train.planning.report import memory_choice
from ochat_train.recipe.load import load_recipe
from ochat_train.system.sizes import GIB

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "adapters.md"
RECIPE = ROOT / "recipes" / "openchat_3_5.yaml"
BEGIN = "<!-- Printed by docs/generate_gpu_choices.py: begin -->"
END = "<!-- Printed by docs/generate_gpu_choices.py: end -->"
_PACKS_PER_GPU = 6
_PACK_LENGTHS = (8192, 4096, 2048)  # the first that fits counts


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """A column. memory_gib: of each, as the driver of common cards reports it, the least of them."""

    title: str
    number: int
    memory_gib: float


# 24 GB: A10 and L4 report 22.5 GiB, RTX 3090 and 4090 24.0. 48 GB: A40 and L40S report 45.0. 80 GB: H100 reports 79.
GPUS = (
    Gpus(title="24 GB", number=1, memory_gib=22.5),
    Gpus(title="48 GB", number=1, memory_gib=45.0),
    Gpus(title="80 GB", number=1, memory_gib=79.0),
    Gpus(title="2 x 80 GB", number=2, memory_gib=79.0),
    Gpus(title="8 x 80 GB", number=8, memory_gib=79.0),
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train. short: in the table of what to take. settings: of a recipe."""

    title: str
    short: str
    settings: Sequence[str]


# What is taken first comes first.
WAYS = (
    Way(title="all weights", short="full", settings=()),
    Way(
        title="all weights, `train.gradient_dtype: bfloat16`",
        short="full, bfloat16 gradients",
        settings=("train.gradient_dtype=bfloat16",),
    ),
    Way(
        title="all weights, `optimizer.states: 8bit`, bfloat16 gradients",
        short="full, 8bit states",
        settings=("train.gradient_dtype=bfloat16", "optimizer.states=8bit"),
    ),
    Way(title="`adapter: {type: lora}`", short="LoRA", settings=("adapter.type=lora",)),
    Way(title="`adapter: {type: qlora}`", short="QLoRA", settings=("adapter.type=qlora",)),
    Way(
        title="all weights, `deepspeed.offload_optimizer: true`",
        short="offload",
        settings=("deepspeed.offload_optimizer=true",),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A row: shapes of a base that is known by this name. values: of its `config.json`."""

    title: str
    values: dict[str, Any]


# hidden size, MLP, layers, heads, key heads, vocabulary
_SHAPES = {
    "1B (Llama-3.2-1B)": (2048, 8192, 16, 32, 8, 128_256),
    "7B (Mistral-7B)": (4096, 14_336, 32, 32, 8, 32_002),
    "13B (Llama-2-13B)": (5120, 13_824, 40, 40, 40, 32_002),
    "70B (Llama-3.1-70B)": (8192, 28_672, 80, 64, 8, 128_256),
}
_TIED = ("1B (Llama-3.2-1B)",)
BASES = tuple(
    Base(
        title=title,
        values={
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "vocab_size": vocab_size,
            "tie_word_embeddings": title in _TIED,
        },
    )
    for title, (width, mlp, layers, heads, key_heads, vocab_size) in _SHAPES.items()
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one way needs on some GPUs, in the longest packs that fit. plan: None where nothing fits."""

    plan: MemoryPlan | None
    pack_length: int

    def __str__(self) -> str:
        if self.plan is None:
            return "-"
        num_full, num = self.plan.checkpointing.count("full"), len(self.plan.checkpointing)
        parts = [f"{self.plan.total / GIB:.0f} GiB"]
        if num_full:
            parts.append("all layers" if num_full == num else f"{num_full} of {num} layers")
        if self.plan.zero_stage > 1:
            parts.append(f"ZeRO-{self.plan.zero_stage}")
        if self.pack_length != _PACK_LENGTHS[0]:
            parts.append(f"packs of {self.pack_length:,}")
        return ", ".join(parts)


def cell(model: Any, way: Way, gpus: Gpus) -> Cell:
    """What a run would choose. model: the base, without weights."""
    for length in _PACK_LENGTHS:
        settings = [
            f"train.pack_length_tokens={length}",
            f"model.max_length_tokens={length}",
            f"train.tokens_per_step={length * _PACKS_PER_GPU * gpus.number}",
            *way.settings,
        ]
        found = memory_choice(
            load_recipe(RECIPE, settings),
            model,
            vocab_size=model.config.vocab_size,
            num_gpus=gpus.number,
            gpu_memory_gib=gpus.memory_gib,
        ).chosen
        if found.fits:
            return Cell(plan=found, pack_length=length)
    return Cell(plan=None, pack_length=length)


def tables() -> str:
    """What to take, then what each way needs, as Markdown."""
    models = [(base, model_without_weights(transformers.AutoConfig.for_model(**base.values))) for base in BASES]
    cells = {
        (base.title, way.title): [cell(model, way, gpus) for gpus in GPUS] for base, model in models for way in WAYS
    }
    parts = [_row("base", *(gpus.title for gpus in GPUS)), _row(*["---"] * (len(GPUS) + 1))]
    parts += [_row(base.title, *_taken(cells, base)) for base in BASES]
    for base, model in models:
        billions = num_parameters(model, model.config.vocab_size) / 1e9
        parts += ["", f"### {base.title}, {billions:.3g} billion parameters", ""]
        parts += [_row("trained", *(gpus.title for gpus in GPUS)), _row(*["---"] * (len(GPUS) + 1))]
        parts += [_row(way.title, *map(str, cells[base.title, way.title])) for way in WAYS]
    return "\n".join(parts)


def _taken(cells: dict[tuple[str, str], list[Cell]], base: Base) -> Iterator[str]:
    """The first way that fits, on each kind of GPUs: in packs of full length before shorter ones."""
    for column in range(len(GPUS)):
        fitting = [(way.short, found) for way in WAYS if (found := cells[base.title, way.title][column]).plan]
        whole = [short for short, found in fitting if found.pack_length == _PACK_LENGTHS[0]]
        yield whole[0] if whole else next((f"{short}, shorter packs" for short, _ in fitting), "-")


def _row(*values: str) -> str:
    return f"| {' | '.join(values)} |"


def page_with(tables_text: str) -> str:
    """The page with these tables between its two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, f"{PAGE} has no marks for the tables"
    return f"{before}{BEGIN}\n\n{tables_text}\n\n{END}{after}"


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into docs/adapters.md")
    if parser.parse_args().write:
        PAGE.write_text(page_with(tables()), encoding="utf-8")
    else:
        print(tables())


if __name__ == "__main__":
    main()
