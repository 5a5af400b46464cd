"""Compare this tree with another commit as a user meets them: data, losses, weights, options, and old runs in new code.

    python benchmarks/compare_commits.py 9e0d356 --gsm8k gsm8k_two_class.openchat.jsonl
    python benchmarks/compare_commits.py HEAD~1 --quick            # 30 steps of the quickstart instead of all
    python benchmarks/compare_commits.py HEAD --quick --control    # trains this tree with another seed: must differ

The same public commands run with the code of both commits, each in its own folder, on two CPU ranks. Lines "old
run": this tree reads and exports the run that the other commit wrote, and resumes it from half of its steps.
A line is one comparison: how many values it covers and their digest on both sides. Its control is the same comparison
after the smallest change to a copy of this side's files (one bit of a weight or loss, the name of a key), which it must
find. What this tree adds (options, keys, files) is listed and is not a difference. Words for people are not compared.
Exit code 1 on any difference. Takes about 15 minutes on two cores, 5 with `--quick` and without `--gsm8k`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUICK_STEPS = 30
# Files of words and locks, and checkpoints, which exporting and resuming compare.
LEFT_OUT = ("README.md", "report.html", ".log", ".lock", ".ranks/", "checkpoints/")
# JSON files that are compared key by key; others byte by byte.
BY_KEY = ["manifest.json", "ochat.json", "recipe.json", "prepared.json", "base.json"]
BY_KEY += ["prepare.json", "plan.json", "check.json", "generate.json"]
KEYS_ALONE = "check.json"  # its values are sentences
NOT_COMPARED = ("mfu_basis", "versions.ochat-train", "files.README.md")  # keys of these files
TIMINGS = ("tokens_per_second", "mfu", "memory_gib", "data_wait_ratio", "seconds", "time")  # keys of .jsonl files

# Conversations with class and weight in the rows, of which long ones are truncated; and the same with other settings.
GSM8K_RECIPE = """
name: gsm8k
seed: 3
output_dir: runs/gsm8k
model:
  config: {model_type: mistral, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, head_dim: 16, max_position_embeddings: 512, sliding_window: null,
           tie_word_embeddings: false, attention_dropout: 0.0}
  tokenizer: data/quickstart/tokenizer
  template: openchat_3.5
  max_length_tokens: 512
data:
  prepared_dir: data/gsm8k/prepared
  sources: [{path: data/gsm8k.jsonl, format: openchat}]
  validation_ratio: 0.03
