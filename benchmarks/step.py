"""Speed of whole optimizer steps on Mistral-7B shapes: this trainer against OpenChat's design, in one run on one
machine.

    python benchmarks/step.py --gpus 1,2,4 --variants reference,bfloat16,bfloat16-gradients,float8 --json step.json
    python benchmarks/step.py --gpus 1 --layers 16 --variants bfloat16 --profile      # a shorter model; kernels by
    group

Weights are random; conversations are random ids with log-normal lengths, in a prepared dataset on disk, packed, read
and prefetched by the trainer's own code. `reference` is OpenChat's trainer after its description: eager modules,
FlashAttention-2 with variable lengths, every layer checkpointed, all logits at once, ZeRO-2 as DeepSpeed sets it up,
one large micro-batch per step. Each variant runs in separate processes. MFU: throughput.Work over the GPU's dense
bfloat16 peak, true lengths, padding not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import transformers  # noqa: E402

from data_pipeline.prepared.dataset import SCHEMA, PreparedSplit  # noqa: E402
from data_pipeline.prepared.writer import PreparedWriter  # noqa: E402
from ochat_train.distributed.ranks import Ranks, start_ranks, stop_ranks  # noqa: E402
from ochat_train.model.attention.choose import choose_attention  # noqa: E402
from ochat_train.model.attention.needs import AttentionNeeds  # noqa: E402
from ochat_train.model.attention.register import register_attention  # noqa: E402
from ochat_train.model.batch import PackedBatch, joined  # noqa: E402
from ochat_train.model.build import set_up_layers  # noqa: E402
from ochat_train.model.config import model_dtype  # noqa: E402
from ochat_train.model.loss import LossSums  # noqa: E402
from ochat_train.model.packed import PackedCausalLM  # noqa: E402
from ochat_train.planning.memory import MemoryPlan, resolve  # noqa: E402
from ochat_train.planning.steps import training_plan  # noqa: E402
from ochat_train.planning.work import work_of  # noqa: E402
from ochat_train.recipe.load import load_recipe  # noqa: E402
from ochat_train.recipe.recipe import Recipe  # noqa: E402
from ochat_train.system.sizes import GIB  # noqa: E402
from ochat_train.training.batches import run_steps_of_rank  # noqa: E402
from ochat_train.training.engine import parameter_groups, start_engine  # noqa: E402
from ochat_train.training.memory_plan import plan_memory  # noqa: E402
from ochat_train.training.meter import Meter  # noqa: E402
from ochat_train.training.prefetch import StepPrefetcher  # noqa: E402
from ochat_train.training.step import Step, StepSums, train_step  # noqa: E402

_VOCAB = 32_002
_WARMUP_STEPS = 2
VARIANTS: dict[str, dict[str, str]] = {
    "reference": {"deepspeed.zero_stage": "2", "model.attention": "varlen"},
    "bfloat16": {},
    "bfloat16-gradients": {"train.gradient_dtype": "bfloat16"},
    "bfloat16-zero2": {"deepspeed.zero_stage": "2"},
    "bfloat16-zero3": {"deepspeed.zero_stage": "3"},
    "bfloat16-states": {"optimizer.states": "bfloat16"},
    "bfloat16-states-gradients": {"optimizer.states": "bfloat16", "train.gradient_dtype": "bfloat16"},
    "8bit-states": {"optimizer.states": "8bit"},
    "8bit-states-gradients": {"optimizer.states": "8bit", "train.gradient_dtype": "bfloat16"},
    "float8": {"model.float8": "true"},
    "float8-gradients": {"model.float8": "true", "train.gradient_dtype": "bfloat16"},
    "float8-8bit-states-gradients": {
        "model.float8": "true",
        "optimizer.states": "8bit",
        "train.gradient_dtype": "bfloat16",
    },
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all variants of one run share."""

    layers: int
    hidden: int
    pack_length: int
    packs_per_gpu: int
    mean_length: int
    steps: int
    profile: bool
    cpu: bool
    folder: str


