"""The model: an unmodified `transformers` causal LM, wrapped so that a pack goes in and loss sums come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER, Manifest
from ochat_train.attention import COMPILABLE, choose_attention, register_attention
from ochat_train.batches import PackedBatch
from ochat_train.float8 import use_float8
from ochat_train.layers import set_layer_forward
from ochat_train.loss import LossSums, TokenScores, token_scores, weighted_loss_sums
from ochat_train.recipe import ModelSettings, Recipe

# Config entries that change logits after the head; the loss works on hidden states and would not see them.
_LOGIT_TRANSFORMS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}


class PackedCausalLM(torch.nn.Module):
    """A causal LM and the weighted loss of its next-token predictions over one pack."""

    def __init__(self, causal_lm: Any, *, num_classes: int) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.loss = _LossHead(causal_lm.get_output_embeddings(), num_classes=num_classes)

    def forward(self, batch: PackedBatch, *, score: bool = False) -> LossSums | TokenScores:
        """Loss sums of a pack, or with `score` how it does token by token. Attention stays inside
        `batch.cu_seqlens_S1`.
        """
        hidden_1TD = self.causal_lm.base_model(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            cu_seqlens=batch.cu_seqlens_S1,
            max_seqlen=batch.max_seqlen,
        ).last_hidden_state
        result: LossSums | TokenScores = self.loss(hidden_1TD[0], batch, score=score)
        return result

    def register_for_zero_3(self) -> None:
        """Tell DeepSpeed that the loss reads the head's weight, so that stage 3 gathers it. After `initialize`."""
        import deepspeed

        deepspeed.zero.register_external_parameter(self.loss, self.loss.head_weight)


class _LossHead(torch.nn.Module):
    """The loss as a module of its own, so that ZeRO-3 gathers the head's weight for just as long as it is needed."""

    def __init__(self, head: torch.nn.Linear, *, num_classes: int) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple, so that its weight is not registered a second time
        self._num_classes = num_classes

    @property
    def head_weight(self) -> torch.Tensor:
        """The weight of the language-model head, [V, D]."""
        return self._head[0].weight

    def forward(self, hidden_TD: torch.Tensor, batch: PackedBatch, *, score: bool) -> LossSums | TokenScores:
        """Loss sums of a pack from its hidden states, or the scores of its supervised tokens."""
        if score:
            return token_scores(
                hidden_TD, self.head_weight, rows_N=batch.supervised_rows_N, target_ids_T=batch.target_ids_T
            )
        return weighted_loss_sums(
            hidden_TD,
            self.head_weight,
            rows_N=batch.supervised_rows_N,
            target_ids_T=batch.target_ids_T,
            target_weights_T=batch.target_weights_T,
            class_ids_T=batch.class_ids_T,
            num_classes=self._num_classes,
        )


def model_dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    """The dtype of weights in the forward pass; the optimizer always keeps float32 master weights."""
    if settings.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def load_base_config(settings: ModelSettings, vocab_size: int) -> Any:
    """The `transformers` config of the base. A model from scratch takes its vocabulary size from the tokenizer."""
    import transformers

    if settings.config is not None:
        values = dict(settings.config)
        values.setdefault("vocab_size", vocab_size)
        try:
            return transformers.AutoConfig.for_model(**values)
        except Exception as error:
            raise UserError(f"model.config: {error}") from None
    try:
        return transformers.AutoConfig.from_pretrained(settings.path, revision=settings.revision)
    except Exception as error:
        raise UserError(f"model.path: {settings.path}: cannot be loaded: {error}") from None