train: {epochs: 2, max_steps: 40, pack_length_tokens: 1024, tokens_per_step: 8192}
optimizer: {learning_rate: 3.0e-3, eps: 1.0e-8}
deepspeed: {zero_stage: 2}
validation: {sample_tokens: 16}
"""
REWARDS_SETTINGS = (
    "model.config.attention_dropout=0.1",
    "train.packs_per_micro_batch=2",
    "deepspeed.zero_stage=1",
    "data.condition_dropout=0.1",
    "data.beta=0.5",
    "data.classes={large: {condition: 175B, baseline: mean}, small: {condition: 6B}}",
    "data.sources=[{path: data/rewards.jsonl, format: messages, class_field: kind, reward_field: score}]",
)
# Every loss is NaN, as the square root of a negative number: which conversations are named, and how the run ends.
NAN_SETTINGS = ("output_dir=runs/nan", "model.config.rms_norm_eps=-1.0")

# What a case leaves behind, {} is its label: what it is -> where.
RESULTS = {f"{name}.jsonl": f"runs/{{}}/{name}.jsonl" for name in ("metrics", "validation", "samples")}
RESULTS |= {f"{name} --json": f"out/{{}}/{name}.json" for name in ("prepare", "plan", "generate")}
RESULTS |= {"check --json, keys": "out/{}/check.json", "inspect --json": "out/{}/inspect.jsonl"}
RESULTS |= {"export": "exports/{}/newest", "export --step": "exports/{}/half", "exit codes": "codes/{}.txt"}
FOLDERS = {"prepared dataset and tokenizer": "data/{}/prepared", "all files of the run": "runs/{}"}

Values = dict[str, str]  # name of a value -> its JSON text or sha256


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe to prepare, train and export. It writes data/NAME/prepared and runs/NAME."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Side:
    """The code of one commit and the folder that its commands run in. must_work: a failed command ends the script."""

    name: str
    code: Path
    folder: Path
    must_work: bool = False
    settings: tuple[str, ...] = ()

    def run(self, label: str, *command: str, fails: bool = False) -> str:
        """Run Python with this code; its output, which is also kept in out/LABEL. fails: the command is meant to fail.

        A label is GROUP/COMMAND; codes/GROUP.txt gets the exit code.
        """
        # As launch.sh sets it where there is no GPU; no network, and no lines of help broken inside an option.
        changes = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        changes |= {"PYTHONPATH": str(self.code), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        start, command = time.monotonic(), (sys.executable, *command)
        done = subprocess.run(command, cwd=self.folder, env=os.environ | changes, capture_output=True, text=True)
        write(self.folder / "out" / label, done.stdout)
        group, _, name = label.partition("/")
        write(self.folder / "codes" / f"{group}.txt", f"{name}: exit code {done.returncode}\n", mode="a")
        seconds = f"{time.monotonic() - start:.0f} s"
        print(f"{self.name}: {label}: {seconds}, exit code {done.returncode}", file=sys.stderr, flush=True)
        if (done.returncode != 0) != fails:
            print(f"{done.stdout[-2000:]}{done.stderr[-4000:]}", file=sys.stderr, flush=True)
            if self.must_work:
                sys.exit(f"{self.name}: {label} failed; there is nothing to compare with")
        return done.stdout

    def ochat(self, label: str, *arguments: str) -> str:
        """Run `ochat`, by the entry point in this code's pyproject.toml."""
        project = (self.code / "pyproject.toml").read_text(encoding="utf-8")
        found = re.search(r'^ochat = "([\w.]+):(\w+)"', project, re.MULTILINE)
        assert found is not None, f"{self.code}/pyproject.toml has no script `ochat`"
        code = f"import sys; from {found[1]} import {found[2]} as run; sys.exit(run())"
        return self.run(label, "-c", code, *arguments)

    def train(self, label: str, recipe: str, settings: Sequence[str], *, fails: bool = False) -> None:
        """Train on two CPU ranks, as launch.sh does."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        launcher = ["deepspeed.launcher.runner", "--log_level", "warning", "--num_gpus", "2", "--master_port", port]
        self.run(label, "-m", *launcher, "--module", "ochat_train", recipe, *with_set(settings), fails=fails)


def with_set(settings: Sequence[str]) -> list[str]:
    """Settings as arguments."""
    return [part for setting in settings for part in ("--set", setting)]


def write(path: Path, text: str, *, mode: str = "w") -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, encoding="utf-8") as file:
        file.write(text)


# ---- what runs ----


def set_up(side: Side, cases: Sequence[Case], gsm8k: Path | None) -> None:
    """Recipes and rows; and make sure that commands of this side import its own code."""
    side.folder.mkdir(parents=True)
    for package in ("ochat_train", "data_pipeline"):
        place = side.run("setup/where", "-c", f"import {package}; print({package}.__file__, end='')")
        assert Path(place).parents[1] == side.code, f"{side.name} imports {place}"
    side.run("setup/make", "-m", "ochat_train.quickstart.make", "data/quickstart")
    for case in cases:
        write(side.folder / f"{case.name}.yaml", case.recipe)
    if gsm8k is not None:
        shutil.copyfile(gsm8k, side.folder / "data" / "gsm8k.jsonl")
        rows = [json.loads(line) for line in gsm8k.read_text(encoding="utf-8").splitlines()]
        write(side.folder / "data" / "rewards.jsonl", "".join(json.dumps(with_reward(row)) + "\n" for row in rows))


def with_reward(row: dict[str, Any]) -> dict[str, Any]:
    """An OpenChat row in format `messages`, with its class and reward as fields."""
    messages = [{"role": item["role"], "content": item["content"]} for item in row["items"]]
    kind = "large" if row["condition"].startswith("175B") else "small"
    return {"messages": messages, "kind": kind, "score": float(row["meta"]["is_correct"])}


def look(side: Side, case: Case, settings: Sequence[str], label: str, *, half: int) -> None:
    """The commands that read a recipe, its prepared dataset and its run; exports go to exports/LABEL."""
    recipe, prepared, run = f"{case.name}.yaml", f"data/{case.name}/prepared", f"runs/{case.name}"
    side.ochat(f"{label}/plan.json", "plan", recipe, *with_set(settings), "--json")
    side.ochat(f"{label}/check.json", "check", recipe, *with_set(settings), "--json")
    side.ochat(f"{label}/inspect.jsonl", "inspect", prepared, "--split", "conditions", "--rows", "0:40", "--json")
    side.ochat(f"{label}/inspect.log", "inspect", prepared, "--rows", "0:3", "--tokens")
    side.ochat(f"{label}/report.log", "report", run)
    side.ochat(f"{label}/export.log", "export", run, "--out", f"exports/{label}/newest")
    side.ochat(f"{label}/export_half.log", "export", run, "--step", str(half), "--out", f"exports/{label}/half")
    question = ("--prompt", "Is 47 even or odd?", "--max-new-tokens", "16")
    side.ochat(f"{label}/generate.json", "generate", f"exports/{label}/newest", *question, "--json")


def resume(side: Side, case: Case, settings: Sequence[str], label: str, *, half: int) -> None:
    """Resume a copy of the folder's run from its checkpoint at half of the steps, in runs/LABEL; export and time it."""
    run = side.folder / "runs" / case.name
    again = shutil.copytree(run, side.folder / "runs" / label)
    for checkpoint in (again / "checkpoints").glob("step-*"):
        if checkpoint.name != f"step-{half:08d}":
            shutil.rmtree(checkpoint)
    write(again / "checkpoints" / "LATEST", f"step-{half:08d}\n")
    for file in again.glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        write(file, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= half))
    side.train(f"{label}/train.log", f"{case.name}.yaml", [*settings, f"output_dir=runs/{label}"])
    side.ochat(f"{label}/export.log", "export", f"runs/{label}", "--out", f"exports/{label}/resumed")
    for folder in (run, again):  # only a run that was resumed, and not started again, has the older one's timings
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        speeds = "\n".join(str(row["tokens_per_second"]) for row in rows[:half])
        write(side.folder / "speeds" / f"{folder.name}.txt", speeds)


