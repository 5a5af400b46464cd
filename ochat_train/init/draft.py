"""Everything that a first recipe says, and why, before it becomes text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipeline.look.raw import SourceLook, token_lengths, under_inference_condition
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from data_pipeline.settings.classes import ClassSettings
from ochat_train.init import sizes
from ochat_train.init.adapter import NONE
from ochat_train.init.base import Base
from ochat_train.init.classes import ClassedSource
from ochat_train.init.sizes import Decision
from ochat_train.planning.learning_rate import auto_learning_rate
from ochat_train.recipe.recipe import Recipe

BETA = 0.4342945  # 1 / ln(10): a reward that is 1 lower weighs a tenth
_LEARNING_RATE = 1e-5  # near OpenChat's for a 7B model
_ADAPTER_LEARNING_RATE = 2e-4  # QLoRA's for a 7B model


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the sampled conversations, an int64 array for each source. exact: counted by the base's tokenizer;
    otherwise estimated from the number of characters.
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
    plan: Decision[str]
    epochs: Decision[int]
    validation_ratio: Decision[float]
    adapter: Decision[str]
    learning_rate: Decision[str]
    save_every: Decision[int]


def measure(looks: Sequence[SourceLook], base: Base | None, template: str) -> Lengths:
    """Lengths by the base's tokenizer if it is on this machine. Raises UserError for one that cannot be used."""
    estimated = Lengths(by_source=[sizes.estimated_tokens(look.characters()) for look in looks], exact=False)
    if base is None or "tokenizer.json" not in base.tokenizer_files:
        return estimated
    rules = TEMPLATES[template]
    tokenizer = load_tokenizer_spec(base.tokenizer_files, rules)
    asked = [[under_inference_condition(conversation, rules) for conversation in look.conversations] for look in looks]
    counted = [token_lengths(conversations, rules, tokenizer) for conversations in asked]
    # a vocabulary that spells control tokens in every text leaves nothing to count
    return Lengths(by_source=counted, exact=True) if all(map(len, counted)) else estimated


def choose_template(flag: str | None, base: Base | None) -> Decision[str]:
    """`model.template`. flag: `--template`; base: None if it is not known yet, and what follows only shows what is
    missing.
    """
    if flag is not None:
        return Decision(value=flag, reason="from --template")
    if base is None:
        return Decision(value=next(iter(TEMPLATES)), reason="")
    tokens = "" if base.vocab_size is None else f", {base.vocab_size:,} tokens"
    how = "by its name" if base.model_type is None else f"model_type {base.model_type}{tokens}"
    if base.family is None or base.family.template is None:
        bases = "this base" if base.family is None else base.family.title
        why = "the tokenizer has its control tokens, and " if base.has_control_tokens else ""
        return Decision(value=base.template, reason=f"{why}OpenChat has no format for {bases} ({how})")
    return Decision(value=base.template, reason=f"OpenChat's for {base.family.title} ({how})")


def choose_bad_rows(flag: str | None, answer: str | None, *, unreadable: str | None) -> Decision[str]:
    """`data.bad_rows`. flag: `--bad-rows`; answer: a person's; unreadable: what was found, None if all can be read."""
    if flag is not None:
        return Decision(value=flag, reason="from --bad-rows")
    if unreadable is None:
        return Decision(value="error", reason="every sampled row can be read")
    if answer == "drop":
        return Decision(value="drop", reason=unreadable)
    return Decision(value="error", reason=f"{unreadable}; repair them, or leave them out with `drop`")


