"""All GPUs of one host, in parts that take at most ten minutes each: exact gradients, speed, LoRA, scaling, kills,
pauses.

    python benchmarks/many_gpus.py exact              # gradients of all GPUs against those of one
    python benchmarks/many_gpus.py speed              # whole 7B steps on all GPUs, the reference among them
    python benchmarks/many_gpus.py adapters           # LoRA and QLoRA of the whole 7B on 1 and on all GPUs
    python benchmarks/many_gpus.py scaling            # 16 layers on 1, 2 and all GPUs, equal work per GPU
    python benchmarks/many_gpus.py kill               # kill -9 of a rank, resumed on half of the GPUs and back on all
    python benchmarks/many_gpus.py pause              # seconds of a checkpoint
    python benchmarks/many_gpus.py kill --cpu         # any part with two CPU ranks and tiny models, to try the script

Needs the extra `test`. Every result is added to OUT/many_gpus.jsonl as soon as it is known, and a table is printed
last. A part does not start what would not fit into `--budget`, and names it. Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.step import print_table as print_speeds  # noqa: E402
from ochat_train.checkpoint.state import (  # noqa: E402
    CheckpointManifest,
    checkpoint_dir,
    list_checkpoints,
    step_of,
)
from ochat_train.distributed.launch import free_port  # noqa: E402
from ochat_train.recipe.load import load_recipe  # noqa: E402
from ochat_train.recipe.preparation import prepare_recipe  # noqa: E402
from ochat_train.system import exits  # noqa: E402
from tests.support.faults import give_fresh_random_states, num_steps, same_run  # noqa: E402
from tests.support.processes import finish, process_environment, start_ranks  # noqa: E402
from tests.support.run_folder import metrics  # noqa: E402
from tests.support.waiting import wait_for  # noqa: E402

STARTED = time.monotonic()
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
NUM_STEPS, SAVE_EVERY = 30, 5
KILLED_AT = (11, 21)  # steps; the run resumes from checkpoints 10 and 20 unless it is faster than the kill
HANG_SECONDS = 30.0  # NCCL does not notice a dead rank by itself
# Largest relative difference of a step's loss after resuming on other numbers of GPUs, which add in another order.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
SAME_STEPS = ("step", "epoch", "tokens", "supervised_tokens", "weight", "learning_rate")
STOP_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all parts share. budget: seconds of one part."""

    gpus: int
    cpu: bool
    budget: float
    out: Path

    @property
    def seconds_left(self) -> float:
        """Until the budget is spent."""
        return self.budget - (time.monotonic() - STARTED)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One measurement of a part. run: returns its figures, among them `ok`. work: its share of time among variants."""

    name: str
    run: Callable[[], dict[str, Any]]
    work: float = 1.0


def main() -> int:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/many_gpus"), help="folder of many_gpus.jsonl")
    parser.add_argument("--gpus", type=int, help="how many of the host's GPUs (default: all); with --cpu, ranks (2)")
    parser.add_argument("--cpu", action="store_true", help="only to try the script: tiny models, no GPU is used")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds of this part (default: %(default)g)")
    parser.add_argument("--only", default="", metavar="TEXT", help="variants of this part whose names contain it")
    arguments = parser.parse_args()
    number = 2 if arguments.cpu else torch.cuda.device_count()
    options = Options(
        gpus=arguments.gpus or number, cpu=arguments.cpu, budget=arguments.budget, out=arguments.out.resolve()
    )
    if not options.cpu and not 2 <= options.gpus <= number:
        parser.error(f"this host has {number} GPUs, and --gpus must be 2 or more of them")
    options.out.mkdir(parents=True, exist_ok=True)
    show_devices(options)
    variants, print_results = PARTS[arguments.part]
    with variants(options) as listed:
        chosen = [variant for variant in listed if arguments.only in variant.name]
        if not chosen:
            parser.error(f"--only: no variant has {arguments.only!r} in its name: {'; '.join(v.name for v in listed)}")
        results, not_run = run_variants(arguments.part, chosen, options)
    for result in results:
        if not result["ok"]:
            print(f"{result['variant']} failed:\n{str(result.get('failed', ''))[-2500:]}\n")
    print(f"\n{arguments.part}: {options.gpus} x {device_name(options)}, torch {torch.__version__}")
    print_results(results)
    for result in results:
        print(f"{'ok' if result['ok'] else 'FAILED':<7}{result['seconds']:>5.0f} s  {result['variant']}")
    for name in not_run:
        print(f"not run, too little time was left: {name}")
    return 0 if all(result["ok"] for result in results) else 1


def show_devices(options: Options) -> None:
    """Let this process and those that it starts see as many GPUs as were asked for, or none."""
    if options.cpu:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    elif options.gpus < torch.cuda.device_count():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen.split(",")[: options.gpus])


def device_name(options: Options) -> str:
    """Of the first GPU."""
    return "CPU rank" if options.cpu else torch.cuda.get_device_name(0)


def run_variants(part: str, variants: Sequence[Variant], options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    """Run variants while there is time for one more, judged by the one before; results, and names of those not run."""
    results: list[dict[str, Any]] = []
    seconds_of_work = 0.0
    for number, variant in enumerate(variants):
        if options.seconds_left < max(5.0, seconds_of_work * variant.work):
            return results, [left.name for left in variants[number:]]
        print(f"{variant.name} ... ({options.seconds_left:.0f} s left)", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            figures = variant.run()
        except Exception as error:  # the variants after it are still worth their time
            figures = {"ok": False, "failed": f"{type(error).__name__}: {error}"}
        seconds = time.monotonic() - start
        seconds_of_work = seconds / variant.work
        result = {"part": part, **figures, "variant": variant.name, "gpus": options.gpus, "seconds": seconds}
        results.append({**result, "device_name": device_name(options)})
        with (options.out / "many_gpus.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(results[-1]) + "\n")
    return results, []


def run_command(command: Sequence[str | Path], *, seconds: float) -> tuple[int | None, str]:
    """Run a command with all that it starts; its exit code (None: stopped after `seconds`) and what it printed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env=process_environment({}),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # launchers end their ranks, which have sessions of their own
            time.sleep(STOP_SECONDS)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read()


