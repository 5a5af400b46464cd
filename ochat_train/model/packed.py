"""The model that a run trains: an unmodified causal LM on packs, with the loss instead of logits."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch

from ochat_train.model.base_class import backbone
from ochat_train.model.batch import PackedBatch
from ochat_train.model.borders import keep_apart
from ochat_train.model.config import logit_transform
from ochat_train.model.experts import ExpertCounter, RouterLoss, records_router_logits, router_logits_of
from ochat_train.model.loss import HeadRows, LogitTransform, LossSums, TokenScores, token_scores, weighted_loss_sums
from ochat_train.model.rotary import choose_frequencies_per_conversation


class PackedCausalLM(torch.nn.Module):
    """A causal LM of `transformers` with the weighted loss of its next-token predictions instead of logits.

    causal_lm: built with the attention function of `register_attention`; changed in place where something else than
    attention must keep conversations apart. max_length_tokens: of the longest conversation. device: where the model
    will run, None for where it is. router_loss: added to what the model is trained on, None for none.
    Raises UserError for a base whose conversations cannot be kept apart.
    """

    def __init__(
        self,
        causal_lm: Any,
        *,
        num_classes: int,
        max_length_tokens: float = math.inf,
        device: torch.device | None = None,
        router_loss: RouterLoss | None = None,
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        choose_frequencies_per_conversation(causal_lm, max_length_tokens=max_length_tokens)
        self.mixers = keep_apart(causal_lm, device=device or causal_lm.get_input_embeddings().weight.device)
        self.router_loss = router_loss
        self.expert_counter: ExpertCounter | None = None
        self.loss = LossHead(
            causal_lm.get_output_embeddings(), transform=logit_transform(causal_lm.config), num_classes=num_classes
        )

    def count_experts(self) -> None:
        """From now on, loss sums have the tokens of each expert. Not for compiled layers."""
        self.expert_counter = ExpertCounter.of(self.causal_lm)

    def forward(self, batch: PackedBatch, *, score: bool = False) -> LossSums | TokenScores:
        """Loss sums of a micro-batch or, with `score`, the scores of its supervised tokens.

        The model adds a batch dimension of 1. Attention stays within the sequences of `batch.cu_seqlens_S1`.
        """
        router_loss = None if score else self.router_loss
        counter = None if score else self.expert_counter
        num_tokens, device = len(batch.input_ids_T), batch.input_ids_T.device
        counting = nullcontext() if counter is None else counter.counting(batch.tokens_of_packs, num_tokens, device)
        with counting:
            outputs = self._base_outputs(batch, with_router_logits=router_loss is not None)
        result: LossSums | TokenScores = self.loss(outputs.last_hidden_state[0], batch, score=score)
        if isinstance(result, TokenScores):
            return result
        if router_loss is not None:
            loss = router_loss(router_logits_of(outputs, num_tokens), batch.tokens_of_packs)
            result = result._replace(router_loss=loss)
        return result if counter is None else result._replace(expert_counts=counter.counts_LE())

    def _base_outputs(self, batch: PackedBatch, *, with_router_logits: bool) -> Any:
        """What the base model returns for a micro-batch, with its hidden states, and all routers' logits if wanted."""
        if self.mixers is not None:
            self.mixers.borders.set(batch.cu_seqlens_S1)
        outputs = backbone(self.causal_lm)(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            cu_seqlens=batch.cu_seqlens_S1,
            max_seqlen=batch.max_seqlen,
            # passed also as False: a config may ask for them, and compiled layers would have to record them
            **({"output_router_logits": with_router_logits} if records_router_logits(self.causal_lm.config) else {}),
        )
        if self.mixers is not None:
            self.mixers.borders.restore_in_backward(outputs.last_hidden_state)
        return outputs

    def register_for_zero_3(self) -> None:
        """Tell DeepSpeed that the loss reads the head's weight and bias, so that stage 3 gathers them.

        To be called after `deepspeed.initialize`.
        """
        import deepspeed

        rows = self.loss.trained_rows
        for parameter in (self.loss.head_weight, self.loss.head_bias, rows and rows.weight_KD):
            if parameter is not None:
                deepspeed.zero.register_external_parameter(self.loss, parameter)


class LossHead(torch.nn.Module):
    """The loss as a separate module, so that ZeRO-3 gathers the head's weight only while the loss is computed."""

    def __init__(self, head: torch.nn.Linear, *, transform: LogitTransform, num_classes: int) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple, so that its weight is not registered a second time
        self._transform = transform
        self._num_classes = num_classes

    @property
    def head_weight(self) -> torch.Tensor:
        """The weight of the language-model head, [V, D]."""
        return self._head[0].weight

    @property
    def head_bias(self) -> torch.Tensor | None:
        """The bias of the language-model head, [V], None for most."""
        return self._head[0].bias

    @property
    def trained_rows(self) -> HeadRows | None:
        """Rows of the head that an adapter trains (adapter/token_rows.py), None without them."""
        rows = getattr(self._head[0], "trained_rows", None)
        return None if rows is None else HeadRows(rows.ids_K, rows.weight)

    def forward(self, hidden_TD: torch.Tensor, batch: PackedBatch, *, score: bool) -> LossSums | TokenScores:
        """Loss sums of a pack from its hidden states, or the scores of its supervised tokens."""
        if score:
            return token_scores(
                hidden_TD,
                self.head_weight,
                bias_V=self.head_bias,
                trained=self.trained_rows,
                transform=self._transform,
                indices_N=batch.supervised_indices_N,
                target_ids_T=batch.target_ids_T,
            )
        return weighted_loss_sums(
            hidden_TD,
            self.head_weight,
            bias_V=self.head_bias,
            trained=self.trained_rows,
            transform=self._transform,
            indices_N=batch.supervised_indices_N,
            target_ids_T=batch.target_ids_T,
            target_weights_T=batch.target_weights_T,
            class_ids_T=batch.class_ids_T,
            num_classes=self._num_classes,
        )