def recipe_name(out: Path) -> str:
    """The name of a run from the file name of its recipe, as `NAME_PATTERN` allows it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", out.stem).lstrip("._-")[:64] or "mine"


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
    """Decide the rest. max_length, epochs: from the flags, or None."""
    num_rows = sum(source.look.num_rows for source in sources)
    length = sizes.choose_max_length(lengths.by_source, max_positions=base.max_positions, exact=lengths.exact)
    if max_length is not None:
        length = Decision(value=max_length, reason=f"from --max-length; {length.reason}")
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
        plan=sizes.choose_plan(num_packs=step.value // pack.value, gpus=gpus),
        epochs=sizes.choose_epochs(num_rows) if epochs is None else Decision(value=epochs, reason="from --epochs"),
        validation_ratio=sizes.choose_validation_ratio(_num_prompts(sources)),
        adapter=Decision(value=NONE, reason="all weights are trained"),
        learning_rate=_learning_rate(base, tokens_per_step=step.value),
        save_every=sizes.choose_save_every(total_tokens=total_tokens, tokens_per_step=step.value),
    )


def with_adapter(draft: Draft, adapter: Decision[str]) -> Draft:
    """The draft with an adapter, or without one, and the learning rate that goes with it."""
    if adapter.value == NONE:
        return replace(draft, adapter=adapter)
    rate = Decision(value="auto", reason="rule for adapters, by the base's width (docs/adapters.md)")
    if draft.base.model_type is not None and draft.base.hidden_size is None:
        reason = "usual for adapters: the base's configuration names no width, which `auto` needs"
        rate = Decision(value=f"{_ADAPTER_LEARNING_RATE:.1e}", reason=reason)
    return replace(draft, adapter=adapter, learning_rate=rate)


def lost_values(draft: Draft, recipe: Recipe) -> list[str]:
    """Which of base, classes, sources and adapter differ between the draft and the recipe read back."""
    pairs = {
        "base": (draft.base.name, recipe.model.path),
        "classes": (
            {name: (spec.condition, spec.reward) for name, spec in draft.classes.items()},
            {name: (spec.condition, spec.reward) for name, spec in recipe.data.classes.items()},
        ),
        "sources": (
            [(s.look.path, s.look.format, s.class_name, s.class_field, s.look.layout.fields) for s in draft.sources],
            [(s.path, s.format, s.class_name, s.class_field, s.row_fields) for s in recipe.data.sources],
        ),
        "adapter": (draft.adapter.value, NONE if recipe.adapter is None else recipe.adapter.type),
    }
    return [what for what, (wanted, found) in pairs.items() if wanted != found]


def _total_tokens(lengths: Lengths, looks: Sequence[SourceLook], *, max_length: int) -> int:
    """Tokens of an epoch, from the mean of the sampled conversations; longer ones are cut."""
    means = (float(np.minimum(tokens, max_length).mean()) for tokens in lengths.by_source)
    return int(sum(mean * look.num_rows for mean, look in zip(means, looks, strict=True)))


def _learning_rate(base: Base, *, tokens_per_step: int) -> Decision[str]:
    """`optimizer.learning_rate`, with the number that `auto` gives at most."""
    family = base.family
    if (
        base.model_type is not None
        and base.hidden_size is None
        and (family is None or not family.learning_rate_divisor)
    ):
        reason = "a low value to start from: the base's configuration names no width, which `auto` needs"
        return Decision(value=f"{_LEARNING_RATE:.1e}", reason=reason)
    if family is not None and family.learning_rate_divisor is not None:
        reason = "OpenChat's rule for this family of models"
        if family.learning_rate_of is not None:
            reason = (
                f"OpenChat's rule for {family.learning_rate_of}: it has none for {family.title}, so compare other rates"
            )
    else:
        title = family.title if family else "this base"
        reason = f"by the base's width: OpenChat has no rule for {title}, so compare other rates"
    return Decision(value="auto", reason=f"{reason}{_rate_text(base, tokens_per_step)}")


def _rate_text(base: Base, tokens_per_step: int) -> str:
    """The number that `auto` gives, and what is usual; empty where the base's configuration is not on this machine."""
    if base.model_type is None:
        return ""
    least, most = (
        auto_learning_rate(
            model_type=base.model_type,
            vocab_size=base.vocab_size,
            hidden_size=base.hidden_size,
            supervised_tokens_per_step=tokens,
        )
        for tokens in (1, tokens_per_step)
    )
    value = f"{most.value:.3g}" if least.value == most.value else f"{least.value:.3g} to {most.value:.3g}"
    return f"; here {value}{most.usual_text}"


def _num_prompts(sources: Sequence[ClassedSource]) -> int:
    """Different first prompts of all sources, estimated from their share of the sampled rows."""
    looks = [source.look for source in sources]
    prompts: set[tuple[str, str]] = set().union(*(look.prompts for look in looks))
    return round(len(prompts) * sum(look.num_rows for look in looks) / sum(look.num_sampled for look in looks))


def _prepared_dir(name: str, paths: Sequence[str]) -> str:
    """Where the prepared dataset goes: never into a folder that is read as a source."""
    folders = [Path(path.partition("*")[0]).resolve() for path in paths if Path(path).is_dir() or "**" in path]
    usual = Path("data/prepared", name)
    inside = any(usual.resolve().is_relative_to(folder) for folder in folders)
    return str(Path("prepared", name) if inside else usual)
