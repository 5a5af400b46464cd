"""Trackers get every number of the run folder's files, once; whatever they do, training is the same."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import pkgutil
import re
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest

from data_pipeline.errors import UserError
from ochat_train import tracking
from ochat_train.evaluation.results import Validation
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.sections.tracking import TrackingSettings
from ochat_train.runs.metrics import StepMetrics
from ochat_train.tracking import choice
from ochat_train.tracking.delivery import Trackers
from ochat_train.tracking.kind import TrackerKind
from ochat_train.tracking.scalars import step_scalars, validation_scalars
from ochat_train.tracking.tensorboard_tracker import TENSORBOARD
from ochat_train.tracking.wandb_tracker import WandbTracker
from tests.support import wandb_file
from tests.support.fake_trackers import KINDS, FakeTracker, fail, hang
from tests.support.names import HARD_NAMES
from tests.support.processes import PYTHONPATH, ROOT, run_jobs
from tests.support.recipe_texts import changed, problem_of, write
from tests.support.results import class_means, run_facts, step_metrics
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory
from tests.support.waiting import wait_for

FILES = tuple(pkgutil.iter_modules(tracking.__path__))
FACTS = run_facts(Path("runs/x"))


def deliver(tracker: FakeTracker, *, num_steps: int) -> str:
    """Log steps 1 to num_steps; what was said."""
    said: list[str] = []
    trackers = Trackers([tracker], FACTS, report=said.append)
    for step in range(1, num_steps + 1):
        trackers.log_step(step_metrics(step))
    trackers.close(done=True, most_seconds=60.0)
    trackers.close(done=False, most_seconds=60.0)  # the second one is nothing
    return "\n".join(said)


# ---- the thread of a tracker ----


def test_a_tracker_gets_everything_in_order_and_is_closed() -> None:
    tracker = FakeTracker()
    assert deliver(tracker, num_steps=500) == "fake: started"
    assert (tracker.steps, tracker.closed, tracker.is_abandoned) == (list(range(1, 501)), True, False)


@pytest.mark.parametrize(("at_start", "at_log"), [(fail, int), (int, fail)], ids=["at start", "at log"])
def test_a_tracker_that_raises_is_named_once_and_what_it_lacks_is_counted(
    at_start: Callable[[], Any], at_log: Callable[[], Any]
) -> None:
    tracker = FakeTracker(at_start=at_start, at_log=at_log)
    said = deliver(tracker, num_steps=7)
    assert said.count("fake: SystemExit: no such project; it is switched off, training continues") == 1
    rest = (
        "7 of 7 steps and validations were not delivered; runs/x has everything in metrics.jsonl, validation.jsonl and"
    )
    assert said.count(rest) == 1
    assert (tracker.steps, tracker.closed, tracker.is_abandoned) == ([], None, True)


@pytest.mark.parametrize(("at_start", "at_log"), [(hang, int), (int, hang)], ids=["at start", "at log"])
def test_a_tracker_that_hangs_is_dropped(at_start: Callable[[], Any], at_log: Callable[[], Any]) -> None:
    healthy, said = FakeTracker(name="healthy"), list[str]()

    def wait_for_healthy() -> None:
        for thread in threading.enumerate():
            if thread.name == "tracker healthy":
                thread.join()

    tracker = FakeTracker(at_start=at_start, at_log=at_log, at_abandon=wait_for_healthy)
    trackers = Trackers([tracker, healthy], FACTS, report=said.append)
    for step in range(1, 8):
        trackers.log_step(step_metrics(step))
    trackers.close(done=False, most_seconds=0.0)  # the first one takes all of it; the other gets no time
    text = "fake: does not answer and was dropped; 7 of 7 steps and validations were not delivered; runs/x has"
    assert [line for line in said if line.startswith(text)] == said[-1:]
    assert tracker.is_abandoned
    assert (len(healthy.steps), healthy.closed, healthy.is_abandoned) == (7, False, False)


def test_a_full_queue_loses_nothing_unreported() -> None:
    started, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        may_go_on.wait()

    tracker, said = FakeTracker(at_log=wait), list[str]()
    trackers = Trackers([tracker], FACTS, report=said.append, capacity=4)
    trackers.log_step(step_metrics(1))
    started.wait()  # the first one is being logged, so four may wait
    for step in range(2, 12):
        trackers.log_step(step_metrics(step))
    may_go_on.set()
    trackers.close(done=True, most_seconds=60.0)
    assert tracker.steps == [1, 2, 3, 4, 5]
    assert said[1] == "fake: too slow, 4 steps and validations are waiting; training continues without it"
    assert said[2].startswith("fake: 6 of 11 steps and validations were not delivered; runs/x has everything")
    assert len(said) == 3


# ---- in a training ----


def test_losses_are_the_same_to_the_bit_whatever_a_tracker_does(make_recipe: RecipeFactory, tmp_path: Path) -> None:
    recipe = make_recipe(train__max_steps=4, data__validation_ratio=0.1, validation__sample_tokens=4)
    runs: dict[str, dict[str, Any]] = {"none": {}, **{kind: {"fault": {"tracker": kind}} for kind in KINDS}}
    commands = {kind: ["train", str(recipe), "--set", f"output_dir={tmp_path / kind}"] for kind in runs}
    prepare = {"command": ["prepare", str(recipe), "--workers", "1"]}
    outputs, codes = run_jobs(prepare, *({"command": commands[kind], **job} for kind, job in runs.items()), num_ranks=1)
    assert codes == [0], outputs[0][-4000:]
    assert outputs[0].count("exit code 0") == 1 + len(runs)
    assert outputs[0].count("was dropped") == 2
    assert outputs[0].count("switched off") == 2

    def same(run: str) -> list[Any]:
        rows = [{**row, "tokens_per_second": 0, "data_wait_ratio": 0, "time": ""} for row in metrics(tmp_path / run)]
        return rows + [(tmp_path / run / name).read_text() for name in ("samples.jsonl",)]

    assert len(same("none")) == 5
    assert all(same(run) == same("none") for run in runs)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_dir: Path) -> dict[str, Any]:
    """A run of 8 steps that failed in step 6 after a checkpoint of step 4, and was resumed; with both real trackers."""
    from tests.support.small_recipe import write_small_recipe

    folder = tmp_path_factory.mktemp("tracked")
    tracking = {
        "wandb": "offline",
        "tensorboard": True,
        "wandb_project": "p",
        "wandb_group": "g",
        "wandb_tags": ["a", "b"],
    }
    recipe = write_small_recipe(
        folder,
        small_tokenizer_dir,
        train__max_steps=8,
        data__validation_ratio=0.1,
        tracking=tracking,
        validation__sample_tokens=4,
        checkpoint__save_every_steps=4,
    )
    command = {"command": ["train", str(recipe)]}
    fault = {"fault": {"step": 6, "do": "fail"}}
    outputs, codes = run_jobs(
        {"command": ["prepare", str(recipe), "--workers", "1"]}, {**command, **fault}, num_ranks=1
    )
    assert codes == [1], outputs[0][-4000:]
    before = metrics(folder / "run")
    outputs, codes = run_jobs(command, num_ranks=1)
    assert codes == [0], outputs[0][-4000:]
    assert "resumes from" in outputs[0]
    return {"recipe": recipe, "run": folder / "run", "before": before, "output": outputs[0]}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected(steps: list[dict[str, Any]], run: Path) -> dict[int, dict[str, float]]:
    """Every number of the run's files by step and name."""
    found = {row["step"]: step_scalars(StepMetrics.from_json(row)) for row in steps}
    for row in lines(run / "validation.jsonl"):
        found[row["step"]] |= validation_scalars(Validation.from_json(row))
    return found


