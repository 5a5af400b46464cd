"""Faults put into real runs, and what became of them: kills, failpoints, flipped bits, bad rows; each beside its
control.

    python benchmarks/faults.py --kills 20 --json faults.json      # two CPU ranks, about 10 minutes
    python benchmarks/faults.py --kills 5 --num-ranks 1 --large    # on a GPU, with the kernels of a real run

Needs the extra `test`. Prints one table; exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.folder_faults import folder_taken_away, full_disk  # noqa: E402
from benchmarks.prepared_faults import prepared_faults  # noqa: E402
from ochat_train.checkpoint.state import list_checkpoints  # noqa: E402
from ochat_train.recipe.load import load_recipe  # noqa: E402
from ochat_train.recipe.preparation import prepare_recipe  # noqa: E402
from tests.support.failpoints import run_failpoints  # noqa: E402
from tests.support.faults import flip_bits, give_fresh_random_states, kill_and_resume, same_run  # noqa: E402
from tests.support.processes import finish, start_ranks, train_on_ranks  # noqa: E402
from tests.support.run_folder import metrics  # noqa: E402
from tests.support.small_recipe import TINY_MODEL, write_small_recipe  # noqa: E402
from tests.support.tokenizers import write_small_tokenizer  # noqa: E402

LARGE_MODEL = {
    **TINY_MODEL,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}


def main() -> int:
    """Run the parts that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--num-ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true", help="a model of 24 million parameters, without dropout")
    parser.add_argument("--only", choices=tuple(PARTS), action="append")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            part(Path(folder) / name, options) for name, part in PARTS.items() if name in (options.only or PARTS)
        ]
    for result in results:
        print(
            f"{result['fault']:<58} {result['held']:>4}/{result['of']:<4} {result['what']:<28} control: "
            f"{result['control']}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result["held"] == result["of"] for result in results) else 1


def small_recipe(folder: Path, options: Any, **changes: Any) -> Path:
    """A recipe of a run that lasts long enough to be disturbed, prepared; the model has dropout, unless it is large."""
    folder.mkdir()
    model = LARGE_MODEL if options.large else {**TINY_MODEL, "attention_dropout": 0.1}
    values = {
        "train__epochs": 60,
        "train__max_steps": 60,
        "checkpoint__save_every_steps": 6,
        "model__config": model,
        **changes,
    }
    path = write_small_recipe(folder, write_small_tokenizer(folder / "tokenizer"), **values)
    prepare_recipe(load_recipe(path), num_workers=1, progress=lambda rows: None)
    return path


def kills(folder: Path, options: Any) -> dict[str, Any]:
    """kill -9 of a random rank at a random time; the run resumes by itself. As many runs as it takes, of 60 steps
    each.
    """
    recipe = small_recipe(folder, options)
    train_on_ranks(["train", recipe], num_ranks=options.num_ranks)
    undisturbed, again = Path(shutil.move(folder / "run", folder / "undisturbed")), folder / "run"
    train_on_ranks(["train", recipe], num_ranks=options.num_ranks)
    envelope = loss_difference(
        again, undisturbed
    )  # of two runs that nobody disturbs: not 0 with kernels that add atomically
    held, rng = 0, random.Random(options.seed)
    largest = 0.0
    for left in range(options.kills, 0, -5):
        shutil.rmtree(folder / "run")
        number = min(5, left)
        print(f"{left} kills left", file=sys.stderr, flush=True)
        kill_and_resume(recipe, folder / "run", kills=number, rng=rng, num_ranks=options.num_ranks)
        difference = loss_difference(folder / "run", undisturbed)
        largest = max(largest, difference)
        held += number * (same_run(folder / "run", undisturbed) if envelope == 0.0 else difference <= 2 * envelope)
    what = "bit-equal" if envelope == 0.0 else f"{largest:.1e}, runs differ {envelope:.1e}"
    control = (
        "-"
        if options.large
        else f"without saved random states: {without_random_states(folder, undisturbed, recipe, options)}"
    )
    return row("kill -9 of a random rank, resumed", held, options.kills, what, control)


def without_random_states(folder: Path, undisturbed: Path, recipe: Path, options: Any) -> str:
    """What becomes of the run if it resumes from its last checkpoint but one with other random states."""
    shutil.rmtree(folder / "run")
    shutil.copytree(undisturbed, folder / "run")
    before, last = list_checkpoints(folder / "run")
    shutil.rmtree(last)
    give_fresh_random_states(before)
    train_on_ranks(["train", recipe], num_ranks=options.num_ranks)
    return "bit-equal" if same_run(folder / "run", undisturbed) else "other weights"


def loss_difference(found: Path, expected: Path) -> float:
    """Largest difference of the losses of two runs, step by step."""
    losses = [np.array([line["loss"] for line in metrics(run)]) for run in (found, expected)]
    return float(np.abs(losses[0] - losses[1]).max())


def failpoints(folder: Path, options: Any) -> dict[str, Any]:
    """The writer of checkpoints ends before, or half-way through, each of its changes to the disk."""
    outcome = run_failpoints(
        small_recipe(folder, options, train__max_steps=4, checkpoint__keep_last=1, checkpoint__save_every_steps=2)
    )
    control = f"{outcome['without_manifest']} left shards without a manifest"
    return row("end at a write, fsync, rename or deletion", outcome["recovered"], outcome["points"], "recover", control)


def flips(folder: Path, options: Any) -> dict[str, Any]:
    """One flipped bit in a checkpoint's files."""
    recipe = small_recipe(folder, options, train__max_steps=2)
    train_on_ranks(["train", recipe], num_ranks=options.num_ranks)
    outcome = flip_bits(list_checkpoints(folder / "run")[-1], options.flips, random.Random(options.seed))
    control = f"torch.load silent on {outcome['silent']} of {outcome['torch_files']}"
    return row("one flipped bit", outcome["found"], options.flips, "found", control)


def rows(folder: Path, options: Any) -> dict[str, Any]:
    """Wrong and unusual rows, one at a time: each dropped for its reason with its place, or kept whole."""
    from tests.support.bad_rows import ACCEPTED, BAD_ROWS, good, job_with
    from tests.support.data import make_job, prepare_rows, source

    folder.mkdir()
    tokenizer = write_small_tokenizer(folder / "tokenizer")
    held = 0
    for number, bad in enumerate(BAD_ROWS):
        place = folder / str(number)
        place.mkdir()
        job, _ = job_with(bad, place, tokenizer, "drop")
        ledger = prepare_rows(job)[0].ledger
        held += (ledger.read, ledger.kept, ledger.dropped) == (4, 3, {bad.reason: 1})
    for name, (line, _) in ACCEPTED.items():
        path = folder / f"{name}.jsonl"
        path.write_bytes(good("messages", 1) + b"\n" + line + b"\n")
        job = make_job(folder / f"{name}_prepared", [source(path)], tokenizer, max_length_tokens=2**21)
        ledger = prepare_rows(job)[0].ledger
        held += (ledger.read, ledger.kept, ledger.dropped) == (2, 2, {})
    return row("wrong and unusual rows", held, len(BAD_ROWS) + len(ACCEPTED), "classified", "none")


def latest(folder: Path, options: Any) -> dict[str, Any]:
    """Rank 1 dies before its shard is written: is the newest checkpoint that the pointer names whole?"""
    recipe = small_recipe(folder, options, train__max_steps=6, checkpoint__save_every_steps=2)
    jobs = [{"command": ["train", str(recipe)], "fault": {"rank": 1, "call": "write_all", "nth": 60, "do": "kill"}}]
    finish(start_ranks("tests.support.train_worker", json.dumps(jobs), num_ranks=2))
    held = int([path.name for path in list_checkpoints(folder / "run")] == ["step-00000002"])
    finish(start_ranks("tests.support.plain_deepspeed", str(recipe), str(folder / "plain"), num_ranks=2))
    pointer = (folder / "plain" / "latest").read_text(encoding="utf-8")
    shards = len(list((folder / "plain" / pointer).glob("*optim_states.pt")))
    return row(
        "a rank dies before its shard",
        held,
        1,
        "older one stays",
        f"DeepSpeed's `latest`: {pointer}, {shards} of 2 shards",
    )


def prepared(folder: Path, options: Any) -> dict[str, Any]:
    """Prepared data that has changed, in every way that prepared_faults.py knows."""
    found = prepared_faults(folder)
    return row("prepared data changed", found["held"], found["of"], "exit code 2, file named", found["control"])


def run_folder(folder: Path, options: Any) -> dict[str, Any]:
    """The run folder, or its lock, is taken away between two checkpoints."""
    recipe = small_recipe(folder, options, train__max_steps=8, checkpoint__save_every_steps=3)
    found = folder_taken_away(recipe, num_ranks=options.num_ranks, steps=(2, 5, 8))
    return row(
        "run folder or its lock taken away", found["held"], found["of"], "exit code 2, then equal", found["control"]
    )


def disk(folder: Path, options: Any) -> dict[str, Any]:
    """There is no room for the next line of metrics.jsonl, between two checkpoints."""
    recipe = small_recipe(folder, options, train__max_steps=8, checkpoint__save_every_steps=3)
    found = full_disk(recipe, num_ranks=options.num_ranks, steps=(1, 2, 4, 5, 7))
    return row("no room for a line of metrics", found["held"], found["of"], "exit code 2, then equal", found["control"])


def row(fault: str, held: int, of: int, what: str, control: str) -> dict[str, Any]:
    """One line of the table."""
    return {"fault": fault, "held": int(held), "of": of, "what": what, "control": control}


PARTS = {
    "kills": kills,
    "failpoints": failpoints,
    "flips": flips,
    "rows": rows,
    "latest": latest,
    "prepared": prepared,
    "run_folder": run_folder,
    "disk": disk,
}


if __name__ == "__main__":
    sys.exit(main())