def ended(code: int | None, output: str) -> dict[str, Any]:
    """Whether a command succeeded, and its last words if not."""
    if code == 0:
        return {"ok": True}
    return {"ok": False, "failed": f"{output[-4000:]}\n{'out of time' if code is None else f'exit code {code}'}"}


# ---- exact ----


@contextmanager
def exact(options: Options) -> Iterator[list[Variant]]:
    """Gradients of all GPUs against those of one GPU."""

    def run() -> dict[str, Any]:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-k", "all_gpus", "tests/ochat_train/model", "-rs"]
        code, output = run_command(command, seconds=options.seconds_left)
        found = {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
        measured = {name: float(value) for value, name in re.findall(r"^ *(\S+)  (gradient .*)$", output, re.M)}
        figures = {**ended(code, output), "tests": found, "measured": measured}
        if figures["ok"] and not options.cpu and (not found.get("passed") or found.get("skipped")):
            figures |= {"ok": False, "failed": output[-4000:]}
        return figures

    yield [Variant(name="pytest -m gpu -k all_gpus", run=run)]


def print_exact(results: list[dict[str, Any]]) -> None:
    """The worst error of each kind."""
    for result in results:
        print(", ".join(f"{number} {name}" for name, number in result.get("tests", {}).items()))
        for name, error in result.get("measured", {}).items():
            print(f"{error:10.2e}  {name}")


# ---- speed and scaling ----


@contextmanager
def speed(options: Options) -> Iterator[list[Variant]]:
    """The whole model on all GPUs, the most wanted figures first."""
    names = ("bfloat16-gradients", "float8-gradients", "reference", "bfloat16", "float8")
    yield [step_variant(name, options.gpus, 32, options) for name in names]


@contextmanager
def scaling(options: Options) -> Iterator[list[Variant]]:
    """Half of the layers, which fit on one GPU, at the same number of tokens per GPU and step."""
    counts = [options.gpus, 1] + ([2] if options.gpus > 2 else [])
    cases = [("bfloat16-gradients", count) for count in counts]
    cases += [("reference", options.gpus), *(("float8-gradients", count) for count in counts)]
    yield [step_variant(name, count, 16, options) for name, count in cases]


def step_variant(name: str, num_gpus: int, layers: int, options: Options) -> Variant:
    """A variant of benchmarks/step.py on some of the GPUs; its --packs-per-gpu is the same for any number of them."""

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step.json"
            command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "step.py"]
            command += ["--gpus", str(num_gpus), "--variants", name, "--json", path, "--layers", str(layers)]
            if options.cpu:
                command += ["--cpu", "--layers", "2", "--hidden", "256", "--pack-length", "512", "--packs-per-gpu", "2"]
                command += ["--mean-length", "100", "--steps", "2"]
            code, output = run_command(command, seconds=options.seconds_left)
            if code != 0 or not path.is_file():
                return {**ended(code, output), "ok": False}
            [figures] = json.loads(path.read_text(encoding="utf-8"))
            return {**figures, "kind": name, "ok": "failed" not in figures}

    return Variant(name=f"{name}, {num_gpus} GPU(s), {layers} layers", run=run)