def main() -> None:
    """Run every variant on every number of GPUs and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", default="1", help="numbers of GPUs, for example 1,2,4")
    parser.add_argument("--variants", default="reference,bfloat16,bfloat16-gradients,float8", help=", ".join(VARIANTS))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--pack-length", type=int, default=8192)
    parser.add_argument("--packs-per-gpu", type=int, default=6, help="packs of 8,192: 49,152 tokens per GPU and step")
    parser.add_argument("--mean-length", type=int, default=1300, help="of conversations, in tokens")
    parser.add_argument("--steps", type=int, default=4, help=f"steps that count, after {_WARMUP_STEPS}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a recipe value, for all variants"
    )
    parser.add_argument(
        "--profile", action="store_true", help="kernel time by group, of one more step; by name in --json"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="only to try the script: no GPU is used, and figures mean nothing"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(json.loads(Path(arguments.worker).read_text(encoding="utf-8")))
        return
    unknown = set(arguments.variants.split(",")) - set(VARIANTS)
    if unknown:
        parser.error(f"unknown variants {', '.join(sorted(unknown))}; known: {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        names = Options.__dataclass_fields__
        options = Options(**{name: getattr(arguments, name) for name in names if name != "folder"}, folder=folder)
        gpu_counts = [int(text) for text in arguments.gpus.split(",")]
        write_dataset(options, most_gpus=max(gpu_counts))
        results = []
        for num_gpus in gpu_counts:
            for variant in arguments.variants.split(","):
                results.append(run_variant(variant, num_gpus, options, arguments.set))
                if arguments.json:  # after each one: a run that is cut off keeps what it has
                    arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results)


def write_dataset(options: Options, *, most_gpus: int) -> None:
    """A prepared dataset of random ids, long enough for all steps; four of ten tokens of a conversation are the
    user's.
    """
    rng = np.random.default_rng(0)
    num_steps = _WARMUP_STEPS + options.steps + 2
    left = options.pack_length * options.packs_per_gpu * most_gpus * num_steps
    rows: dict[str, list[Any]] = {field.name: [] for field in SCHEMA}
    while left > 0:
        length = conversation_length(rng, options.mean_length, longest=options.pack_length)
        weights = np.full(length, 1.0 if rng.random() < 0.1 else 0.1, dtype=np.float32)
        weights[: length * 2 // 5] = 0.0
        values = (
            str(len(rows["id"])),
            0,
            0,
            length,
            int((weights > 0).sum()),
            float(weights.sum(dtype=np.float64)),
            rng.integers(0, _VOCAB, length, dtype=np.int32),
            weights,
        )
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
        left -= length
    writer = PreparedWriter(Path(options.folder) / "prepared")
    writer.write("train", pa.RecordBatch.from_pydict(rows, schema=SCHEMA))
    writer.close(fingerprint="0" * 16)


def conversation_length(rng: np.random.Generator, mean_length: int, *, longest: int) -> int:
    """A log-normal length in tokens, from 16 to `longest`."""
    sigma = 0.8
    return int(np.clip(rng.lognormal(np.log(mean_length) - sigma**2 / 2, sigma), 16, longest))


def run_variant(variant: str, num_gpus: int, options: Options, settings: list[str]) -> dict[str, Any]:
    """One variant in separate processes, under torchrun, which starts faster than DeepSpeed's launcher; its figures,
    or its last words.
    """
    task, result = Path(options.folder) / "task.json", Path(options.folder) / "result.json"
    result.unlink(missing_ok=True)
    content = {"variant": variant, "options": asdict(options), "settings": settings, "result": str(result)}
    task.write_text(json.dumps(content), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_gpus)]
    command = [*launcher, __file__, "--worker", str(task)]
    print(f"{variant} on {num_gpus} GPU(s) ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if not result.is_file():
        return {"variant": variant, "num_gpus": num_gpus, "failed": done.stdout[-4000:]}
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    speed, seconds = figures["tokens_per_second_per_gpu"], time.monotonic() - start
    set_up = figures["set_up_seconds"]
    print(
        f"    {speed:,.0f} tokens/s/GPU; {seconds:.0f} s, {set_up:.0f} of them to set up", file=sys.stderr, flush=True
    )
    return figures


def base_config(options: Options) -> Any:
    """Mistral-7B's shapes, or smaller ones."""
    return transformers.AutoConfig.for_model(
        "mistral",
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 7 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 128,
        num_key_value_heads=max(1, options.hidden // 512),
        head_dim=128,
        vocab_size=_VOCAB,
        max_position_embeddings=32_768,
        sliding_window=None,
    )


def work(task: dict[str, Any]) -> None:
    """One rank of one variant."""
    begun = time.monotonic()
    options, variant = Options(**task["options"]), task["variant"]
    ranks = start_ranks()
    recipe = make_recipe(options, VARIANTS[variant], task["settings"], ranks)
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    dtype = model_dtype(recipe.model, ranks.device)
    wanted = "auto" if options.cpu else recipe.model.attention  # the reference's kernel needs a GPU
    kernel = choose_attention(wanted, device=ranks.device, dtype=dtype, needs=AttentionNeeds())
    config = base_config(options)
    torch.manual_seed(0)
    with ranks.device:
        causal_lm = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=register_attention(kernel)
        )
    causal_lm.train()
    model_work = work_of(causal_lm)
    memory: MemoryPlan | None = None
    if variant == "reference":
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model: Any = ReferenceLM(causal_lm)
        engine = reference_engine(model, recipe)
    else:
        model = PackedCausalLM(causal_lm, num_classes=1)
        memory, compiled = plan_memory(recipe, causal_lm, ranks, kernel=kernel)
        recipe = resolve(recipe, memory, compiled=compiled)
        set_up_layers(model, recipe, checkpointing=memory.checkpointing, device=ranks.device)
        engine = start_engine(model, recipe, ranks)
    steps = StepPrefetcher(
        run_steps_of_rank(
            split,
            plan,
            first_step=0,
            rank=ranks.rank,
            num_ranks=ranks.num_ranks,
            packs_per_micro_batch=recipe.train.packs_per_micro_batch or 1,
            loss_denominator="epoch",
            num_classes=1,
            pin=ranks.device.type == "cuda",
        ),
        depth=8,
    )

    def next_step() -> tuple[Step, StepSums]:
        step = next(steps)
        batches = [joined(list(step.micro_batches))] if variant == "reference" else step.micro_batches
        return step, train_step(
            engine, batches, denominator=step.denominator, learning_rate=1e-6, num_ranks=ranks.num_ranks
        )

    start = time.monotonic()
    set_up_seconds = start - begun
    meter = Meter(model_work, ranks.device, num_ranks=ranks.num_ranks)
    first_step_seconds, found = 0.0, []
    for _ in range(_WARMUP_STEPS + options.steps):
        meter.start(waited_seconds=steps.waited_seconds)
        step, sums = next_step()
        speed = meter.stop(
            num_tokens=sums.num_tokens, squared_lengths=step.squared_lengths, waited_seconds=steps.waited_seconds
        )
        first_step_seconds = first_step_seconds or time.monotonic() - start
        found.append({**asdict(speed), "squared": step.squared_lengths, "tokens": sums.num_tokens})
    found_profile = profile(next_step, ranks) if options.profile else None
    steps.close()
    if ranks.is_main:
        counted = found[_WARMUP_STEPS:]
        figures = {
            "variant": variant,
            "num_gpus": ranks.num_ranks,
            "attention": kernel,
            "layers": options.layers,
            "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "zero_stage": memory.zero_stage if memory else 2,
            "activation_checkpointing": memory.checkpointing_text if memory else "full",
            "packs_per_micro_batch": memory.packs_per_micro_batch if memory else options.packs_per_gpu,
            "tokens_per_second_per_gpu": len(counted)
            / sum(1 / s["tokens_per_second"] for s in counted)
            / ranks.num_ranks,
            "mfu": len(counted) / sum(1 / s["mfu"] for s in counted) if counted[0]["mfu"] else None,
            "seconds_per_step": [s["tokens"] / s["tokens_per_second"] for s in counted],
            "data_wait_ratio": max(s["data_wait_ratio"] for s in counted),
            "memory_gib": found[-1]["memory_gib"],
            "planned_gib": memory.total / GIB if memory else None,
            "planned_parts_gib": {name: size / GIB for name, size in memory.parts.items()} if memory else None,
            "set_up_seconds": set_up_seconds,
            "first_step_seconds": first_step_seconds,
            "loss": float(sums.per_class[:, 0].sum() / sums.per_class[:, 1].sum()),
            "grad_norm": sums.grad_norm,
            "t_eff": sum(s["squared"] for s in counted) / sum(s["tokens"] for s in counted),
            "padding_ratio": 1 - plan.packing_efficiency,
            "supervised_ratio": float(sums.per_class[:, 3].sum()) / sums.num_tokens,
            "profile": found_profile,
        }
        if ranks.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(ranks.device)
            reserved = torch.cuda.max_memory_reserved(ranks.device)
            figures |= {
                "reserved_gib": reserved / GIB,
                "unused_gib": (free + torch.cuda.memory_reserved() - reserved) / GIB,
                "gpu_gib": total / GIB,
            }
        Path(task["result"]).write_text(json.dumps(figures), encoding="utf-8")
    stop_ranks()