def test_names_and_numbers_of_scalars() -> None:
    scalars = step_scalars(step_metrics(3, loss=1.5, classes={"a b": class_means(loss=None, tokens=7)}))
    whole = ("loss", "accuracy", "tokens", "supervised_tokens", "effective_tokens", "weight", "epoch", "learning_rate")
    more = ("grad_norm", "nonfinite_steps", "tokens_per_second", "data_wait_ratio")  # the others are null
    of_class = ("accuracy", "tokens", "supervised_tokens", "weight_share", "effective_tokens")
    names = {f"train/{name}" for name in whole + more} | {f"classes/a b/{name}" for name in of_class}
    assert scalars.keys() == names
    assert (scalars["train/loss"], scalars["classes/a b/tokens"]) == (1.5, 7.0)
    scores = {"loss": None, "nll": 2.0, "accuracy": None, "conversations": 2, "supervised_tokens": 9}
    learnt = {"condition": "", "nearest": "B", "margin": 0.5, "low": None, "high": None, "learnt": True}
    verdict = {"smallest": 0.25, "verdict": "yes"}
    line = {
        "step": 3,
        "loss": 1.5,
        "classes": {"a": scores},
        "conditions": ["", "B"],
        "matrix": {"a": [2.0, None]},
        "learnt": {"a": {**learnt, "conversations": 2, **verdict}},
        "seconds": 0.25,
    }
    for word, number in {"weak": 0.5, "no": 0.0, None: None}.items():
        row = {**line, "learnt": {"a": {**learnt, "conversations": 2, "smallest": 0.25, "verdict": word}}}
        assert validation_scalars(Validation.from_json(row)).get("validation/learnt/a/learnt") == number
    assert validation_scalars(Validation.from_json(line)) == {
        "validation/loss": 1.5,
        "validation/classes/a/nll": 2.0,
        "validation/classes/a/conversations": 2.0,
        "validation/classes/a/supervised_tokens": 9.0,
        "validation/matrix/a/no condition": 2.0,
        "validation/learnt/a/margin": 0.5,
        "validation/learnt/a/conversations": 2.0,
        "validation/learnt/a/learnt": 1.0,
        "validation/learnt/a/smallest": 0.25,
        "validation/seconds": 0.25,
    }


