"""A training that is ready for the engine: its plan, its model, and how it fits into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.plan.plan import TrainingPlan
from data_pipeline.prepared.dataset import Manifest, PreparedSplit, open_split
from ochat_train.checkpoint.basis import AdapterBasis, RunBasis, base_weights, config_values, software_versions
from ochat_train.checkpoint.resume import ResumeDecision
from ochat_train.distributed.agreement import on_every_rank, require_agreement
from ochat_train.distributed.ranks import Ranks
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.build import build_model, set_up_layers
from ochat_train.model.config import load_base_config, model_dtype
from ochat_train.model.packed import PackedCausalLM
from ochat_train.model.proof.base import ProvenBase, prove_base
from ochat_train.model.weights.token_rows import PADDING_REMEDY, ControlTokens, padding_text
from ochat_train.planning.learning_rate import BOUNDED_RULE, PeakLearningRate
from ochat_train.planning.memory import MemoryPlan, resolve
from ochat_train.planning.memory_text import memory_text
from ochat_train.planning.steps import peak_learning_rate, training_plan
from ochat_train.planning.work import Work, work_of
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.messages import print_notice
from ochat_train.training.adapter import put_adapter
from ochat_train.training.memory_plan import plan_memory


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model that is ready to be given to the engine, with the steps that it is to take.

    recipe: with a value for every setting that it left open. peak: the highest learning rate, and its rule.
    kernel: of attention. untrained_tokens: control tokens that the base had not trained, which start from the mean row.
    padding: what is said of a control token that is the base's padding token.
    """

    recipe: Recipe
    manifest: Manifest
    split: PreparedSplit
    plan: TrainingPlan
    peak: PeakLearningRate
    model: PackedCausalLM
    kernel: str
    proven: ProvenBase
    work: Work
    memory: MemoryPlan
    untrained_tokens: Sequence[str]
    padding: str | None
    adapter: AdapterBasis | None


def prepared_training(recipe: Recipe, manifest: Manifest, ranks: Ranks) -> Training:
    """Plan the steps, build the model on every rank and decide how it fits into memory."""
    split = on_every_rank(ranks, lambda: open_split(Path(recipe.data.prepared_dir), "train", manifest))
    plan = training_plan(recipe, split)
    peak = peak_learning_rate(recipe, manifest)
    proven = _proven_base(recipe, manifest, ranks)
    control = ControlTokens.of_prepared(Path(recipe.data.prepared_dir), manifest)
    model, kernel, untrained_tokens, new_token_ids = on_every_rank(
        ranks,
        lambda: build_model(
            recipe.model,
            manifest,
            device=ranks.device,
            seed=recipe.seed,
            control=control,
            for_qlora=recipe.adapter is not None and recipe.adapter.type == "qlora",
        ),
    )
    require_agreement(ranks, {"attention kernel": kernel})
    adapter = put_adapter(recipe, model, new_token_ids, ranks)
    work = work_of(model.causal_lm)
    memory, compiled = plan_memory(recipe, model.causal_lm, ranks, kernel=kernel)
    recipe = resolve(recipe, memory, compiled=compiled)
    set_up_layers(model, recipe, checkpointing=memory.checkpointing, device=ranks.device)
    return Training(
        recipe=recipe,
        manifest=manifest,
        split=split,
        plan=plan,
        peak=peak,
        model=model,
        kernel=kernel,
        proven=proven,
        work=work,
        memory=memory,
        untrained_tokens=untrained_tokens,
        padding=padding_text(model.causal_lm, control) if recipe.adapter is None else None,
        adapter=adapter,
    )


def _proven_base(recipe: Recipe, manifest: Manifest, ranks: Ranks) -> ProvenBase:
    """The proof of the base, which every rank has or none.

    One rank of each host makes it first: the others find it in their user's cache, or make it where there is none.
    """

    def proof() -> ProvenBase:
        return prove_base(load_base_config(recipe.model, manifest.vocab_size), recipe.model, device=ranks.device)

    on_every_rank(ranks, lambda: proof() if os.environ.get("LOCAL_RANK", "0") == "0" else None)
    return on_every_rank(ranks, proof)


def basis_of(training: Training, ranks: Ranks, *, rows_digest: str) -> RunBasis:
    """What the run computes with, for its checkpoints. rows_digest: of the prepared data."""
    config = training.model.causal_lm.config
    module = KERNELS[training.kernel].module
    return RunBasis(
        learning_rate_rule=BOUNDED_RULE,
        rows_digest=rows_digest,
        config=config_values(config),
        base_weights=base_weights(training.recipe.model.path, config),
        versions=software_versions(kernel=training.kernel, module=module, device=ranks.device),
        adapter=training.adapter,
        precision=str(model_dtype(training.recipe.model, ranks.device)).removeprefix("torch."),
    )


def with_earlier_rate(training: Training, basis: RunBasis, decision: ResumeDecision) -> tuple[Training, RunBasis]:
    """With the rule of `learning_rate: auto` that the run was begun with: its rate does not jump when it is resumed."""
    rule = decision.learning_rate_rule
    if rule is None or rule == basis.learning_rate_rule:
        return training, basis
    peak = peak_learning_rate(training.recipe, training.manifest, rule=rule)
    return replace(training, peak=peak), replace(basis, learning_rate_rule=rule)


def print_start(training: Training, ranks: Ranks, decision: ResumeDecision) -> None:
    """What rank 0 says of it at the start."""
    recipe, plan = training.recipe, training.plan
    origin = f"resumes from {decision.checkpoint}" if decision.checkpoint else "starts from the base model"
    print_notice(
        f"{recipe.name}: {len(training.split):,} conversations, {plan.num_steps:,} steps of "
        f"{recipe.train.tokens_per_step:,} tokens, packs {plan.packing_efficiency:.2%} full, peak learning rate "
        f"{training.peak}\n"
        f"{ranks.num_ranks} rank(s) on {ranks.device.type}, ZeRO-{recipe.deepspeed.zero_stage}, attention: "
        f"{training.kernel}{', compiled layers' if recipe.model.compile else ''}"
        f"{', float8' if recipe.model.float8 else ''}; {origin}\n"
        f"{training.proven.text()}"
    )
    if training.model.mixers is not None:
        print_notice(training.model.mixers.text())
    if training.untrained_tokens and not decision.checkpoint:
        rows = ", ".join(training.untrained_tokens)
        print_notice(f"the base did not train the rows of {rows}: they start from the mean row")
    if training.padding is not None:
        print_notice(f"{training.padding}; {PADDING_REMEDY}")
    if ranks.device.type == "cuda":
        print_notice(memory_text(training.memory))