def make_recipe(options: Options, changes: dict[str, str], settings: list[str], ranks: Ranks) -> Recipe:
    """A recipe of the wanted shape; model and data come from the options."""
    values: dict[str, Any] = {
        "output_dir": f"{options.folder}/run",
        "data.prepared_dir": f"{options.folder}/prepared",
        "train.epochs": 1,
        "train.pack_length_tokens": options.pack_length,
        "model.max_length_tokens": options.pack_length,
        "train.tokens_per_step": options.pack_length * options.packs_per_gpu * ranks.num_ranks,
        "deepspeed.zero_stage": "null",
        **changes,
    }
    return load_recipe(
        ROOT / "recipes" / "quickstart.yaml", [f"{key}={value}" for key, value in values.items()] + settings
    )


class ReferenceLM(torch.nn.Module):
    """OpenChat's model and loss: logits of all tokens, cross-entropy of each, weighted sum."""

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(self, batch: PackedBatch) -> LossSums:
        """Loss sums of one micro-batch."""
        logits = self.causal_lm(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            cu_seqlens=batch.cu_seqlens_S1,
            max_seqlen=int(batch.cu_seqlens_S1.diff().max()),
        ).logits[0]
        nll = torch.nn.functional.cross_entropy(logits, batch.target_ids_T, reduction="none")
        weights = batch.target_weights_T.to(nll.dtype)
        weighted = (nll * weights).sum()
        correct = (logits.detach().argmax(-1) == batch.target_ids_T) * weights
        columns = torch.stack((weighted.detach().float(), weights.sum(), correct.sum(), (weights > 0).sum()))
        return LossSums(weighted_nll=weighted, per_class=columns[None])


