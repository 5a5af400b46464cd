"""Which bases are trained rightly: every family of causal LMs in `transformers`, and variants, on packs.

    python benchmarks/bases.py                                   # all on the CPU, a table and a summary
    python benchmarks/bases.py --only gemma2,gpt_oss             # some of them
    python benchmarks/bases.py --kernels all                     # on a GPU: every kernel for some families
    python benchmarks/bases.py --json > benchmarks/bases.json    # for docs/bases.md

Each is made small, with random weights, and goes the way of a run: `build_model`, which proves the base, then a
micro-batch of two packs. What comes out is compared with something that shares no code with it: each conversation alone
through the eager attention of `transformers`, in float64. `error` is the relative difference of the gradients of all
parameters together, `control` the same with the borders of conversations removed. A base is

- right: the error is rounding, no more than twice that of each conversation alone in the same dtype;
- refused: `build_model` says why;
- wrong, or crash: what may not happen; the exit code is then 1.

Not built: `transformers` itself cannot make a small causal LM of the default config; not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.conversation import TokenizedConversation
from data_pipeline.errors import UserError
from ochat_train.model.attention.kernels import KERNELS
from ochat_train.model.base_class import is_wrapper, new_model, text_config
from ochat_train.model.batch import PackedBatch, PackShape, joined, pack_batch
from ochat_train.model.build import build_model
from ochat_train.model.proof.small_config import small_base
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.system.library_output import quiet_libraries
from ochat_train.system.versions import library_versions

Verdict = Literal["right", "refused", "wrong", "crash", "not built"]
LENGTHS, PACK_LENGTH, MAX_LENGTH = (33, 81, 20, 47), 128, 128  # tokens; two packs with padding
MOST_ERROR = 1e-4  # relative, float32 against float64, or
ROUNDING_FACTOR = 2.0  # this many times the error of each conversation alone in the dtype of the run

_ROPE = {"rope_theta": 10000.0}
_LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16, **_ROPE}
# Names that are not those of a family, with the family and what is special.
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_dropout": ("llama", {"attention_dropout": 0.1}),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **_ROPE}}),
    "llama_dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **_ROPE}}),
    "llama_yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                **_ROPE,
            }
        },
    ),
    "llama_llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                **_ROPE,
            }
        },
    ),
    "phi3_longrope": (
        "phi3",
        {
            "hidden_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 64,
            "rope_parameters": {**_LONGROPE, "original_max_position_embeddings": 64},
        },
    ),
    "phi3_window": ("phi3", {"sliding_window": 16}),
    "mistral_window": ("mistral", {"sliding_window": 16}),
    "mixtral_window": ("mixtral", {"sliding_window": 16}),
    "mixtral_jitter": ("mixtral", {"router_jitter_noise": 0.1}),
    "mixtral_router_logits": ("mixtral", {"output_router_logits": True}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3_window": ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3_moe_router_logits": ("qwen3_moe", {"output_router_logits": True}),
    "gemma2_no_caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3_text_final_cap": ("gemma3_text", {"final_logit_softcapping": 30.0}),
    "gemma3_text_bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}),
    "cohere_scale_1": ("cohere", {"logit_scale": 1.0}),
    "cohere2_scale_1": ("cohere2", {"logit_scale": 1.0}),
    "granite_scaled": (
        "granite",
        {
            "logits_scaling": 8.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.3,
            "embedding_multiplier": 12.0,
        },
    ),
    # families whose default config leaves out what a model needs
    "deepseek_v2_experts": ("deepseek_v2", {"n_routed_experts": 8, "num_experts_per_tok": 2}),
    "deepseek_v2_groups": (
        "deepseek_v2",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "dots1_experts": (
        "dots1",
        {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    ),
    "hunyuan_v1_dense_heads": ("hunyuan_v1_dense", {"head_dim": 128}),
    "hunyuan_v1_dense_dynamic": (
        "hunyuan_v1_dense",
        {"head_dim": 128, "rope_parameters": {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0, **_ROPE}},
    ),
    "hunyuan_v1_moe_experts": ("hunyuan_v1_moe", {"head_dim": 128, "num_experts": 8, "moe_topk": 2}),
    "lfm2_moe_conv": (
        "lfm2_moe",
        {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8, "num_experts": 8, "num_experts_per_tok": 2},
    ),
    "ministral_heads": ("ministral", {"head_dim": 128}),
    "nemotron_heads": ("nemotron", {"head_dim": 128, "num_key_value_heads": 8}),
    "olmo3_yarn": (
        "olmo3",
        {
            "sliding_window": 16,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "original_max_position_embeddings": 64,
                    "attention_factor": 1.2,
                    **_ROPE,
                },
                "sliding_attention": {"rope_type": "default", **_ROPE},
            },
        },
    ),
    "falcon_alibi": ("falcon", {"alibi": True}),
    "olmo_clip": ("olmo", {"clip_qkv": 1.0}),
    "stablelm_parallel": ("stablelm", {"use_parallel_residual": True}),
    "llama4_text_chunk_16": ("llama4_text", {"attention_chunk_size": 16}),
    "granitemoehybrid_mamba": ("granitemoehybrid", {"layer_types": ["mamba", "attention"] * 16}),
    "bamba_attention": ("bamba", {"attn_layer_indices": [2]}),
    "lfm2_conv": ("lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8}),
}
KERNEL_FAMILIES = (
    *("llama", "mistral_window", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "olmo2", "phi3", "granite", "cohere2"),
    *("qwen3_moe", "mixtral", "deepseek_v3", "glm4", "smollm3"),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out for a base. error, control: None where nothing was computed."""

    base: str
    kernel: str
    verdict: Verdict
    error: float | None = None
    control: float | None = None
    why: str = ""
    seconds: float = 0.0
    versions: Mapping[str, str]