def write_surface(side: Side, verbs: Sequence[str]) -> None:
    """Options of every verb and keys of recipes, into surface/."""
    for verb in verbs:
        options = re.findall(r"--[a-z_][a-z_-]*|\{[a-z,]+\}", side.ochat(f"help/{verb}.log", verb, "--help"))
        write(side.folder / "surface" / f"{verb}.txt", "\n".join(sorted(set(options))))
    schema = json.loads(side.ochat("help/schema.json", "schema") or "{}")
    write(side.folder / "surface" / "recipe.json", json.dumps(resolved(schema, schema.get("$defs", {}))))


def resolved(node: Any, definitions: dict[str, Any]) -> Any:
    """A part of a JSON schema without references and words for people; of choices, the order does not count."""
    if isinstance(node, list):
        entries = enumerate(resolved(entry, definitions) for entry in node)
        return {str(number) if isinstance(entry, dict) else json.dumps(entry): entry for number, entry in entries}
    if not isinstance(node, dict):
        return node
    node = node | definitions.get(str(node.get("$ref")).rpartition("/")[2], {})
    words = ("$ref", "$defs", "title", "description")
    return {key: resolved(inner, definitions) for key, inner in node.items() if key not in words}


# ---- comparing ----


def values_of(path: Path) -> Values:
    """Everything that is compared in a file, or in the files of a folder; nothing where it is missing."""
    files = [(f"{file.relative_to(path)} " if file != path else "", file_values(file)) for file in compared_files(path)]
    return {name + key: value for name, values in files for key, value in values.items()}


