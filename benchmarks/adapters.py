"""LoRA and QLoRA on Mistral-7B shapes: this trainer against PEFT with Liger kernels, in one run on one GPU; ours also
on several.

    python benchmarks/adapters.py --json adapters.json
    python benchmarks/adapters.py --only lora,peft-liger --layers 8
    python benchmarks/adapters.py --only lora,qlora-24 --gpus 4
    python benchmarks/adapters.py --device cpu --layers 2 --hidden 256 --pack-length 256 --mean-length 60   # to try it

Random weights; conversations of random ids with log-normal lengths (benchmarks/step.py), packed, read and prefetched by
the trainer's own code; 49,152 tokens a step and GPU. LoRA of rank 16 on all linear layers. Ours takes the trainer's
path: the adapter of `ochat_train.adapter`, compiled layers, the fastest attention kernel, DeepSpeed's engine, the
weighted loss.
The baseline is benchmarks/peft_baseline.py, on one GPU. Each variant runs in its own processes; a memory limit is
`torch.cuda.set_per_process_memory_fraction`, with room for the CUDA context taken off. MFU counts what a step needs:
4 operations for each weight of the base and 6 for each of the adapter, attention, no recomputation, no padding.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import transformers  # noqa: E402

from benchmarks.peft_baseline import make_baseline  # noqa: E402
from benchmarks.step import Options, base_config, make_recipe, profile, write_dataset  # noqa: E402
from data_pipeline.prepared.dataset import PreparedSplit  # noqa: E402
from ochat_train.adapter.build import add_adapter  # noqa: E402
from ochat_train.adapter.quantize import quantise_base  # noqa: E402
from ochat_train.distributed.ranks import Ranks, start_ranks, stop_ranks  # noqa: E402
from ochat_train.model.attention.choose import choose_attention  # noqa: E402
from ochat_train.model.attention.needs import AttentionNeeds  # noqa: E402
from ochat_train.model.attention.register import register_attention  # noqa: E402
from ochat_train.model.build import set_up_layers  # noqa: E402
from ochat_train.model.config import model_dtype  # noqa: E402
from ochat_train.model.packed import PackedCausalLM  # noqa: E402
from ochat_train.model.structure import decoder_layers  # noqa: E402
from ochat_train.planning.memory import resolve  # noqa: E402
from ochat_train.planning.steps import training_plan  # noqa: E402
from ochat_train.planning.work import Work, work_of  # noqa: E402
from ochat_train.recipe.recipe import Recipe  # noqa: E402
from ochat_train.system.sizes import GIB  # noqa: E402
from ochat_train.training.batches import run_steps_of_rank  # noqa: E402
from ochat_train.training.engine import start_engine  # noqa: E402
from ochat_train.training.memory_plan import plan_memory  # noqa: E402
from ochat_train.training.meter import Meter  # noqa: E402
from ochat_train.training.prefetch import StepPrefetcher  # noqa: E402
from ochat_train.training.step import Step, train_step  # noqa: E402

_RANK = 16
_WARMUP_STEPS = 2
_CONTEXT_GIB = 0.75  # of the CUDA context and its libraries, outside torch's allocator
_MOST_SECONDS = 240  # of a variant


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one row of the table runs.

    kind: `lora` and `qlora` are ours, `peft` is the baseline. checkpointing: as in a recipe. pack_length: None for that
    of the options. limit_gib: memory of the GPU that is imitated, None for all of it. weighted: of the baseline's loss.
    """

    kind: str
    checkpointing: str = "none"
    pack_length: int | None = None
    limit_gib: float | None = None
    weighted: bool = False


VARIANTS = {
    "lora": Variant(kind="lora"),
    "lora-matmuls": Variant(kind="lora", checkpointing="matmuls"),
    "lora-recomputed": Variant(kind="lora", checkpointing="full"),
    "peft-liger": Variant(kind="peft"),
    "peft-liger-checkpointed": Variant(kind="peft", checkpointing="full"),
    "peft-liger-weighted": Variant(kind="peft", weighted=True),
    "qlora-24": Variant(kind="qlora", checkpointing="full", limit_gib=24.0),
    "qlora-12": Variant(kind="qlora", checkpointing="full", limit_gib=12.0, pack_length=4096),
}
_DEFAULT = "lora,lora-recomputed,peft-liger,peft-liger-checkpointed,qlora-24,qlora-12"
_BASELINES = ("peft-liger", "peft-liger-checkpointed")  # the first that ran is what others are compared with


