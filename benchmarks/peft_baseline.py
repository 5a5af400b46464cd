"""The baseline of benchmarks/adapters.py: PEFT on eager modules of `transformers` with Liger kernels, as TRL runs it.

After TRL's SFTTrainer with `packing`, `use_liger_kernel`, `bf16`, `padding_free` and a LoRA configuration: the base in
bfloat16, adapter weights in float32 (PEFT's default), autocast to bfloat16, one pack at a time, FlashAttention through
`transformers` with the borders of conversations, fused AdamW, gradient clipped to 1. The collator gives the borders, so
that no layer has to find them. Loss: Liger's fused linear cross-entropy over all tokens, which has no weights of
tokens: supervised tokens weigh 1, others are ignored. `weighted`: a weighted loss instead, from all logits of a pack at
once, because the fused one cannot weigh.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from ochat_train.model.attention.choose import choose_attention
from ochat_train.model.attention.needs import AttentionNeeds
from ochat_train.model.attention.register import REGISTERED_NAME, register_attention
from ochat_train.model.batch import PackedBatch

# Tried in this order, each on a small model: a package that is installed may still not run here.
# The last but one is this trainer's own fastest kernel: a stronger baseline than a mask over a whole pack.
ATTENTIONS = ("flash_attention_4", "flash_attention_3", "flash_attention_2", REGISTERED_NAME, "sdpa")
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A model with its adapter, and what updates it. fused_loss: Liger's, None for the weighted loss of torch."""

    model: Any
    optimizer: torch.optim.Optimizer
    attention: str
    kernels: str
    fused_loss: Any | None

    def step(self, batches: Iterable[PackedBatch], *, denominator: float, device: torch.device) -> tuple[float, float]:
        """One optimizer step over packs; returns its loss and the gradient's norm.

        denominator: what a weighted sum is divided by; the fused loss is divided by the number of supervised tokens.
        """
        total = torch.zeros((), device=device)
        batches = list(batches)
        if self.fused_loss is not None:
            denominator = sum(len(batch.supervised_indices_N) for batch in batches)
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = self._loss(batch.to(device))
            (loss / denominator).backward()
            total += loss.detach()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total) / denominator, float(norm)

    def _loss(self, batch: PackedBatch) -> torch.Tensor:
        """Sum over the tokens of a pack."""
        causal_lm = self.model.base_model.model
        borders = _borders(self.attention, batch.cu_seqlens_S1, batch.max_seqlen)
        hidden_TD = causal_lm.model(
            input_ids=batch.input_ids_T[None], position_ids=batch.position_ids_T[None], use_cache=False, **borders
        ).last_hidden_state[0]
        if self.fused_loss is not None:
            labels = batch.target_ids_T.masked_fill(batch.target_weights_T == 0, _IGNORED)
            loss: torch.Tensor = self.fused_loss(causal_lm.lm_head.weight, hidden_TD, labels)
            return loss
        logits = causal_lm.lm_head(hidden_TD).float()
        nll = torch.nn.functional.cross_entropy(logits, batch.target_ids_T, reduction="none")
        return (nll * batch.target_weights_T).sum()


def make_baseline(
    config: Any, *, rank: int, checkpointed: bool, weighted: bool, liger: bool, device: torch.device
) -> Baseline:
    """A base of random weights with LoRA on all linear layers. config: of `transformers`. rank: of LoRA.

    checkpointed: recompute every layer. liger: whether Liger's kernels run, which need a GPU.
    """
    import peft

    attention = usable_attention(device)
    fused_loss = None
    if liger:  # before the model is made: it replaces classes of `transformers`
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, apply_liger_kernel_to_mistral

        apply_liger_kernel_to_mistral(
            rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False
        )
        fused_loss = None if weighted else LigerFusedLinearCrossEntropyLoss(ignore_index=_IGNORED, reduction="sum")
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        causal_lm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(causal_lm, settings)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=device.type == "cuda")
    return Baseline(
        model=model, optimizer=optimizer, attention=attention, kernels=_kernels(liger, weighted), fused_loss=fused_loss
    )


def _kernels(liger: bool, weighted: bool) -> str:
    """Kernels and loss, for people."""
    if not liger:
        return "no Liger kernels, weighted loss"
    from importlib.metadata import version

    return f"Liger {version('liger-kernel')}, {'weighted loss' if weighted else 'fused loss without weights'}"


def usable_attention(device: torch.device) -> str:
    """The first of `ATTENTIONS` that trains a small model on two sequences of one pack here."""
    failed = {}
    for name in ATTENTIONS:
        try:
            _try_attention(name, device)
        except Exception as error:  # any kind: a missing package, a GPU that is too old, a kernel that does not compile
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            return name
    raise RuntimeError(f"no attention of transformers runs here: {failed}")


def _borders(attention: str, cu_seqlens_S1: torch.Tensor, max_seqlen: int) -> dict[str, Any]:
    """The borders of conversations as an attention of `transformers` takes them; `sdpa` finds them in positions."""
    if attention == REGISTERED_NAME:
        return {"cu_seqlens": cu_seqlens_S1, "max_seqlen": max_seqlen}
    if attention == "sdpa":
        return {}
    sides = {f"cu_seq_lens_{side}": cu_seqlens_S1 for side in "qk"}
    return {**sides, **{f"max_length_{side}": max_seqlen for side in "qk"}}


def _try_attention(name: str, device: torch.device) -> None:
    if name != "sdpa" and device.type != "cuda":
        raise RuntimeError("needs a GPU")
    if name == REGISTERED_NAME:
        register_attention(choose_attention("auto", device=device, dtype=torch.bfloat16, needs=AttentionNeeds()))
    config = transformers.AutoConfig.for_model(
        "mistral", hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=128, vocab_size=64, sliding_window=None,
    )  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=name)
        borders = torch.tensor([0, 96, 256], dtype=torch.int32)
        ids, positions = torch.zeros(1, 256, dtype=torch.int64), torch.cat((torch.arange(96), torch.arange(160)))
    given = _borders(name, borders, 160)
    model.model(
        input_ids=ids, position_ids=positions[None], use_cache=False, **given
    ).last_hidden_state.sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
