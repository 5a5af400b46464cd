"""Prints docs/bases.md: the families of bases, the learning rate of `auto`, and what was proven.

python docs/generate_bases.py > docs/bases.md
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ochat_train.model.families import FAMILIES, Family
from ochat_train.planning.learning_rate import auto_learning_rate
from ochat_train.planning.published_rates import PUBLISHED_RATES, PublishedRate

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "bases.json"

_VERDICTS = ("right", "refused", "wrong", "crash")

_INTRODUCTION = """\
# Families of bases

<!-- Printed by docs/generate_bases.py from ochat_train/model/families.py and benchmarks/bases.json: change those. -->

What `ochat init` and `learning_rate: auto` know of a base, and what was measured for it. How to train one:
[another base model](own-base.md).

## The table

The base's `config.json` decides to which family it belongs: its `model_type` and its `vocab_size`. The first row that
fits counts. Without the configuration `ochat init` goes by the name.

A template is named where OpenChat has one for the family. For the others `ochat init` takes one whose control tokens
the tokenizer already has, `chatml` before others, and `chatml` where it has those of none: missing control tokens are
added. A base that is in no row is treated as the last one.
"""

_LEARNING_RATE = """\
## The learning rate

`optimizer.learning_rate: auto` is

    learning rate = base * sqrt(supervised tokens per step / 4,000,000)

- **OpenChat's rule**: for the families that it has a constant for, base = 3e-4 / divisor. Other bases of the Llama
  architecture take the constant of the Llama with the nearest size of vocabulary.
- **The rule by width**, for all others: base = 5e-5 * 4096 / `hidden_size`. That is OpenChat's rate for Mistral,
  divided by how much wider the base is. It is the same for dense bases and mixtures of experts.

The rules were compared with published runs of 32,000 to 8,388,608 supervised tokens a step (the table below). Steps
with fewer or more count as the nearest of the two: 400 conversations on 8 GPUs may leave 560 tokens a step, and the
square root alone would give a rate of 6e-7 for Mistral, seven times below any in the table. With the end of the rule
it is 4.5e-6. A run that was begun before the rules had ends is resumed without them.

`ochat init`, `ochat check`, `ochat plan` and the start of a run say which rule gave the value. All but `plan` also
print the lowest and highest published rate of bases that are at most 1.5 times wider or narrower.

Why the width: steps of Adam have a size that does not depend on the gradient's, so the change of a layer's output grows
with learning rate and width. Keeping their product constant is the rule of muP for hidden matrices
([arXiv 2203.03466](https://arxiv.org/abs/2203.03466)). Published pairs of one recipe agree: from 8B to 70B the width
doubles, and Tülu 3 goes from 5e-6 to 2e-6.

Compared with published rates (`ratio`: published / rule). A `*` marks steps that are published in conversations, which
count here as 500 supervised tokens each. Steps of packs of constant length count as a whole:
"""

_LIMITS = """\
The rule is a place to start, not an optimum:

- Published rates differ more than sizes do. At a width of 2,048, SmolLM2 was trained with 3e-4 and SmolLM3 with 2e-5 at
  steps that are a hundred times as large; the rule is between them. Qwen2.5 was trained with 7e-6 at every size from
  0.5B to 72B ([arXiv 2412.15115](https://arxiv.org/abs/2412.15115)), and does not say with how many tokens a step.
- Small bases (below 2B) often take several times the rate of the rule. A base that has already been tuned, or data that
  are close to what it knows, wants less.
- It does not know the vocabulary, the number of layers or of experts, and how long the base was trained.
- The square root holds for steps that are not far larger than 4 million supervised tokens.

Try half and double the value on a few hundred steps, and compare held-out losses.
"""

_PROVEN = """\
## What was proven

Every start of a run, and `ochat check`, compares a small copy of the base with `transformers`: packed conversations
with each conversation alone. So a base that is missing here is not trained wrongly, it is proven or refused.

`python benchmarks/bases.py` does the same for many configurations on purpose: small models of random weights, trained
on packs, the gradients of all parameters against each conversation alone through the eager attention of `transformers`
in float64. `error`: the relative difference of all gradients together. `control`: the same with conversations that are
not kept apart.
"""

_NOTHING = "\nNo results are committed: run it with `--json > benchmarks/bases.json`, and print this page again.\n"


def page() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION, *_families(), "", _LEARNING_RATE, *_published(), "", _LIMITS, _PROVEN]
    return "\n".join(parts) + (_results(read_results()) or _NOTHING)


def read_results() -> list[Mapping[str, Any]]:
    """The rows of benchmarks/bases.json, none where it is not there."""
    return list(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.is_file() else []


def _families() -> Iterator[str]:
    yield "| family | `model_type` | `vocab_size` | template | learning rate | notes |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for family in FAMILIES:
        cells = (
            family.title,
            ", ".join(f"`{name}`" for name in family.model_types),
            _vocabulary(family),
            f"`{family.template}`" if family.template else "by the tokenizer",
            _rate(family),
            family.notes,
        )
        yield _row(cells)


def _row(cells: Iterable[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def _vocabulary(family: Family) -> str:
    sizes = family.vocab_sizes
    if sizes[-1] > 1e9:
        return f"{sizes.start:,} or more" if sizes.start else "any"
    return f"{sizes.start:,} to {sizes[-1]:,}" if sizes.start else f"up to {sizes[-1]:,}"


def _rate(family: Family) -> str:
    if family.learning_rate_divisor is None:
        return "by width"
    rate = f"3e-4 / {family.learning_rate_divisor:g}"
    return f"{rate}, as {family.learning_rate_of}" if family.learning_rate_of else rate


def _published() -> Iterator[str]:
    yield "| base | width | supervised tokens a step | published | rule by width | ratio | source |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in PUBLISHED_RATES:
        rule = rule_by_width(row)
        tokens = f"{row.tokens_per_step:,.0f}{' *' if row.is_assumed else ''}"
        numbers = (f"{row.hidden_size:,}", tokens, f"{row.rate:.3g}", f"{rule:.2g}", f"{row.rate / rule:.2g}")
        yield _row((row.base, *numbers, row.source))


def rule_by_width(row: PublishedRate) -> float:
    """What the rule by width gives for a published run, whatever rule its family has."""
    rate = auto_learning_rate(
        model_type="", vocab_size=None, hidden_size=row.hidden_size, supervised_tokens_per_step=row.tokens_per_step
    )
    return rate.value


def _results(rows: list[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    counts = Counter(row["verdict"] for row in rows)
    came_out = ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts, key=_VERDICTS.index))
    versions = {", ".join(f"{name} {number}" for name, number in sorted(row["versions"].items())) for row in rows}
    lines = [
        "",
        f"{len(rows)} configurations: {came_out}. With {'; '.join(sorted(versions))}.",
        "",
        "| base | kernel | came out | error | control | why |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(_result_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _result_cells(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"`{row['base']}`"
    yield f"`{row.get('kernel', 'sdpa')}`"
    yield str(row["verdict"])
    for key in ("error", "control"):
        yield "" if row[key] is None else f"{row[key]:.1e}"
    yield str(row["why"] or "").replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    print(page(), end="")
