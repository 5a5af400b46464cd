"""Everything that a first recipe says, and why, before it becomes text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.look.raw import SourceLook, token_lengths, under_inference_condition
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import load_tokenizer_spec
from data_pipeline.settings import ClassSettings
from ochat_train.init import sizes
from ochat_train.init.base import Base
from ochat_train.init.classes import ClassedSource
from ochat_train.init.sizes import Decision
from ochat_train.recipe.sections import Recipe

BETA = 0.4342945  # 1 / ln(10): a reward that is 1 lower weighs a tenth
_LEARNING_RATE = 1e-5  # near OpenChat's for a 7B model


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the conversations looked at, int64, a source each. exact: by the base's tokenizer, else by their
    characters.
    """

    by_source: Sequence[np.ndarray]
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The values of a recipe."""

    name: str
    base: Base
    template: Decision[str]
    sources: Sequence[ClassedSource]
    classes: Mapping[str, ClassSettings]
    prepared_dir: str
    bad_rows: Decision[str]
    gpus: int
    max_length: Decision[int]
    pack_length: Decision[int]
    tokens_per_step: Decision[int]
    epochs: Decision[int]
    validation_ratio: Decision[float]
    learning_rate: Decision[str]
    save_every: Decision[int]


def measure(looks: Sequence[SourceLook], base: Base | None, template: str) -> Lengths:
    """Lengths by the base's tokenizer where it is on this machine. Raises UserError for a tokenizer that cannot be
    used.
    """
    estimated = Lengths(by_source=[sizes.estimated_tokens(look.characters()) for look in looks], exact=False)
    if base is None or "tokenizer.json" not in base.tokenizer_files:
        return estimated
    rules = TEMPLATES[template]
    tokenizer = load_tokenizer_spec(base.tokenizer_files, rules)
    asked = [[under_inference_condition(conversation, rules) for conversation in look.conversations] for look in looks]
    counted = [token_lengths(conversations, rules, tokenizer) for conversations in asked]
    all_counted = all(
        len(tokens) for tokens in counted
    )  # none where the vocabulary spells control tokens in every text
    return Lengths(by_source=counted, exact=True) if all_counted else estimated


def make_draft(
    *,
    name: str,
    base: Base,
    template: Decision[str],
    sources: Sequence[ClassedSource],
    classes: Mapping[str, ClassSettings],
    lengths: Lengths,
    gpus: int,
    bad_rows: Decision[str],
    max_length: int | None,
    epochs: int | None,
) -> Draft:
    """Decide the rest. max_length, epochs: what the user said, or None."""
    num_rows = sum(source.look.num_rows for source in sources)
    length = sizes.choose_max_length(lengths.by_source, max_positions=base.max_positions, exact=lengths.exact)
    if max_length is not None:
        length = Decision(value=max_length, reason=f"as you said; {length.reason}")
    total_tokens = _total_tokens(lengths, [source.look for source in sources], max_length=length.value)
    pack = sizes.choose_pack_length(max_length=length.value, total_tokens=total_tokens, gpus=gpus)
    step = sizes.choose_tokens_per_step(pack_length=pack.value, total_tokens=total_tokens, gpus=gpus)
    return Draft(
        name=name,
        base=base,
        template=template,
        sources=sources,
        classes=classes,
        bad_rows=bad_rows,
        gpus=gpus,
        prepared_dir=_prepared_dir(name, [source.look.path for source in sources]),
        max_length=length,
        pack_length=pack,
        tokens_per_step=step,
        epochs=sizes.choose_epochs(num_rows) if epochs is None else Decision(value=epochs, reason="as you said"),
        validation_ratio=sizes.choose_validation_ratio(_num_prompts(sources)),
        learning_rate=_learning_rate(base),
        save_every=sizes.choose_save_every(total_tokens=total_tokens, tokens_per_step=step.value),
    )


def lost_values(draft: Draft, recipe: Recipe) -> list[str]:
    """What of base, classes and sources the recipe does not hold as the draft has it."""
    pairs = {
        "base": (draft.base.name, recipe.model.path),
        "classes": (
            {name: (spec.condition, spec.reward) for name, spec in draft.classes.items()},
            {name: (spec.condition, spec.reward) for name, spec in recipe.data.classes.items()},
        ),
        "sources": (
            [(source.look.path, source.look.format, source.class_name, source.class_field) for source in draft.sources],
            [(source.path, source.format, source.class_name, source.class_field) for source in recipe.data.sources],
        ),
    }
    return [what for what, (wanted, found) in pairs.items() if wanted != found]


def _total_tokens(lengths: Lengths, looks: Sequence[SourceLook], *, max_length: int) -> int:
    """Tokens of an epoch, from the mean of those looked at; longer ones are cut."""
    means = (float(np.minimum(tokens, max_length).mean()) for tokens in lengths.by_source)
    return int(sum(mean * look.num_rows for mean, look in zip(means, looks, strict=True)))


def _learning_rate(base: Base) -> Decision[str]:
    family = base.family
    if family is None:
        reason = "a careful value: OpenChat's rule does not cover this model"
        return Decision(value=f"{_LEARNING_RATE:.1e}", reason=reason)
    if family.learning_rate_of is None:
        return Decision(value="auto", reason="OpenChat's rule for this family of models")
    reason = f"OpenChat's rule for {family.learning_rate_of}: it has none for {family.title}, so compare other rates"
    return Decision(value="auto", reason=reason)


def _num_prompts(sources: Sequence[ClassedSource]) -> int:
    """Different first prompts of all sources, from the share that they are of the samples."""
    looks = [source.look for source in sources]
    prompts: set[tuple[str, str]] = set().union(*(look.prompts for look in looks))
    return round(len(prompts) * sum(look.num_rows for look in looks) / sum(look.num_sampled for look in looks))


def _prepared_dir(name: str, paths: Sequence[str]) -> str:
    """Where the prepared dataset goes: never into a folder that is read as a source."""
    folders = [Path(path.partition("*")[0]).resolve() for path in paths if Path(path).is_dir() or "**" in path]
    usual = Path("data/prepared", name)
    inside = any(usual.resolve().is_relative_to(folder) for folder in folders)
    return str(Path("prepared", name) if inside else usual)
