"""A run folder that is taken away, and a disk that is full between two checkpoints: one message, exit code 2, nothing
torn, and a run that resumes as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.preparation import prepare_recipe
from ochat_train.runs.folder import require_run_folder
from ochat_train.runs.lines import read_lines
from ochat_train.system.json_lines import append_row
from tests.support.faults import same_run
from tests.support.processes import run_jobs
from tests.support.small_recipe import RecipeFactory

SHORT: dict[str, Any] = {"train__epochs": 4, "train__max_steps": 4, "checkpoint__save_every_steps": 2}
WHOLE = {"recipe.json", "metrics.jsonl", "checkpoints", "prepared.json", "tokenizer", "model_config"}


def exits_of(output: str) -> list[str]:
    """What was printed by each of the commands, its exit code at the end."""
    return re.split(r"(?<=exit code )(\d+)\n", output)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Jobs of one pair of ranks, filled by the first test: name -> (exit codes, output of rank 0)."""
    return {}


def jobs_of(folder: Path, make_recipe: RecipeFactory) -> dict[str, dict[str, Any]]:
    """A run for each fault, which happens on rank 0 in step 3, after the checkpoint of step 2."""
    made = make_recipe(output_dir="OUTPUT_DIR", **SHORT)
    prepare_recipe(load_recipe(made), num_workers=1, progress=lambda rows: None)

    def job(name: str, **fault: Any) -> dict[str, Any]:
        path = folder / f"{name}.yaml"
        path.write_text(made.read_text().replace("OUTPUT_DIR", str(folder / name)))
        return {"command": ["train", path], "fault": {"rank": 0, "step": 3, **fault} if fault else {}}

    return {
        "undisturbed": job("undisturbed"),
        "removed": job("removed", do="remove", path=str(folder / "removed")),
        "full": job("full", do="limit_lines", file=str(folder / "full" / "metrics.jsonl"), times=2),
        "freed": job("full"),
    }


@pytest.fixture
def runs(outcome: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, make_recipe: RecipeFactory) -> Path:
    """The folder of all runs; they are made once, by two ranks."""
    if not outcome:
        folder = tmp_path_factory.mktemp("runs")
        jobs = jobs_of(folder, make_recipe)
        outputs, _ = run_jobs(*jobs.values())
        parts = [exits_of(output) for output in outputs]
        for number, name in enumerate(jobs):
            codes = [part[2 * number + 1] for part in parts]
            outcome[name] = (codes, parts[0][2 * number])
        outcome["folder"] = folder
    found: Path = outcome["folder"]
    return found


def test_a_run_that_nothing_happens_to_is_whole(runs: Path, outcome: dict[str, Any]) -> None:
    """The control of all tests below."""
    codes, output = outcome["undisturbed"]
    assert codes == ["0", "0"], output
    assert {path.name for path in (runs / "undisturbed").iterdir()} > WHOLE


def test_a_run_folder_that_is_deleted_ends_the_run_and_is_not_made_again(runs: Path, outcome: dict[str, Any]) -> None:
    codes, output = outcome["removed"]
    assert codes == ["2", "2"], output
    message = f"{runs / 'removed'}: the run folder was changed while the run trained: it is no longer there."
    assert output.count(message) == 1
    assert "Traceback" not in output
    assert not (runs / "removed").exists()


def test_a_run_never_succeeds_without_its_recipe(runs: Path, outcome: dict[str, Any]) -> None:
    require_run_folder(runs / "undisturbed")
    (runs / "undisturbed" / "recipe.json").rename(runs / "recipe.json")
    with pytest.raises(UserError, match=r"undisturbed: recipe\.json was removed while the run trained; start the run"):
        require_run_folder(runs / "undisturbed")
    (runs / "recipe.json").rename(runs / "undisturbed" / "recipe.json")


def test_a_full_disk_between_checkpoints_ends_all_ranks_and_the_run_resumes_as_if_it_had_not_been(
    runs: Path, outcome: dict[str, Any]
) -> None:
    codes, output = outcome["full"]
    assert codes == ["2", "2"], output
    file = re.escape(str(runs / "full" / "metrics.jsonl"))
    message = rf"{file}: cannot be written: File too large \([\d,]+ bytes are free there\); make room there, and start"
    assert len(re.findall(message, output)) == 1, output
    assert "Traceback" not in output
    codes, output = outcome["freed"]
    assert codes == ["0", "0"], output
    assert re.search(r"resumes from \S+step-00000002", output)
    assert same_run(runs / "full", runs / "undisturbed")


# ---- lines ----


@pytest.fixture
def room() -> Any:
    """Sets how large a file may become, until the end of the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_is_in_its_file_whole_or_not_at_all(tmp_path: Path, room: Any) -> None:
    path, plain = tmp_path / "lines.jsonl", tmp_path / "plain.jsonl"
    row = {"step": 1, "text": "\u2028 ü" * 10}
    append_row(path, row)
    plain.write_bytes(path.read_bytes())
    room(path.stat().st_size + 40)
    with pytest.raises(OSError, match="File too large"):
        append_row(path, row)
    plainly_append(plain, path.read_bytes())
    assert read_lines(path) == [row]
    assert path.read_bytes().endswith(b"}\n")
    assert not plain.read_bytes().endswith(b"}\n"), "control: a plain write leaves a part of a line"


def plainly_append(path: Path, line: bytes) -> None:
    """Write as much of a line as there is room for."""
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while line:
            line = line[file.write(line) :]


@pytest.mark.parametrize("torn", [b"{", b'{"step": 2, "te', b"x" * 200_000])
def test_a_torn_last_line_does_not_swallow_the_next_one(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "anomalies.jsonl"
    append_row(path, {"step": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    append_row(path, {"step": 3})
    assert read_lines(path) == [{"step": 1}, {"step": 3}]
    path.write_bytes(torn)
    append_row(path, {"step": 3})
    assert path.read_bytes() == b'{"step": 3}\n'
    path.write_bytes(whole + torn)
    with path.open("ab") as file:
        file.write(json.dumps({"step": 3}).encode() + b"\n")
    assert read_lines(path) == [{"step": 1}], "control: a plain append is lost with the torn line"