def compared_files(path: Path) -> list[Path]:
    """A file, or those below a folder that are not left out."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in files if not any(part in str(file.relative_to(path)) for part in LEFT_OUT)]


def file_values(file: Path) -> Values:
    """Values of one file: tensors, lines, keys of documents, or its sha256."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        tensors = {name: entry for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
        parts = {name: content[slice(*(start + at for at in entry["data_offsets"]))] for name, entry in tensors.items()}
        values = {name: f"{t['dtype']} {t['shape']} {sha256(parts[name])}" for name, t in tensors.items()}
        return {**values, "number of tensors": str(len(tensors))}
    if file.suffix == ".txt":
        return {line: "" for line in content.decode("utf-8").splitlines()}
    if file.suffix == ".jsonl":
        rows = [dict(leaves(json.loads(line))) for line in content.split(b"\n") if line]
        values = {f"{n} {key}": text for n, row in enumerate(rows) for key, text in row.items() if key not in TIMINGS}
        return {**values, "number of rows": str(len(rows))}
    if file.name not in BY_KEY:
        return {"sha256": sha256(content)}
    values = {key: text for key, text in leaves(json.loads(content or "{}")) if key not in NOT_COMPARED}
    return {re.sub(r"\.\d+", ".*", key): "" for key in values} if file.name == KEYS_ALONE else values


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Key path and JSON text of every value inside. The texts of two floats are equal where all their bits are."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, list):
        yield f"{place} length", str(len(value))  # so that a longer list is a difference
    for key, inner in inside:
        yield from leaves(inner, f"{place}.{key}" if place else str(key))
    if not inside:
        yield place, json.dumps(value)