def test_no_condition_and_a_condition_of_that_name_are_two_curves() -> None:
    line = {
        "step": 3,
        "loss": None,
        "classes": {},
        "learnt": {},
        "conditions": ["no condition", "", "no condition 2"],
        "matrix": {"a": [1, 2, 3]},
        "seconds": None,
    }
    assert validation_scalars(Validation.from_json(line)) == {
        "validation/matrix/a/no condition": 1.0,
        "validation/matrix/a/no condition 3": 2.0,
        "validation/matrix/a/no condition 2": 3.0,
    }


def test_tensorboard_has_every_number_of_the_files_once(tracked: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    accumulator = EventAccumulator(str(tracked["run"] / "tensorboard"), size_guidance={"tensors": 0})
    accumulator.Reload()
    found: dict[int, dict[str, float]] = {}
    texts: dict[str, str] = {}
    for tag in accumulator.Tags()["tensors"]:
        plugin = accumulator.SummaryMetadata(tag).plugin_data.plugin_name
        events = accumulator.Tensors(tag)
        if plugin == "scalars":
            assert len({event.step for event in events}) == len(events), tag
            for event in events:
                found.setdefault(event.step, {})[tag] = float(make_ndarray(event.tensor_proto))
        elif plugin == "text":
            texts[tag.removesuffix("/text_summary")] = make_ndarray(events[-1].tensor_proto)[0].decode()
    as_float32 = {
        step: {name: float(np.float32(value)) for name, value in values.items()}
        for step, values in expected(metrics(tracked["run"]), tracked["run"]).items()
    }
    assert found == as_float32
    assert "GPT4 Correct" in texts["run/classes"]
    assert "tokens_per_step: 1024" in texts["run/recipe"]
    assert '"read": 60' in texts["run/ledger"]
    assert "torch" in texts["run/versions"]
    sample = lines(tracked["run"] / "samples.jsonl")[-1]
    assert sample["prompt"].split("\n")[0] in texts["samples/3"]
    assert texts["validation/condition matrix"].count("\n") == 3
    assert [event.step for event in accumulator.Tensors("validation/condition matrix")] == [4, 8]


def test_wandb_has_every_number_of_the_files_once(tracked: dict[str, Any]) -> None:
    run = tracked["run"]
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    rows = [row for file in files for row in wandb_file.history(file)]
    steps = {row["step"]: row for row in [*metrics(run), *tracked["before"]]}  # step 5 as it was logged first
    want = expected(list(steps.values()), run)
    assert Counter(row["_step"] for row in rows) == Counter(want.keys())
    for row in rows:
        numbers = {key: value for key, value in row.items() if "/" in key and not key.startswith("condition_matrix")}
        assert numbers == pytest.approx(want[row["_step"]], rel=1e-15)
        media = {"samples", "condition_matrix/table", "condition_matrix/picture"}
        assert media & {key.split(".")[0] for key in row} == (media if row["_step"] in (4, 8) else set())
    records = [wandb_file.run_record(file) for file in files]
    assert records[0].run_id == records[1].run_id == json.loads((run / "wandb.json").read_text())["id"]
    assert [(r.project, r.run_group, list(r.tags), r.display_name) for r in records] == [
        ("p", "g", ["a", "b"], "small")
    ] * 2
    config = wandb_file.config(files[0])
    recipe = load_recipe(tracked["recipe"]).model_dump(mode="json", by_alias=True)
    assert {key: config[key] for key in ("data", "optimizer", "seed")} == {
        key: recipe[key] for key in ("data", "optimizer", "seed")
    }
    assert config["ledger"]["read"] == 60
    assert {name: row["condition"] for name, row in config["classes"].items()} == {
        "expert": "GPT4 Correct",
        "suboptimal": "GPT3",
    }
    assert config["hardware"]["ranks"] == 1
    assert {"torch", "ochat-train", "python"} <= set(config["versions"])


def test_wandb_tables_hold_samples_and_matrix(tracked: dict[str, Any]) -> None:
    run = tracked["run"]
    tables = [json.loads(path.read_text()) for path in run.glob("wandb/*/files/media/table/**/*.json")]
    data = {tuple(table["columns"]): table["data"] for table in tables if table["data"][0][0] in (8, "expert")}
    answers = [
        [row["step"], row["prompt"], answer["condition"], answer["text"], answer["finished"]]
        for row in lines(run / "samples.jsonl")
        if row["step"] == 8
        for answer in row["answers"]
    ]
    assert data["step", "prompt", "condition", "answer", "finished"] == answers
    matrices = [table["data"] for table in tables if table["columns"][0] == "class"]
    values = {tuple(row[1:3]) for matrix in matrices for row in matrix}
    assert values == {tuple(row) for line in lines(run / "validation.jsonl") for row in line["matrix"].values()}


SILENT_SERVER = """
import os, socket, sys
from pathlib import Path
from ochat_train.recipe.sections.tracking import TrackingSettings
from ochat_train.tracking.delivery import Trackers
from ochat_train.tracking.wandb_tracker import WandbTracker
from tests.support.results import run_facts, step_metrics

server = socket.create_server(("127.0.0.1", 0))
os.environ |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "WANDB_API_KEY": "a" * 40}
tracker = WandbTracker(TrackingSettings(wandb="online"), exit_seconds=0.5)
trackers = Trackers([tracker], run_facts(Path(sys.argv[1])), report=print)
trackers.log_step(step_metrics(1))
server.accept()  # it asks, so it waits for an answer from now on
trackers.close(done=True, most_seconds=0.0)
"""


def test_a_server_that_never_answers_does_not_hold_the_process(tmp_path: Path) -> None:
    """wandb itself would wait for its service for 90 s. The service inherits stdout: a pipe would wait for it."""
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as output, err.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", SILENT_SERVER, str(tmp_path)],
            stdout=output,
            stderr=errors,
            cwd=ROOT,
            env={"PYTHONPATH": PYTHONPATH, "HOME": str(tmp_path)},
        )
    try:
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
        for service in psutil.process_iter(["name", "cmdline"]):
            # cmdline: None for a process that has just ended
            if service.info["name"] == "wandb-core" and str(process.pid) in (service.info["cmdline"] or ()):
                service.kill()
    assert "Weights & Biases: does not answer and was dropped; 1 of 1 steps" in out.read_text()
    assert err.read_text() == ""