def build_model(
    settings: ModelSettings, manifest: Manifest, *, device: torch.device, seed: int
) -> tuple[PackedCausalLM, str]:
    """Load (or randomly initialise) the base on the CPU, with a row for every token. Also returns the attention kernel.

    Tokens that the base has no row for get the mean of all rows; tied embeddings stay tied.
    """
    import transformers

    config = load_base_config(settings, manifest.vocab_size)
    check_config(config, settings)
    dtype = model_dtype(settings, device)
    kernel = choose_attention(
        settings.attention, device=device, dtype=dtype, dropout=getattr(config, "attention_dropout", 0.0) or 0.0
    )
    attention = register_attention(kernel)
    if settings.config is not None:
        torch.manual_seed(seed)
        causal_lm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    else:
        causal_lm = transformers.AutoModelForCausalLM.from_pretrained(
            settings.path,
            revision=settings.revision,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
        )
    add_token_rows(causal_lm, vocab_size=manifest.vocab_size)
    check_head(causal_lm)
    causal_lm.train()
    return PackedCausalLM(causal_lm, num_classes=len(manifest.classes)), kernel


def is_compiled(settings: ModelSettings, *, kernel: str, device: torch.device) -> bool:
    """Whether decoder layers are compiled. Raises UserError where the recipe wants it and the attention kernel does not
    fit.
    """
    if settings.compile and kernel not in COMPILABLE:
        raise UserError(
            f"model.compile: true cannot be used with the attention kernel `{kernel}`; "
            f"kernels that fit: {', '.join(sorted(COMPILABLE))}"
        )
    return device.type == "cuda" and kernel in COMPILABLE if settings.compile is None else settings.compile


def check_head(causal_lm: Any) -> None:
    """Raise UserError for a language-model head that the loss would compute wrongly."""
    if getattr(causal_lm.get_output_embeddings(), "bias", None) is not None:
        raise UserError("model: a language-model head with a bias is not supported")


def decoder_layers(causal_lm: Any) -> Any:
    """The list of decoder layers. Raises UserError where a model has none by that name."""
    layers = getattr(causal_lm.base_model, "layers", None)
    if layers is None:
        raise UserError(
            f"model: {causal_lm.config.model_type} has no list of decoder layers named `layers`; not supported"
        )
    return layers


def set_up_layers(model: PackedCausalLM, recipe: Recipe, *, checkpointing: Sequence[str], device: torch.device) -> None:
    """Float8, compilation and checkpointing of the decoder layers, as a resolved recipe says."""
    layers = decoder_layers(model.causal_lm)
    compiled = bool(recipe.model.compile)
    if recipe.model.float8:
        use_float8(layers, device=device, pack_length=recipe.train.pack_length_tokens, compiled=compiled)
    set_layer_forward(layers, checkpointing=checkpointing, compiled=compiled)


def check_config(config: Any, settings: ModelSettings) -> None:
    """Raise UserError for a base whose logits this trainer would compute wrongly, or that is too short for the
    recipe.
    """
    for key, neutral in _LOGIT_TRANSFORMS.items():
        if getattr(config, key, neutral) not in (neutral, None):
            raise UserError(f"model: {config.model_type} scales its logits ({key}), which is not supported")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and settings.max_length_tokens > longest:
        raise UserError(
            f"model.max_length_tokens: {settings.max_length_tokens} is more than the base's max_position_embeddings "
            f"{longest}"
        )


@torch.no_grad()
def add_token_rows(causal_lm: Any, *, vocab_size: int) -> None:
    """Grow embedding and head to `vocab_size` rows, each new one the mean of the old ones. Never shrinks."""
    old = causal_lm.get_input_embeddings().weight.shape[0]
    if vocab_size <= old:
        return
    tied = causal_lm.get_input_embeddings().weight is causal_lm.get_output_embeddings().weight
    causal_lm.resize_token_embeddings(vocab_size, mean_resizing=False)
    embeddings = [causal_lm.get_input_embeddings()] + ([] if tied else [causal_lm.get_output_embeddings()])
    for module in embeddings:
        module.weight[old:] = module.weight[:old].float().mean(dim=0).to(module.weight.dtype)
    still_tied = causal_lm.get_input_embeddings().weight is causal_lm.get_output_embeddings().weight
    assert tied == still_tied, "resizing untied the embeddings"


def end_of_turn_id(prepared_dir: Path) -> int:
    """Id of the token that ends a turn, which the tokenizer folder names as its end-of-sequence token."""
    import transformers

    return int(transformers.AutoTokenizer.from_pretrained(prepared_dir / TOKENIZER_FOLDER).eos_token_id)