def reference_engine(model: torch.nn.Module, recipe: Recipe) -> Any:
    """DeepSpeed as OpenChat's configuration leaves it: ZeRO-2, gradients in bfloat16, no overlap of communication."""
    import deepspeed

    groups = [
        {"params": group} for group in parameter_groups(list(model.parameters()))
    ]  # in one group it needs 27 GiB more
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-5, fused=torch.cuda.is_available())
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "steps_per_print": 2**31,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


_GROUPS = {
    "communication": ("nccl",),
    "attention": ("flash", "fmha"),
    "matmul": ("nvjet", "gemm", "cutlass", "cublas", "splitk", "xmma"),
    "optimizer": ("adam", "multi_tensor"),
    "copy": ("memcpy", "memset"),
}


def profile(step: Callable[[], Any], ranks: Ranks) -> dict[str, Any] | None:
    """One step on rank 0: milliseconds by group of kernels, of the longest kernels by name, and the longest times
    without one.

    `idle`: no kernel ran; `loss`: the loss head, part of other groups. `waits`: how often and how long the host waited
    for the GPU, by what it called.
    """
    from torch.autograd.profiler_util import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    torch.distributed.barrier()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch_profile(activities=activities) if ranks.is_main else nullcontext() as found:
        start = time.perf_counter()
        step()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        wall = (time.perf_counter() - start) * 1e3
    if found is None:
        return None
    groups, kernels = dict.fromkeys((*_GROUPS, "elementwise"), 0.0), Counter[str]()
    spans, loss = [], 0.0
    waits: dict[str, list[float]] = {}
    for event in found.events():
        if event.is_user_annotation:  # a name for several kernels
            continue
        if event.device_type == DeviceType.CUDA:
            name = event.name.lower()
            group = next(
                (group for group, parts in _GROUPS.items() if any(part in name for part in parts)), "elementwise"
            )
            groups[group] += event.time_range.elapsed_us() / 1e3
            kernels[event.name] += event.time_range.elapsed_us() / 1e3
            spans.append((event.time_range.start, event.time_range.end, event.name))
        elif event.name in ("_WeightedLoss", "_WeightedLossBackward"):
            loss += event.device_time_total / 1e3
        elif event.name.startswith("cuda") and event.name.endswith("Synchronize"):
            number, milliseconds = waits.get(event.name, (0, 0.0))
            waits[event.name] = [number + 1, milliseconds + event.time_range.elapsed_us() / 1e3]
    spans.sort()
    busy, end, before, gaps = 0.0, spans[0][0] if spans else 0.0, "", []
    for first, last, name in spans:
        if first > end:
            gaps.append({"ms": (first - end) / 1e3, "after": before, "before": name})
        busy += max(0.0, last - max(first, end))
        if last > end:
            end, before = last, name
    return {
        "groups": {**groups, "idle": wall - busy / 1e3, "loss": loss, "wall": wall},
        "num_kernels": len(spans),
        "kernels": dict(kernels.most_common(40)),
        "waits": waits,
        "gaps": sorted(gaps, key=lambda gap: -gap["ms"])[:20],
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """One line per variant, with its ratio to the reference and, in useful operations per second, to one GPU."""
    good = [result for result in results if "failed" not in result]
    for result in results:
        if "failed" in result:
            print(f"{result['variant']} on {result['num_gpus']} GPU(s) failed:\n{result['failed']}\n")
    if not good:
        return
    first = good[0]
    print(
        f"{first['device']}, torch {first['versions']['torch']}, transformers {first['versions']['transformers']}, "
        f"{first['layers']} layers, padding {first['padding_ratio']:.2%}, supervised {first['supervised_ratio']:.0%}; "
        "T_eff: sum of squared lengths / sum of lengths"
    )
    print(
        f"{'variant':<30}{'GPUs':>5}{'T_eff':>7}{'tokens/s/GPU':>14}{'MFU':>8}{'x ref':>7}{'x 1 GPU':>9}"
        f"{'peak':>7}{'planned':>9}{'unused':>8}{'wait':>7}{'first':>8}  setting"
    )
    rows = {(result["variant"], result["num_gpus"]): result for result in good}
    for result in good:
        variant, num_gpus, speed, mfu = (
            result[key] for key in ("variant", "num_gpus", "tokens_per_second_per_gpu", "mfu")
        )
        reference = rows.get(("reference", num_gpus), {}).get("tokens_per_second_per_gpu")
        alone = rows.get((variant, 1), {}).get("mfu")  # not tokens: other numbers of GPUs see other conversations
        print(
            f"{variant:<30}{num_gpus:>5}{result['t_eff']:>7,.0f}{speed:>14,.0f}{_shown(mfu, '8.1%'):>8}"
            f"{_shown(reference and speed / reference, '7.2f'):>7}{_shown(alone and mfu / alone, '9.1%'):>9}"
            f"{_shown(result['memory_gib'], '7.1f'):>7}{_shown(result['planned_gib'], '9.1f'):>9}"
            f"{_shown(result.get('unused_gib'), '8.1f'):>8}{result['data_wait_ratio']:>7.2%}"
            f"{result['first_step_seconds']:>7.0f}s  {result['attention']}, ZeRO-{result['zero_stage']}, "
            f"{result['activation_checkpointing']}, {result['packs_per_micro_batch']} pack(s)"
        )
    for result in good:
        if result["profile"]:
            shares = ", ".join(f"{name} {value:,.0f}" for name, value in result["profile"]["groups"].items())
            print(f"{result['variant']} on {result['num_gpus']} GPU(s), ms of one step: {shares}")


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