@contextmanager
def adapters(options: Options) -> Iterator[list[Variant]]:
    """LoRA and QLoRA on the whole model, at the same number of tokens per GPU and step."""
    cases = [("lora", options.gpus), ("lora", 1), ("qlora-24", options.gpus), ("qlora-24", 1)]
    yield [adapter_variant(name, count, options) for name, count in cases]


def adapter_variant(name: str, num_gpus: int, options: Options) -> Variant:
    """A variant of benchmarks/adapters.py on some of the GPUs."""

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapters.json"
            command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "adapters.py"]
            command += ["--gpus", str(num_gpus), "--only", name, "--json", path]
            if options.cpu:
                command += ["--device", "cpu", "--layers", "2", "--hidden", "256", "--pack-length", "512"]
                command += ["--packs", "2", "--mean-length", "100", "--steps", "2"]
            code, output = run_command(command, seconds=options.seconds_left)
            if code != 0 or not path.is_file():
                return {**ended(code, output), "ok": False}
            [figures] = json.loads(path.read_text(encoding="utf-8"))
            return {**figures, "kind": name, "ok": "failed" not in figures}

    return Variant(name=f"{name}, {num_gpus} GPU(s)", run=run)


def print_adapters(results: list[dict[str, Any]]) -> None:
    """Tokens/s per GPU, and what is left of one GPU's on all."""
    alone = {row["kind"]: row for row in results if row["ok"] and row["num_gpus"] == 1}
    for row in results:
        if not row["ok"]:
            continue
        speed, one = row["tokens_per_second_per_gpu"], alone.get(row["kind"])
        kept = f"{speed / one['tokens_per_second_per_gpu']:7.1%} of one GPU's" if one else ""
        mfu = f"{row['mfu']:6.1%} MFU" if row["mfu"] else ""
        print(f"{row['kind']:<10}{row['num_gpus']:>3} GPU(s){speed:>10,.0f} tokens/s per GPU {mfu} {kept}")


def print_step_results(results: list[dict[str, Any]]) -> None:
    """The table of benchmarks/step.py over all variants that ran."""
    print_speeds([{**result, "variant": result["kind"]} for result in results if result["ok"]])


