"""Layers that are special in mixtures of experts and in hybrids, and what a recipe asks of them."""

from __future__ import annotations

from collections.abc import Iterator

from ochat_train.check.findings import Finding, ok, problem, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.model.borders import sequence_mixers
from ochat_train.model.build import compile_obstacle
from ochat_train.model.experts import router_loss_of


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