def main() -> None:
    """Run the variants and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=_DEFAULT, help=f"variants, of {', '.join(VARIANTS)}; default: {_DEFAULT}")
    parser.add_argument("--gpus", type=int, default=1, help="of this host; more than one only for ours")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--pack-length", type=int, default=8192)
    parser.add_argument("--packs", type=int, default=6, help="packs of a step; of shorter packs as many more")
    parser.add_argument("--mean-length", type=int, default=1300, help="of conversations, in tokens")
    parser.add_argument("--steps", type=int, default=3, help=f"steps that count, after {_WARMUP_STEPS}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try the script")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a recipe value, for ours")
    parser.add_argument(
        "--profile", action="store_true", help="kernel time by group, of one more step; by name in --json"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(json.loads(Path(arguments.worker).read_text(encoding="utf-8")))
        return
    names = arguments.only.split(",")
    if unknown := set(names) - set(VARIANTS):
        parser.error(f"unknown variants {', '.join(sorted(unknown))}; known: {', '.join(VARIANTS)}")
    if arguments.gpus > 1 and any(VARIANTS[name].kind == "peft" for name in names):
        parser.error("the baseline runs on one GPU: leave out its variants, or --gpus")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu tries the script")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            layers=arguments.layers,
            hidden=arguments.hidden,
            pack_length=arguments.pack_length,
            packs_per_gpu=arguments.packs,
            mean_length=arguments.mean_length,
            steps=arguments.steps,
            profile=arguments.profile,
            cpu=arguments.device == "cpu",
            folder=folder,
        )
        for name in names:
            results.append(run_variant(name, arguments.gpus, options, arguments.set))
            if arguments.json:  # after each one: a run that is cut off keeps what it has
                arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(results)


def run_variant(name: str, num_gpus: int, options: Options, settings: list[str]) -> dict[str, Any]:
    """One variant in its own processes: its figures, or its last words."""
    options = with_pack_length(options, VARIANTS[name].pack_length)
    if not Path(options.folder).is_dir():
        Path(options.folder).mkdir()
        write_dataset(options, most_gpus=num_gpus)
    task, result = Path(options.folder) / "task.json", Path(options.folder) / "result.json"
    result.unlink(missing_ok=True)
    content = {"variant": name, "options": asdict(options), "settings": settings, "result": str(result)}
    task.write_text(json.dumps(content), encoding="utf-8")
    print(f"{name} on {num_gpus} GPU(s) ...", file=sys.stderr, flush=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_gpus)]
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *(launcher if num_gpus > 1 else []), __file__, "--worker", str(task)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=_MOST_SECONDS,
            env={**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if options.cpu else {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        words = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else (error.stdout or "")
        return {"variant": name, "failed": f"{words[-3000:]}\nmore than {_MOST_SECONDS} seconds"}
    seconds = time.monotonic() - start
    if not result.is_file():
        print(f"    failed after {seconds:.0f} s", file=sys.stderr, flush=True)
        return {"variant": name, "failed": done.stdout[-3000:]}
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    speed = figures["tokens_per_second_per_gpu"]
    print(f"    {speed:,.0f} tokens/s/GPU; {seconds:.0f} s in all", file=sys.stderr, flush=True)
    return {**figures, "wall_seconds": seconds}


def with_pack_length(options: Options, length: int | None) -> Options:
    """The same tokens a step in packs of another length; each length has its folder of data."""
    if length is None or options.cpu:
        return replace(options, folder=f"{options.folder}/data")
    packs = options.packs_per_gpu * options.pack_length // length
    return replace(options, pack_length=length, packs_per_gpu=packs, folder=f"{options.folder}/data-{length}")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that was taken; all of it over all ranks."""

    loss: float
    grad_norm: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A variant that is ready. step: takes one.

    setting: what it runs with, for people. planned_gib: of the memory plan, None for the baseline.
    """

    step: Callable[[Step], Taken]
    work: Work
    packs_per_micro_batch: int
    setting: str
    planned_gib: float | None


def work(task: dict[str, Any]) -> None:
    """The process of one variant."""
    options, variant = Options(**task["options"]), VARIANTS[task["variant"]]
    ranks = start_ranks()
    assert (ranks.device.type == "cpu") == options.cpu, "--device is not what torch found"
    limit_memory(variant, ranks)
    changes = {
        "model.activation_checkpointing": variant.checkpointing,
        "adapter.type": "qlora" if variant.kind == "qlora" else "lora",
        "adapter.rank": str(_RANK),
    }
    recipe = make_recipe(options, changes, task["settings"], ranks)
    begun = time.monotonic()
    if variant.kind == "peft":
        trainer = baseline_trainer(options, variant, ranks)
    else:
        trainer = own_trainer(options, recipe, ranks)
    figures = measure(trainer, options, recipe, ranks, begun)
    figures |= {"variant": task["variant"], "limit_gib": variant.limit_gib}
    if ranks.is_main:
        Path(task["result"]).write_text(json.dumps(figures), encoding="utf-8")
    stop_ranks()


def limit_memory(variant: Variant, ranks: Ranks) -> None:
    """Let the process allocate what a GPU of `limit_gib` would have left beside the CUDA context."""
    if variant.limit_gib is None or ranks.device.type == "cpu":
        return
    total = torch.cuda.get_device_properties(ranks.device).total_memory
    torch.cuda.set_per_process_memory_fraction((variant.limit_gib - _CONTEXT_GIB) * GIB / total, ranks.device)


def own_trainer(options: Options, recipe: Recipe, ranks: Ranks) -> Trainer:
    """This trainer's way; only the weights are random and made on the GPU."""
    assert recipe.adapter is not None
    dtype = model_dtype(recipe.model, ranks.device)
    kernel = choose_attention(recipe.model.attention, device=ranks.device, dtype=dtype, needs=AttentionNeeds())
    causal_lm = random_base(options, recipe, ranks, attention=register_attention(kernel))
    add_adapter(causal_lm, recipe.adapter)
    causal_lm.train()
    model_work = work_of(causal_lm)
    model = PackedCausalLM(causal_lm, num_classes=1)
    memory, compiled = plan_memory(recipe, causal_lm, ranks, kernel=kernel)
    recipe = resolve(recipe, memory, compiled=compiled)
    set_up_layers(model, recipe, checkpointing=memory.checkpointing, device=ranks.device)
    engine = start_engine(model, recipe, ranks)

    def step(step: Step) -> Taken:
        sums = train_step(
            engine, step.micro_batches, denominator=step.denominator, learning_rate=1e-4, num_ranks=ranks.num_ranks
        )
        loss = float(sums.per_class[:, 0].sum()) / step.denominator
        return Taken(loss=loss, grad_norm=sums.grad_norm, num_tokens=sums.num_tokens)

    return Trainer(
        step=step,
        work=model_work,
        packs_per_micro_batch=memory.packs_per_micro_batch,
        setting=f"{kernel}, ZeRO-{memory.zero_stage}, {memory.checkpointing_text}, "
        f"{memory.packs_per_micro_batch} pack(s){', compiled' if compiled else ''}",
        planned_gib=memory.total / GIB,
    )