# ---- kill ----


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the quickstart's recipe in a folder of the working directory."""

    name: str
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return Path("runs", self.name).resolve()

    @property
    def changes(self) -> list[str]:
        """KEY=VALUE for each value that differs from the recipe's."""
        values = {**self.settings, "output_dir": self.folder}
        return [f"{key}={value}" for key, value in values.items()]

    def train(self, *, num_ranks: int, options: Options) -> None:
        """Train, or resume, to the end."""
        outputs, codes = finish(self._start(num_ranks), seconds=max(1.0, options.seconds_left))
        if codes != [exits.DONE] * num_ranks:
            raise RuntimeError(f"{self.name} on {num_ranks} ranks: exit codes {codes}\n{''.join(outputs)[-3000:]}")

    def train_and_kill(self, *, num_ranks: int, victim: int, at_step: int, options: Options) -> dict[str, Any]:
        """Train, or resume, until a step is done, kill one rank, and wait for the others to end by themselves."""
        ranks = self._start(num_ranks)
        try:
            wait_for(
                lambda: num_steps(self.folder) >= at_step or any(rank.poll() is not None for rank in ranks),
                seconds=max(1.0, options.seconds_left),
            )
            if any(rank.poll() is not None for rank in ranks):
                raise RuntimeError(f"{self.name} ended before it was killed\n{''.join(finish(ranks)[0])[-3000:]}")
            os.kill(ranks[victim].pid, signal.SIGKILL)
            outputs, codes = finish(ranks, seconds=max(1.0, min(4 * HANG_SECONDS, options.seconds_left)))
        finally:
            for rank in ranks:
                rank.kill()
        others = [code for rank, code in enumerate(codes) if rank != victim]
        words = [line for rank, output in enumerate(outputs) if rank != victim for line in output.splitlines()[-3:]]
        return {
            "num_ranks": num_ranks,
            "victim": victim,
            "step": num_steps(self.folder),
            "resumes_from": step_of(list_checkpoints(self.folder)[-1]),
            "exit_codes": codes,
            "codes_ok": codes[victim] == -signal.SIGKILL and others == [exits.LOST_RANKS] * len(others),
            "last_words": words,
        }

    def copy_up_to(self, step: int, name: str) -> Run:
        """A copy of this finished run, as if it had ended after the checkpoint of a step."""
        copy = replace(self, name=name)
        shutil.copytree(self.folder, copy.folder)
        for checkpoint in list_checkpoints(copy.folder):
            if step_of(checkpoint) > step:
                shutil.rmtree(checkpoint)
        return copy

    def _start(self, num_ranks: int) -> list[Any]:
        flags = [text for change in self.changes for text in ("--set", change)]
        return start_ranks("ochat_train", str(QUICKSTART), *flags, num_ranks=num_ranks)


@contextmanager
def kill(options: Options) -> Iterator[list[Variant]]:
    """A prepared quickstart, in whose folder the runs happen."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the recipe names its files from the working directory
        make = [sys.executable, "-m", "ochat_train.quickstart.make", str(Path(folder) / "data" / "quickstart")]
        code, output = run_command(make, seconds=options.seconds_left)
        if code != 0:
            raise SystemExit(output)
        recipe = load_recipe(QUICKSTART, small_run("prepared", options).changes)
        prepare_recipe(recipe, num_workers=1, progress=lambda rows: None)
        half = options.gpus // 2
        chain = f"{options.gpus} -> {half} -> {options.gpus}"
        yield [
            Variant(name=f"float32, {chain}", run=functools.partial(other_numbers, "float32", options)),
            Variant(name=f"dropout, {options.gpus} -> {options.gpus}", run=functools.partial(same_number, options)),
            Variant(name=f"bfloat16, {chain}", run=functools.partial(other_numbers, "bfloat16", options)),
        ]
        os.chdir(ROOT)


def small_run(name: str, options: Options, *, precision: str = "float32", dropout: float = 0.0) -> Run:
    """Thirty steps of the quickstart's model, two packs per rank and step, nothing compiled."""
    length = 512 if options.cpu else 2048
    model = {**(load_recipe(QUICKSTART).model.config or {}), "attention_dropout": dropout}
    settings = {
        "model.config": json.dumps(model),
        "model.precision": precision,
        "model.attention": "sdpa",  # has dropout, and float32
        "model.compile": "false",
        "data.validation_ratio": 0.0,
        "train.max_steps": NUM_STEPS,
        "train.pack_length_tokens": length,
        "train.tokens_per_step": 2 * length * options.gpus,
        "train.hang_timeout_seconds": HANG_SECONDS,
        "checkpoint.save_every_steps": SAVE_EVERY,
        "checkpoint.keep_last": NUM_STEPS,
    }
    return Run(name=name, settings=settings)


