"""Tokenizer and template, the base, and whether it fits into GPU memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.hub_cache import cached_file
from data_pipeline.hub_names import is_hub_id
from data_pipeline.json_files import read_json_object
from data_pipeline.plan.plan import num_micro_batches
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.chat_folder import check_chat_template
from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.model.borders import sequence_mixers
from ochat_train.model.build import compile_obstacle
from ochat_train.model.experts import router_loss_of
from ochat_train.model.structure import decoder_layers
from ochat_train.planning.learning_rate import FEWEST_TOKENS, MOST_TOKENS
from ochat_train.planning.memory_text import parts_text, too_little_memory
from ochat_train.planning.steps import automatic_rate, supervised_tokens_per_step
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.system.pretrained import code_named_by
from ochat_train.system.sizes import GIB


def check_template(facts: RecipeFacts) -> Iterator[Finding]:
    """Control tokens, beginning of sequence, and whether a prompt has the ids of training."""
    spec, template = facts.tokenizer, facts.template
    check_chat_template(spec, template)
    if spec.added_control_tokens:
        tokens = f"{', '.join(spec.added_control_tokens)} will be added to tokenizer and model"
    else:
        tokens = f"the tokenizer has the control tokens {', '.join(template.control_tokens)}"
    if isinstance(template, BaseTemplate):
        text = f"{tokens}; answers end with {' or '.join(template.end_tokens)}; prompts get the ids of training"
        yield ok("template", template.place, text)
        return
    start = f"begin with {spec.bos_token}" if spec.bos_token else "begin without a beginning-of-sequence token"
    yield ok("template", template.name, f"{tokens}; conversations {start}; prompts get the ids of training")


def check_base(facts: RecipeFacts) -> Iterator[Finding]:
    """Whether this trainer computes the base's architecture correctly."""
    settings, proven = facts.recipe.model, facts.proven
    model = facts.model
    name, place = type(model).__name__, settings.path or "model.config"
    yield from _own_code(settings, name)
    weights = ", random weights" if settings.path is None else ""
    size = f"{len(decoder_layers(model))} layers, {facts.num_parameters:,} parameters"
    yield ok("base", place, f"{name}, {size}{weights}; {proven.text()}", seconds=proven.parts)
    yield from layer_findings(facts)


def _own_code(settings: ModelSettings, model_class: str) -> Iterator[Finding]:
    """A warning for a base or tokenizer that brings Python code, which is never run."""
    for source, file, used in (
        (settings.path, "config.json", f"transformers' own {model_class}"),
        (settings.tokenizer_source, "tokenizer_config.json", "its tokenizer.json"),
    ):
        if source is None:
            continue
        local = Path(source) / file
        path = (
            local if local.is_file() or not is_hub_id(source) else cached_file(source, file, revision=settings.revision)
        )
        if path is None or not path.is_file():
            continue
        if code := code_named_by(read_json_object(path)):
            text = f"{file} names code of its own ({', '.join(code)}), which is never run: {used} is used"
            yield warning("base", source, text, "make sure that they compute the same; its authors may say so")


def layer_findings(facts: RecipeFacts) -> Iterator[Finding]:
    """Router loss, layers without attention, and whether layers can be compiled; nothing for other bases.

    Raises UserError for a router loss that the base does not have.
    """
    settings = facts.recipe.model
    router_loss = router_loss_of(facts.model, settings)
    if router_loss is not None:
        text = f"{router_loss.coefficient:g} times the load-balancing loss of {facts.config.model_type} is trained on"
        yield ok("base", "model.router_aux_loss", text)
    mixers = dict.fromkeys(type(mixer).__name__ for mixer in sequence_mixers(facts.model))
    if mixers:
        yield warning(
            "base",
            ", ".join(mixers),
            "mixes tokens without attention: right everywhere, but slow where its kernels are missing, because each "
            "conversation is computed alone",
            "install flash-linear-attention, causal-conv1d or mamba-ssm on the GPU host; a run says what it uses",
        )
    obstacle = compile_obstacle(facts.model, settings, facts.recipe.adapter)
    if settings.compile and obstacle is not None:
        yield problem("base", "model.compile", f"true cannot be used: {obstacle}", "model.compile: false")


def check_learning_rate(facts: RecipeFacts) -> Iterator[Finding]:
    """The rate, and for `auto` the rule that gives it."""
    wanted = facts.recipe.optimizer.learning_rate
    yield ok("learning rate", "optimizer.learning_rate", f"auto, {_rate(facts)}" if wanted == "auto" else f"{wanted:g}")


def _rate(facts: RecipeFacts) -> str:
    """What `auto` gives, as a run says it; before `ochat prepare` has counted supervised tokens, from what to what."""
    recipe, data = facts.recipe, facts.usable_data
    if recipe.adapter is not None:
        rate = automatic_rate(facts.config, supervised_tokens_per_step=1, with_adapter=True)
        return f"{rate.value:.3g}: {rate.rule}"
    if data is not None:
        tokens = supervised_tokens_per_step(recipe, data)
        return str(automatic_rate(facts.config, supervised_tokens_per_step=tokens))
    most_tokens = recipe.train.tokens_per_step
    least, most = (
        automatic_rate(facts.config, supervised_tokens_per_step=tokens)
        for tokens in (FEWEST_TOKENS, min(max(most_tokens, FEWEST_TOKENS), MOST_TOKENS))
    )
    if least.value == most.value:
        bound = f"steps of at most {most_tokens:,} tokens count as {FEWEST_TOKENS:,}, where the rule ends"
        return f"{most.value:.4g} ({most.rule}; {bound}{most.usual_text})"
    range_ = f"{least.value:.3g} to {most.value:.3g}: `ochat prepare` counts the supervised tokens, which decide"
    return f"{range_}; {most.rule} * sqrt(supervised tokens per step / 4e6){most.usual_text}"


def check_memory(facts: RecipeFacts) -> Iterator[Finding]:
    """Whether a run fits on the GPUs asked about."""
    facts.recipe.deepspeed.check_config()
    plan, train = facts.memory, facts.recipe.train
    if plan.fits:
        packs = f"{plan.packs_per_micro_batch} pack(s)"
        setting = f"ZeRO-{plan.zero_stage}, activation_checkpointing {plan.checkpointing_text}, {packs}"
        gpus = f"{facts.num_gpus} GPU(s) of {facts.gpu_memory_gib:g} GiB"
        yield ok("memory", gpus, f"{plan.total / GIB:.1f} GiB each with {setting} ({parts_text(plan.parts)})")
    else:
        error = too_little_memory(plan, num_gpus=facts.num_gpus)
        text = f"{error.problem} (GPUs of {facts.gpu_memory_gib:g} GiB)"
        if facts.recipe.model.activation_checkpointing == "auto":
            yield problem("memory", error.place, text, error.remedy)
        else:
            text = f"{text}; model.activation_checkpointing is set by hand, so a run would try"
            yield warning("memory", error.place, text, error.remedy)
    empty = num_micro_batches(train.packs_per_step, facts.num_gpus) * facts.num_gpus - train.packs_per_step
    if empty:
        multiple = train.pack_length_tokens * facts.num_gpus
        better = -(-train.tokens_per_step // multiple) * multiple
        yield warning(
            "memory",
            "train.tokens_per_step",
            f"{train.packs_per_step} packs a step on {facts.num_gpus} GPU(s): {empty} packs of every step stay empty",
            f"for example train.tokens_per_step: {better}",
        )