class _Rows:
    """Conversations as `pack_batch` reads them from a prepared split."""

    def __init__(self, vocab_size: int) -> None:
        generator = np.random.default_rng(11)
        self.class_id = np.zeros(len(LENGTHS), dtype=np.int32)
        self.rows = [
            TokenizedConversation(
                input_ids=generator.integers(0, vocab_size, length, dtype=np.int32),
                loss_weights=generator.uniform(0.1, 1.0, length).astype(np.float32),
            )
            for length in LENGTHS
        ]

    def __getitem__(self, row: int) -> TokenizedConversation:
        return self.rows[row]

    def packs(self) -> PackedBatch:
        shape = PackShape.holding(pack_length=PACK_LENGTH, longest=max(LENGTHS), max_conversations=2)
        return joined([pack_batch(self, np.array(numbers), shape) for numbers in ((0, 1), (2, 3))])  # type: ignore[arg-type]


def main() -> None:
    """Try all, print, and end with 1 where one is wrong or crashes."""
    options = _options()
    quiet_libraries()  # DeepSpeed's notices go to standard output, between the JSON
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    names = options.only.split(",") if options.only else [*KERNEL_FAMILIES] if options.kernels else all_bases()
    kernels = _kernels(options.kernels)
    outcomes = []
    for name in names:
        for kernel in kernels:
            outcomes.append(outcome_of(name, kernel=kernel))
            print(line(outcomes[-1]), file=sys.stderr, flush=True)
    tried = [outcome for outcome in outcomes if outcome.verdict != "not built"]
    print(json.dumps([_for_page(o) for o in tried], indent=1) if options.json else "\n".join(map(line, outcomes)))
    print(summary(outcomes), file=sys.stderr)
    sys.exit(any(outcome.verdict in ("wrong", "crash") for outcome in outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, with commas; default: all families and variants")
    parser.add_argument(
        "--kernels", help="names of kernels with commas, or `all`; needs a GPU. Default: `sdpa` on the CPU"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _kernels(wanted: str | None) -> Sequence[str]:
    if wanted is None:
        return ["sdpa"]
    if not torch.cuda.is_available():
        sys.exit("--kernels needs a GPU")
    if wanted != "all":
        return wanted.split(",")
    return [name for name, kernel in KERNELS.items() if kernel.missing_package() is None]


def all_bases() -> list[str]:
    """Every family that `AutoModelForCausalLM` knows, and the variants."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS})


def outcome_of(name: str, *, kernel: str) -> Outcome:
    """Try one base with one kernel; never raises."""
    start = time.perf_counter()
    versions = {key: value for key, value in library_versions().items() if key in ("torch", "transformers")}
    nothing = Outcome(base=name, kernel=kernel, verdict="not built", versions=versions)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            config = small_config(name)
        except Exception as error:
            return replace(nothing, why=_words(error), seconds=time.perf_counter() - start)
        try:
            found = _computed(nothing, config, kernel=kernel)
        except UserError as error:
            found = replace(nothing, verdict="refused", why=error.problem)
        except Exception as error:
            found = replace(nothing, verdict="crash", why=_words(error))
    return replace(found, seconds=time.perf_counter() - start)


def small_config(name: str) -> Any:
    """A small config of a family or variant, from its default config. Raises what `transformers` raises."""
    import transformers

    family, changes = VARIANTS.get(name, (name, {}))
    config = transformers.AutoConfig.for_model(family, **changes)
    with torch.random.fork_rng(devices=[]):
        small = small_base(config, max_length_tokens=MAX_LENGTH, device=_device())
    values = small.config.to_dict()
    for path, value in small.noise.items():  # what the base has in training is tried as well
        target = values
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
    return type(config).from_dict(values)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _computed(nothing: Outcome, config: Any, *, kernel: str) -> Outcome:
    device = _device() if nothing.kernel == "sdpa" else torch.device("cuda")
    half = kernel != "sdpa"  # Triton compiles `flex` for float32 for minutes
    if half and hasattr(config, "num_experts_per_tok"):  # bfloat16 would send tokens to other experts than float64
        config.num_experts_per_tok = getattr(config, "num_experts", None) or getattr(
            config, "num_local_experts", config.num_experts_per_tok
        )
    settings = ModelSettings(
        config={**config.to_dict(), "model_type": config.model_type},
        tokenizer="none",
        template="chatml",
        max_length_tokens=MAX_LENGTH,
        precision="bfloat16" if half else "float32",
        attention=kernel,  # type: ignore[arg-type]
    )
    vocab_size = text_config(config).vocab_size
    manifest = SimpleNamespace(vocab_size=vocab_size, classes=["a"])
    model, _ = build_model(settings, manifest, device=device, seed=0)[:2]  # type: ignore[arg-type]
    model.to(device)
    quiet(model)
    set_weights(model.causal_lm)
    rows = _Rows(vocab_size - is_wrapper(config))  # the last id of a small copy stands for an image
    reference = gradients_alone(model.causal_lm, rows, torch.float64)
    batch = rows.packs().to(device)
    error = _apart(gradients_on_packs(model, batch), reference)
    without = replace(batch, cu_seqlens_S1=_without_borders(batch.cu_seqlens_S1), max_seqlen=len(batch.input_ids_T))
    control = _apart(gradients_on_packs(model, without), reference)
    rounding = _apart(gradients_alone(model.causal_lm, rows, torch.bfloat16 if half else torch.float32), reference)
    most = max(MOST_ERROR, ROUNDING_FACTOR * rounding)
    is_right = error <= most < control
    why = "" if is_right else f"at most {most:.0e} is right" if error > most else "the control is not far enough away"
    return replace(nothing, verdict="right" if is_right else "wrong", error=error, control=control, why=why)


def quiet(model: torch.nn.Module) -> None:
    """Take out what is random in training, after the base was accepted with it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(word in name for word in ("dropout", "jitter")):
                setattr(module, name, 0.0)


@torch.no_grad()
def set_weights(causal_lm: Any) -> None:
    """Random weights that are large enough for every part to matter, the same on each call."""
    torch.manual_seed(1)
    for parameter in causal_lm.parameters():
        noise = torch.randn(parameter.shape).to(parameter)
        if parameter.ndim >= 2:
            parameter.copy_(noise / min(parameter.shape[-2:]) ** 0.5 if min(parameter.shape[-2:]) > 1 else noise)
        else:
            parameter.add_(noise * 0.2)


def _without_borders(cu_seqlens_S1: torch.Tensor) -> torch.Tensor:
    """The same shape with all tokens in one sequence."""
    one = torch.full_like(cu_seqlens_S1, int(cu_seqlens_S1[-1]))
    one[0] = 0
    return one


def gradients_on_packs(model: Any, batch: PackedBatch) -> torch.Tensor:
    """float64: the gradients of all parameters as one vector."""
    model.zero_grad(set_to_none=True)
    model(batch).weighted_nll.backward()
    return _vector(model.causal_lm)


def gradients_alone(causal_lm: Any, rows: _Rows, dtype: torch.dtype) -> torch.Tensor:
    """float64: the same from a new model of `transformers` with the same weights, one conversation at a time."""

    config = type(causal_lm.config).from_dict(causal_lm.config.to_dict())
    reference = new_model(config, dtype=dtype, attn_implementation="eager")
    reference.load_state_dict(causal_lm.state_dict())
    if hasattr(reference, "set_experts_implementation"):
        reference.set_experts_implementation("eager")  # grouped products have no float64
    device = causal_lm.get_input_embeddings().weight.device
    reference = reference.to(device, dtype).eval()
    quiet(reference)
    for row in rows.rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64)).to(device)
        logits = reference(input_ids=ids[None], use_cache=False).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(
            logits.to(torch.promote_types(dtype, torch.float32)), ids[1:], reduction="none"
        )
        (nll * torch.from_numpy(row.loss_weights[1:]).to(nll)).sum().backward()
    return _vector(reference)


def _vector(causal_lm: Any) -> torch.Tensor:
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in causal_lm.parameters())
    return torch.cat([gradient.detach().double().flatten() for gradient in gradients])


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _for_page(outcome: Outcome) -> dict[str, Any]:
    return {key: value for key, value in asdict(outcome).items() if key != "seconds"}


def line(outcome: Outcome) -> str:
    """One row of the table."""
    numbers = ["        " if x is None else f"{x:8.1e}" for x in (outcome.error, outcome.control)]
    head = f"{outcome.base:28} {outcome.kernel:18} {outcome.verdict:9} {' '.join(numbers)} {outcome.seconds:6.1f} s"
    return f"{head}  {outcome.why}".rstrip()


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts of each verdict."""
    counts = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in get_args(Verdict)}
    tried = len(outcomes) - counts["not built"]
    return f"{tried} tried: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


if __name__ == "__main__":
    main()