def sha256(content: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def differing(old: Values, new: Values) -> list[str]:
    """Names of values that have changed or are gone."""
    return [name for name, value in old.items() if new.get(name) != value]


def spoiled(path: Path) -> Values:
    """Values of a copy after the smallest change to one of its files: weights, where there are any, or the largest."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
        file = max(compared_files(copy), key=lambda file: (file.suffix == ".safetensors", file.stat().st_size))
        content = file.read_bytes()
        if file.suffix == ".jsonl":
            found = re.search(rb"\d+\.\d+(e-?\d+)?", content) or re.search(rb"\d", content)
            assert found is not None, f"{file} holds no number"
            number = float(found[0])
            changed = repr(math.nextafter(number, math.inf)) if b"." in found[0] else str(9 - int(number))
            content = content[: found.start()] + changed.encode() + content[found.end() :]
        elif file.name in BY_KEY:
            content = content.replace(b'"', b'"another_', 1)
        else:
            at = max(0, len(content) - 4)  # of weights, the lowest bit of the last one
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        file.write_bytes(content)
        return values_of(copy)


class Table:
    """Compares, prints a line each, and counts."""

    def __init__(self, commit: str) -> None:
        self.num_lines = self.num_bad = 0
        self._print("", commit, "this tree", "", "control")

    def compare(self, what: str, old: Path, new: Path) -> None:
        """Compare a file or folder of both sides."""
        before, after = values_of(old), values_of(new)
        assert before, f"{old}: nothing to compare with"
        changed, added = differing(before, after), [name for name in after if name not in before]
        is_blind = not changed and not differing(before, spoiled(new))
        control = "-" if changed else "NOT FOUND" if is_blind else "found"
        self._print(what, digest(before), digest(after), "DIFFERENT" if changed else "same", control)
        for mark, names in (("differs", changed), ("new", added)):
            if names:
                print(f"    {mark}: {len(names)}: {'; '.join(names[:6])}{'; ...' if names[6:] else ''}", flush=True)
        self.num_lines += 1
        self.num_bad += bool(changed) or is_blind

    @staticmethod
    def _print(what: str, old: str, new: str, result: str, control: str) -> None:
        print(f"{what:<50} {old:<16} {new:<16} {result:<9}  {control}", flush=True)


def digest(values: Values) -> str:
    """Number of values and the beginning of their sha256."""
    return f"{len(values):,} {sha256(json.dumps(values, sort_keys=True).encode())[:8]}" if values else "missing"


# ---- the whole ----


def try_case(case: Case, old: Side, new: Side, reader: Side, table: Table) -> None:
    """Run a case on both sides; then this tree (`reader`) works on what the other commit wrote."""
    name, recipe, again = case.name, f"{case.name}.yaml", f"{case.name}.again"
    old.ochat(f"{name}.steps/prepare.log", "prepare", recipe, *with_set(case.settings))
    plan = json.loads(old.ochat(f"{name}.steps/plan.json", "plan", recipe, *with_set(case.settings), "--json"))
    half = math.ceil(plan["num_steps"] / 2)
    settings = [*case.settings, f"checkpoint.save_every_steps={half}", "checkpoint.keep_last=2"]
    for side in (old, new):
        its_settings = [*settings, *side.settings]
        side.ochat(f"{name}/prepare.json", "prepare", recipe, *with_set(its_settings), "--json")
        side.train(f"{name}/train.log", recipe, its_settings)
        look(side, case, its_settings, name, half=half)
    for what, path in (FOLDERS | RESULTS).items():
        table.compare(f"{name}: {what}", *(side.folder / path.format(name) for side in (old, new)))
    reader.ochat(f"{again}/prepare.json", "prepare", recipe, *with_set(settings), "--json")
    resume(reader, case, settings, again, half=half)
    look(reader, case, settings, again, half=half)
    results = {what: (path.format(name), path.format(again)) for what, path in RESULTS.items()}
    results["timings of the steps before"] = (f"speeds/{name}.txt", f"speeds/{again}.txt")
    results["export, resumed"] = (f"exports/{name}/newest", f"exports/{again}/resumed")
    for what, paths in results.items():
        table.compare(f"{name}, old run: {what}", *(old.folder / path for path in paths))


def try_nan(old: Side, new: Side, table: Table) -> None:
    """The quickstart with a model whose every loss is NaN."""
    for side in (old, new):
        side.train("nan/train.log", "quickstart.yaml", (*NAN_SETTINGS, *side.settings), fails=True)
    for path in ("runs/nan/anomalies.jsonl", "runs/nan/metrics.jsonl", "codes/nan.txt"):
        what = "exit code" if path.endswith(".txt") else Path(path).name
        table.compare(f"losses that are NaN: {what}", old.folder / path, new.folder / path)


@contextlib.contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A git worktree of a commit, until the block ends."""
    git = ("git", "-C", str(ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> int:
    """Run everything with both commits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", metavar="REV", help="commit to compare with")
    parser.add_argument("--work", type=Path, help="new folder for all that is written; default: a temporary one")
    parser.add_argument("--gsm8k", type=Path, metavar="FILE", help="gsm8k_two_class.openchat.jsonl")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of the quickstart")
    parser.add_argument("--control", action="store_true", help="another seed for this tree: it must differ")
    options = parser.parse_args()
    if options.work is not None and options.work.exists():
        parser.error(f"--work {options.work}: already exists; name a new folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the worktree goes
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        work = (options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        code = stack.enter_context(checked_out(options.commit, work / "code"))
        old = Side(name=options.commit, code=code, folder=work / "old", must_work=True)
        new = Side(name="this tree", code=ROOT, folder=work / "new", settings=("seed=1",) if options.control else ())
        reader = Side(name="this tree, old run", code=ROOT, folder=old.folder)
        quickstart = (code / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
        quick = (f"train.max_steps={QUICK_STEPS}",) if options.quick else ()
        cases = [Case(name="quickstart", recipe=quickstart, settings=quick)]
        if options.gsm8k is not None:
            rewards = GSM8K_RECIPE.replace("gsm8k", "rewards")
            cases.append(Case(name="gsm8k", recipe=GSM8K_RECIPE))
            cases.append(Case(name="rewards", recipe=rewards, settings=REWARDS_SETTINGS))
        table = Table(options.commit)
        for side in (old, new):
            set_up(side, cases, options.gsm8k)
        table.compare("quickstart.make: raw data and tokenizer", old.folder / "data", new.folder / "data")
        verbs = re.findall(r"^    ([a-z]+) ", old.ochat("help/ochat.log", "--help"), re.MULTILINE)
        for side in (old, new):
            write_surface(side, verbs)
        table.compare(f"options of {len(verbs)} verbs, keys of recipes", old.folder / "surface", new.folder / "surface")
        for case in cases:
            try_case(case, old, new, reader, table)
        try_nan(old, new, table)
    if options.gsm8k is None:
        print("gsm8k_two_class is left out; --gsm8k names its file")
    minutes = (time.monotonic() - start) / 60
    print(f"{table.num_lines} comparisons, {table.num_bad} not the same; {minutes:.1f} minutes")
    return 1 if table.num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