def random_base(options: Options, recipe: Recipe, ranks: Ranks, *, attention: str) -> Any:
    """A base of random weights on the device; for `qlora` with linear layers in 4 bits and equal weights in all layers,
    so that a GPU never holds more than one of them in bfloat16.
    """
    config, dtype = base_config(options), model_dtype(recipe.model, ranks.device)
    is_quantised = recipe.adapter is not None and recipe.adapter.type == "qlora"
    config.num_hidden_layers = 1 if is_quantised else options.layers
    torch.manual_seed(0)
    with ranks.device:
        causal_lm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if is_quantised:
        layers = decoder_layers(causal_lm)
        linear = [module.weight for module in layers[0].modules() if isinstance(module, torch.nn.Linear)]
        shared = {id(weight): weight for weight in linear}
        layers.extend(copy.deepcopy(layers[0], dict(shared)) for _ in range(1, options.layers))
        causal_lm.config.num_hidden_layers = options.layers
        quantise_base(causal_lm, device=ranks.device, dtype=dtype)
    return causal_lm


def baseline_trainer(options: Options, variant: Variant, ranks: Ranks) -> Trainer:
    """PEFT with Liger kernels, which need a GPU: on the CPU it runs without them."""
    baseline = make_baseline(
        base_config(options),
        rank=_RANK,
        checkpointed=variant.checkpointing == "full",
        weighted=variant.weighted,
        liger=ranks.device.type == "cuda",
        device=ranks.device,
    )

    def step(step: Step) -> Taken:
        loss, grad_norm = baseline.step(step.micro_batches, denominator=step.denominator, device=ranks.device)
        return Taken(loss=loss, grad_norm=grad_norm, num_tokens=sum(step.tokens_per_class))

    return Trainer(
        step=step,
        work=work_of(baseline.model.base_model.model),
        packs_per_micro_batch=1,
        setting=f"{baseline.attention}, {baseline.kernels}, {variant.checkpointing}",
        planned_gib=None,
    )