class FakeWandb(ModuleType):
    """The library without a server: keeps what it is given."""

    Settings = dict

    def __init__(self, *, has_key: bool = True) -> None:
        super().__init__("wandb")
        self._has_key = has_key
        self.runs: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.url, self.dir, self.exit_codes = "https://server/run", "runs/x/wandb/offline-run-1/files", list[int]()

    def setup(self, settings: Any) -> None: ...

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        return self._has_key

    def init(self, **arguments: Any) -> FakeWandb:
        self.runs.append(arguments)
        return self

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.steps.append(step)

    def finish(self, *, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def part_of_run(
    library: FakeWandb,
    folder: Path,
    steps: range,
    monkeypatch: pytest.MonkeyPatch,
    *,
    closed: bool,
    mode: str = "online",
) -> str:
    """The part of a run with these steps; what is said at its start."""
    monkeypatch.setitem(sys.modules, "wandb", library)
    tracker = WandbTracker(TrackingSettings.model_validate({"wandb": mode, "wandb_entity": "team"}))
    said = tracker.start(replace(FACTS, output_dir=folder, first_step=steps.start - 1))
    for step in steps:
        tracker.log_step(step_metrics(step))
    if closed:
        tracker.close(done=False)
    return said


def test_wandb_gets_steps_again_only_where_they_may_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeWandb()
    part_of_run(library, tmp_path, range(1, 6), monkeypatch, closed=True)
    part_of_run(library, tmp_path, range(4, 8), monkeypatch, closed=False)  # killed
    part_of_run(library, tmp_path, range(7, 10), monkeypatch, closed=True)
    assert library.steps == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9]
    assert library.exit_codes == [1, 1]
    assert len({run["id"] for run in library.runs}) == 1
    part_of_run(library, tmp_path, range(1, 3), monkeypatch, closed=True)  # from the beginning: a separate run
    assert len({run["id"] for run in library.runs}) == 2
    assert library.steps[-2:] == [1, 2]