def other_numbers(precision: str, options: Options) -> dict[str, Any]:
    """All ranks, a kill, half of them, a kill of rank 0, all again; the control resumes from a wrong step."""
    bound, half = BOUNDS[precision], options.gpus // 2
    undisturbed = small_run(f"undisturbed-{precision}", options, precision=precision)
    undisturbed.train(num_ranks=options.gpus, options=options)
    run = replace(undisturbed, name=f"killed-{precision}")
    kills = [
        run.train_and_kill(num_ranks=options.gpus, victim=options.gpus - 1, at_step=KILLED_AT[0], options=options),
        run.train_and_kill(num_ranks=half, victim=0, at_step=KILLED_AT[1], options=options),
    ]
    run.train(num_ranks=options.gpus, options=options)
    control = undisturbed.copy_up_to(2 * SAVE_EVERY, f"control-{precision}")
    pretend_later_step(control.folder, at=SAVE_EVERY, step=2 * SAVE_EVERY)
    control.train(num_ranks=options.gpus, options=options)
    differences = loss_differences(run.folder, undisturbed.folder)
    wrong = loss_differences(control.folder, undisturbed.folder)
    same_steps = have_same_steps(run.folder, undisturbed.folder)
    starts = [0, *(kill["resumes_from"] for kill in kills), NUM_STEPS]
    return {
        "ok": same_steps
        and max(differences) <= bound < max(wrong)
        and all(kill["codes_ok"] for kill in kills)
        and 0 < starts[1] < starts[2] < NUM_STEPS,
        "bound": bound,
        "parts": [
            {"num_ranks": num_ranks, "first": first + 1, "last": last, "largest": max(differences[first:last])}
            for num_ranks, first, last in zip((options.gpus, half, options.gpus), starts, starts[1:], strict=False)
            if last > first
        ],
        "control": f"resumed from step {SAVE_EVERY} as if it were {2 * SAVE_EVERY}",
        "control_largest": max(wrong),
        "same_steps": same_steps,
        "differences": differences,
        "control_differences": wrong,
        "losses": [line["loss"] for line in metrics(undisturbed.folder)],
        "kills": kills,
    }


def same_number(options: Options) -> dict[str, Any]:
    """With dropout, killed and resumed on all ranks: bit for bit, or as close as two runs that nobody disturbs.

    The control resumes with other random numbers.
    """
    undisturbed = small_run("undisturbed-dropout", options, dropout=0.1)
    again, run = (replace(undisturbed, name=f"{name}-dropout") for name in ("again", "killed"))
    for straight in (undisturbed, again):
        straight.train(num_ranks=options.gpus, options=options)
    killed = run.train_and_kill(num_ranks=options.gpus, victim=options.gpus - 1, at_step=KILLED_AT[0], options=options)
    run.train(num_ranks=options.gpus, options=options)
    control = undisturbed.copy_up_to(2 * SAVE_EVERY, "control-dropout")
    give_fresh_random_states(checkpoint_dir(control.folder, 2 * SAVE_EVERY))
    control.train(num_ranks=options.gpus, options=options)
    differences, envelope, wrong = (
        loss_differences(found.folder, undisturbed.folder) for found in (run, again, control)
    )
    deterministic = same_run(again.folder, undisturbed.folder)
    bits = same_run(run.folder, undisturbed.folder)
    same_steps = have_same_steps(run.folder, undisturbed.folder)
    bound = 0.0 if deterministic else 2 * max(envelope)
    return {
        "ok": same_steps
        and killed["codes_ok"]
        and (bits if deterministic else max(differences) <= bound)
        and max(wrong) > bound,
        "bound": bound,
        "bit_for_bit": bits,
        "undisturbed_runs_are_equal": deterministic,
        "parts": [{"num_ranks": options.gpus, "first": 1, "last": NUM_STEPS, "largest": max(differences)}],
        "control": "resumed with other random numbers",
        "control_largest": max(wrong),
        "same_steps": same_steps,
        "differences": differences,
        "envelope": envelope,
        "control_differences": wrong,
        "kills": [killed],
    }


def pretend_later_step(run_dir: Path, *, at: int, step: int) -> None:
    """Put the checkpoint of one step in the place of a later one's, with a manifest that agrees."""
    folder = checkpoint_dir(run_dir, step)
    shutil.rmtree(folder)
    checkpoint_dir(run_dir, at).rename(folder)
    manifest = CheckpointManifest.load(folder)
    replace(manifest, progress=replace(manifest.progress, step=step)).write(folder)


def loss_differences(found: Path, expected: Path) -> list[float]:
    """Relative difference of the loss of each step."""
    lines = zip(metrics(found), metrics(expected), strict=True)
    return [abs(line["loss"] / truth["loss"] - 1) for line, truth in lines]


def have_same_steps(found: Path, expected: Path) -> bool:
    """Whether two runs took the same conversations, weights and learning rates in each step."""
    steps = [[[line[key] for key in SAME_STEPS] for line in metrics(run)] for run in (found, expected)]
    return steps[0] == steps[1]


