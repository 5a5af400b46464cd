"""Tokenizer and template, the base, and whether it fits into GPU memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.plan.plan import num_micro_batches
from data_pipeline.prompt.chat_folder import check_chat_template
from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.check.facts import Facts
from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.model.attention.keywords import check_attention
from ochat_train.model.build import check_head, decoder_layers
from ochat_train.model.config import check_config
from ochat_train.planning.learning_rate import auto_learning_rate
from ochat_train.planning.memory import GIB
from ochat_train.planning.memory_text import parts_text, too_little_memory


def check_template(facts: Facts) -> Iterator[Finding]:
    """Control tokens, beginning of sequence, and whether a prompt has the ids of training."""
    spec, template = facts.tokenizer, TEMPLATES[facts.recipe.model.template]
    check_chat_template(spec, template)
    added = ", ".join(spec.added_control_tokens)
    tokens = (
        f"{added} will be added to tokenizer and model"
        if added
        else f"control tokens {', '.join(template.control_tokens)} are there"
    )
    start = (
        f"conversations begin with {spec.bos_token}"
        if spec.bos_token
        else "no beginning-of-sequence token is put in front"
    )
    yield ok("template", f"{template.name}: {tokens}; {start}; prompts get the ids of training")


def check_base(facts: Facts) -> Iterator[Finding]:
    """Whether the base's architecture is one that this trainer computes rightly, and its weights can be loaded."""
    config, settings = facts.config, facts.recipe.model
    check_config(config, settings)
    model = facts.model
    name = type(model).__name__
    check_attention(config)
    check_head(model)
    layers = decoder_layers(model)
    if (
        settings.path is not None
        and Path(settings.path).is_dir()
        and not list(Path(settings.path).glob("*.safetensors"))
    ):
        yield problem(
            "base", f"{settings.path}: has no safetensors files, the only kind that is loaded", "convert its weights"
        )
        return
    origin = "random weights" if settings.path is None else settings.path
    yield ok("base", f"{name}, {len(layers)} layers, {facts.num_parameters:,} parameters, from {origin}")


def check_learning_rate(facts: Facts) -> Iterator[Finding]:
    """Whether `auto` knows the base."""
    wanted = facts.recipe.optimizer.learning_rate
    if wanted != "auto":
        yield ok("learning rate", f"{wanted:g}")
        return
    config = facts.config
    most = auto_learning_rate(
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        supervised_tokens_per_step=facts.recipe.train.tokens_per_step,
    )
    yield ok("learning rate", f"auto: at most {most:.3g}, less by the share of tokens that are not learned from")


def check_memory(facts: Facts) -> Iterator[Finding]:
    """Whether a run fits, on the GPUs asked about."""
    plan, train = facts.memory, facts.recipe.train
    gpus = f"{facts.num_gpus} GPU(s) of {facts.gpu_memory_gib:g} GiB"
    packs = f"{plan.packs_per_micro_batch} pack(s)"
    setting = f"ZeRO-{plan.zero_stage}, activation_checkpointing {plan.checkpointing_text}, {packs}"
    if plan.fits:
        yield ok("memory", f"{gpus}: {plan.total / GIB:.1f} GiB each with {setting} ({parts_text(plan.parts)})")
    else:
        error = too_little_memory(plan, num_gpus=facts.num_gpus)
        yield problem("memory", f"{error.problem} (GPUs of {facts.gpu_memory_gib:g} GiB)", error.remedy)
    empty = num_micro_batches(train.bins_per_step, facts.num_gpus) * facts.num_gpus - train.bins_per_step
    if empty:
        multiple = train.pack_length_tokens * facts.num_gpus
        better = -(-train.tokens_per_step // multiple) * multiple
        text = f"{train.bins_per_step} packs a step on {facts.num_gpus} GPU(s): {empty} packs of every step stay empty"
        yield warning("memory", text, f"for example train.tokens_per_step: {better}")