def measure(trainer: Trainer, options: Options, recipe: Recipe, ranks: Ranks, begun: float) -> dict[str, Any]:
    """Take the steps. begun: when the set-up did."""
    split = PreparedSplit(Path(recipe.data.prepared_dir), "train")
    plan = training_plan(recipe, split)
    steps = StepPrefetcher(
        run_steps_of_rank(
            split,
            plan,
            first_step=0,
            rank=ranks.rank,
            num_ranks=ranks.num_ranks,
            packs_per_micro_batch=trainer.packs_per_micro_batch,
            loss_denominator="epoch",
            num_classes=1,
            pin=ranks.device.type == "cuda",
        ),
        depth=8,
    )
    if ranks.device.type == "cuda":  # of steps: in a run, the set-up is on the CPU
        torch.cuda.reset_peak_memory_stats(ranks.device)
    meter = Meter(trainer.work, ranks.device, num_ranks=ranks.num_ranks)
    start, found, losses = time.monotonic(), [], []
    for _ in range(_WARMUP_STEPS + options.steps):
        meter.start(waited_seconds=steps.waited_seconds)
        step = next(steps)
        taken = trainer.step(step)
        speed = meter.stop(
            num_tokens=taken.num_tokens,
            squared_lengths=step.squared_lengths,
            waited_seconds=steps.waited_seconds,
        )
        found.append(speed)
        losses.append(taken.loss)
    seconds = time.monotonic() - start
    found_profile = profile(lambda: trainer.step(next(steps)), ranks) if options.profile else None
    steps.close()
    counted = found[_WARMUP_STEPS:]
    shares = [speed.mfu for speed in counted if speed.mfu]
    peaks = {}
    if ranks.device.type == "cuda":
        peaks = {"reserved_gib": torch.cuda.max_memory_reserved(ranks.device) / GIB}
    return {
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        "versions": {name: sys.modules[name].__version__ for name in ("torch", "transformers", "peft", "deepspeed")},
        "layers": options.layers,
        "pack_length": options.pack_length,
        "num_gpus": ranks.num_ranks,
        "tokens_per_second_per_gpu": len(counted)
        / sum(1 / speed.tokens_per_second for speed in counted)
        / ranks.num_ranks,
        "mfu": len(shares) / sum(1 / share for share in shares) if shares else None,
        "memory_gib": found[-1].memory_gib,
        **peaks,
        "planned_gib": trainer.planned_gib,
        "setting": trainer.setting,
        "losses": losses,
        "grad_norm": taken.grad_norm,
        "profile": found_profile,
        "set_up_seconds": start - begun,
        "step_seconds": seconds,
        "data_wait_ratio": max(speed.data_wait_ratio for speed in counted),
        "padding_ratio": 1 - plan.packing_efficiency,
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """One line per variant: tokens/s per GPU, and that as a multiple of the baseline's."""
    rows = {result["variant"]: result for result in results if "failed" not in result}
    for result in results:
        if "failed" in result:
            print(f"{result['variant']} failed:\n{result['failed']}\n")
    if not rows:
        return
    first = next(iter(rows.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    baseline = next((name for name in _BASELINES if name in rows), None)
    gpus = f"{first['num_gpus']} x {first['device']}"
    print(f"{gpus}, {versions}, {first['layers']} layers; ratio: to {baseline or 'nothing'}")
    print(
        f"{'variant':<24}{'packs of':>9}{'limit':>7}{'per GPU':>10}{'ratio':>7}{'MFU':>8}{'peak':>7}{'reserved':>10}"
        f"{'planned':>9}{'loss first, last':>18}  setting"
    )
    for name, row in rows.items():
        ratio = row["tokens_per_second_per_gpu"] / rows[baseline]["tokens_per_second_per_gpu"] if baseline else None
        print(
            f"{name:<24}{row['pack_length']:>9,}{_shown(row['limit_gib'], '7.0f')}"
            f"{row['tokens_per_second_per_gpu']:>10,.0f}"
            f"{_shown(ratio, '7.2f')}{_shown(row['mfu'], '8.1%')}{_shown(row['memory_gib'], '7.1f')}"
            f"{_shown(row.get('reserved_gib'), '10.1f')}{_shown(row['planned_gib'], '9.1f')}"
            f"{row['losses'][0]:>11.3f}{row['losses'][-1]:>7.3f}  {row['setting']}"
        )
    for name, row in rows.items():
        if row["profile"]:
            shares = ", ".join(f"{group} {value:,.0f}" for group, value in row["profile"]["groups"].items())
            print(f"{name}, ms of one step: {shares}")


def _shown(value: float | None, form: str) -> str:
    """value: None for what does not exist."""
    return format(value, form) if value is not None else "-".rjust(int(form.split(".")[0]))


if __name__ == "__main__":
    main()