def print_kills(results: list[dict[str, Any]]) -> None:
    """Largest loss difference by stretch of steps, exit codes, and the control."""
    for result in results:
        if "parts" not in result:
            continue
        print(f"{result['variant']}: relative loss differences to the undisturbed run, bound {result['bound']:.1e}")
        for part in result["parts"]:
            steps = f"steps {part['first']} to {part['last']}"
            print(f"    {steps:<16} on {part['num_ranks']} rank(s): largest {part['largest']:.1e}")
        print(f"    by step: {' '.join(f'{difference:.0e}' for difference in result['differences'])}")
        if "bit_for_bit" in result:
            equal = "equal" if result["undisturbed_runs_are_equal"] else f"differ by {max(result['envelope']):.1e}"
            print(f"    bit for bit: {result['bit_for_bit']}; two undisturbed runs: {equal}")
        for kill in result["kills"]:
            print(
                f"    rank {kill['victim']} of {kill['num_ranks']} killed after step {kill['step']}, resumed from "
                f"{kill['resumes_from']}; exit codes {kill['exit_codes']}"
            )
        print(f"    same conversations in every step: {result['same_steps']}")
        print(f"    control, {result['control']}: {result['control_largest']:.1e}")


# ---- pause ----


@contextmanager
def pause(options: Options) -> Iterator[list[Variant]]:
    """About 1.1 and 2.9 billion parameters, if the disk has room for two of ours and DeepSpeed's own."""
    sizes = [(256, 2, 2)] if options.cpu else [(2048, 18, 2), (4096, 12, 1)]
    with tempfile.TemporaryDirectory() as folder:
        first = sizes[0]
        yield [
            Variant(
                name=f"hidden size {hidden}, {layers} layers, fastest of {repeats}",
                run=functools.partial(checkpoint_pause, hidden, layers, repeats, Path(folder), options),
                work=(hidden**2 * layers * repeats) / (first[0] ** 2 * first[1] * first[2]),
            )
            for hidden, layers, repeats in sizes
        ]


def checkpoint_pause(hidden: int, layers: int, repeats: int, folder: Path, options: Options) -> dict[str, Any]:
    """Seconds of benchmarks/checkpoint_pause.py by way of saving."""
    command: list[str | Path] = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(options.gpus)]
    command += ["--master_port", str(free_port()), ROOT / "benchmarks" / "checkpoint_pause.py", "--folder"]
    command += [folder / "pause", "--hidden", str(hidden), "--layers", str(layers), "--repeats", str(repeats)]
    code, output = run_command(command, seconds=options.seconds_left)
    shutil.rmtree(folder / "pause", ignore_errors=True)
    size = re.search(r"([\d.]+) billion parameters, (\d+) rank\(s\), ZeRO-(\d), ([\d.]+) GB", output)
    times = re.findall(r"^ *(ours|plain|plain_synced): +([\d.]+) s, +([\d.]+) GB/s, ([\d.]+) x", output, re.M)
    if code != 0 or size is None:
        return {**ended(code, output), "ok": False}
    return {
        "ok": len(times) == 3,
        "failed": output[-4000:] if len(times) != 3 else None,
        "billion_parameters": float(size[1]),
        "num_ranks": int(size[2]),
        "zero_stage": int(size[3]),
        "gigabytes": float(size[4]),
        "save_seconds": {way: float(seconds) for way, seconds, _, _ in times},
    }


def print_pauses(results: list[dict[str, Any]]) -> None:
    """Seconds and gigabytes per second of each way to save."""
    for result in results:
        if not result["ok"]:
            continue
        size, seconds = result["gigabytes"], result["save_seconds"]
        print(
            f"{result['billion_parameters']:.2f} billion parameters, {size:.1f} GB on {result['num_ranks']} rank(s), "
            f"ZeRO-{result['zero_stage']}"
        )
        for way, each in seconds.items():
            speed = f"{size / each:6.2f} GB/s, {each / seconds['plain_synced']:.2f} x plain_synced" if each else ""
            print(f"    {way:<14}{each:7.2f} s {speed}")


PARTS: dict[str, tuple[Callable[[Options], Any], Callable[[list[dict[str, Any]]], None]]] = {
    "exact": (exact, print_exact),
    "speed": (speed, print_step_results),
    "adapters": (adapters, print_adapters),
    "scaling": (scaling, print_step_results),
    "kill": (kill, print_kills),
    "pause": (pause, print_pauses),
}


if __name__ == "__main__":
    sys.exit(main())