def test_wandb_online_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeWandb()
    assert part_of_run(library, tmp_path, range(1, 2), monkeypatch, closed=True) == "https://server/run"
    said = part_of_run(FakeWandb(has_key=False), tmp_path, range(1, 2), monkeypatch, closed=True, mode="offline")
    assert said == "offline, upload with `wandb sync runs/x/wandb/offline-run-1`"
    assert {key: library.runs[0][key] for key in ("mode", "resume", "entity", "project", "name")} == {
        "mode": "online",
        "resume": "allow",
        "entity": "team",
        "project": "ochat-train",
        "name": "x",
    }
    with pytest.raises(PermissionError, match="no API key: run `wandb login`, or set WANDB_API_KEY"):
        part_of_run(FakeWandb(has_key=False), tmp_path, range(1, 2), monkeypatch, closed=True)


# ---- choosing ----


@pytest.mark.parametrize("value", ["true", "online", "offline"])
def test_a_tracker_that_is_not_installed_is_named_with_its_command(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    settings = TrackingSettings(wandb=True if value == "true" else value)
    with pytest.raises(
        UserError, match=f"^tracking.wandb: {value}: the package wandb is not .* `pip install wandb`, or turn"
    ):
        choice.chosen_trackers(settings)
    with pytest.raises(UserError, match=r"^tracking.tensorboard: true: .* `pip install tensorboard`"):
        choice.chosen_trackers(TrackingSettings(tensorboard=True))
    assert choice.chosen_trackers(TrackingSettings()) == []


def test_wandb_takes_four_values(tmp_path: Path) -> None:
    for text, value in {"true": True, "false": False, "online": "online", "offline": "offline"}.items():
        path = write(tmp_path, changed(("wandb: false", f"wandb: {text}")))
        assert load_recipe(path).tracking.wandb == value
    path = write(tmp_path, changed(("wandb: false", "wandb: ofline")))
    assert problem_of(path).endswith("tracking.wandb: 'ofline': expected `true`, `false`, `online` or `offline`")


def test_every_tracker_is_in_the_table() -> None:
    modules = [importlib.import_module(f"{tracking.__name__}.{found.name}") for found in FILES]
    records = {kind.key: kind for module in modules for kind in vars(module).values() if isinstance(kind, TrackerKind)}
    assert {kind.key: kind for kind in choice.TRACKER_KINDS} == records


def test_every_tracker_of_a_recipe_has_a_record_and_is_installed_by_its_extra() -> None:
    switches = {name for name, field in TrackingSettings.model_fields.items() if field.default is False}
    assert [kind.key for kind in choice.TRACKER_KINDS] == sorted(switches)
    for kind in choice.TRACKER_KINDS:
        assert not kind.is_wanted(TrackingSettings())
        wanted = TrackingSettings.model_validate({kind.key: True})
        assert kind.is_wanted(wanted)
        assert [other.key for other in choice.TRACKER_KINDS if other.is_wanted(wanted)] == [kind.key]
        assert [type(tracker) for tracker in choice.chosen_trackers(wanted)] == [type(kind.make(wanted))]
        requirement = re.compile(rf"{kind.package}\b.*extra == .{kind.extra}\b")
        assert any(requirement.match(text) for text in importlib.metadata.requires("ochat-train") or ())


def test_curves_of_any_class_names_stay_apart() -> None:
    names = [*HARD_NAMES, "a/loss"]
    found = step_scalars(step_metrics(1, classes=names))
    losses = [key for key in found if re.fullmatch(r"classes/[^/]+/loss", key)]
    assert len({re.sub(r"[^-/\w.]", "_", key) for key in losses}) == len(names)


def test_tensorboard_on_a_full_disk_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own thread, which writes the file, dies of it; the control is a thread of ours, which is still reported."""
    said: list[str] = []
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: reported.append(failure.exc_type))
    trackers = Trackers([TENSORBOARD.make(TrackingSettings())], run_facts(tmp_path), report=said.append)
    wait_for(lambda: said)
    [file] = (tmp_path / "tensorboard").iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, before[1]))
    try:
        for step in range(1, 2000):
            trackers.log_step(step_metrics(step, classes=["a", "b"]))
        trackers.close(done=True, most_seconds=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert any("File too large; it is switched off, training continues" in line for line in said), said
    assert reported == []
    thread = threading.Thread(target=fail_loudly)
    thread.start()
    thread.join()
    assert reported == [ZeroDivisionError]


def fail_loudly() -> None:
    raise ZeroDivisionError
