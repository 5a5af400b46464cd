"""`ochat ablate`: what the arms differ in, a real small ablation, continuing after an interruption, and questions."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.class_names import file_names
from data_pipeline.errors import UserError
from ochat_train.ablation import trainings
from ochat_train.ablation.arms import arm_recipe, arms_of
from ochat_train.ablation.results import AblationResults
from ochat_train.ablation.results_table import Figure, arm_figures
from ochat_train.cli.main import main
from ochat_train.evaluation.questions import (
    load_questions,
    right_ratios,
    right_ratios_by_condition,
)
from ochat_train.recipe.load import load_recipe
from ochat_train.recipe.recipe import Recipe
from ochat_train.suites.held_out import HeldOutQuestion, result_of
from ochat_train.system.exits import StoppedBySignalError
from ochat_train.system.messages import print_message, print_notice
from tests.support.forked_commands import run_forked
from tests.support.names import HARD_NAMES
from tests.support.processes import ochat
from tests.support.rows import write_jsonl
from tests.support.run_folder import metrics
from tests.support.small_recipe import RecipeFactory
from tests.support.waiting import wait_for

CONDITION = "GPT4 Correct"
HARD_NAME = "_Ä b/ö.👍'\""
HARD_FILE = f"{file_names([HARD_NAME])[HARD_NAME]}-only"


@pytest.fixture
def recipe(make_recipe: RecipeFactory) -> Recipe:
    return load_recipe(make_recipe(data__validation_ratio=0.3, data__condition_dropout=0.1))


def test_arms_differ_in_conditions_weights_and_classes_alone(recipe: Recipe) -> None:
    arms = {arm.name: arm for arm in arms_of(recipe, inference_condition=CONDITION)}
    tables = {
        name: {
            c: (spec["condition"], spec.get("reward"), spec.get("weight")) for c, spec in arm.data["classes"].items()
        }
        for name, arm in arms.items()
    }
    one = {"expert": (CONDITION, None, 1.0), "suboptimal": (CONDITION, None, 1.0)}
    assert tables == {
        "c-rlft": {"expert": (CONDITION, 1.0, None), "suboptimal": ("GPT3", 0.0, None)},
        "condition-only": {"expert": (CONDITION, None, 1.0), "suboptimal": ("GPT3", None, 1.0)},
        "weights-only": {"expert": (CONDITION, 1.0, None), "suboptimal": (CONDITION, 0.0, None)},
        "sft": one,
        "expert-only": one,
        "suboptimal-only": one,
    }
    assert {name: arm.data.get("only_classes") for name, arm in arms.items()} == {
        **dict.fromkeys(tables),
        "expert-only": ["expert"],
        "suboptimal-only": ["suboptimal"],
    }
    dropout = {name: arm.data["condition_dropout"] for name, arm in arms.items()}
    assert dropout == {name: 0.1 if name in ("c-rlft", "condition-only") else 0.0 for name in arms}


def test_recipes_of_arms_share_everything_else(recipe: Recipe, tmp_path: Path) -> None:
    arms = arms_of(recipe, inference_condition=CONDITION)
    dumps = []
    for arm in arms:
        for seed in (1, 2):
            made = arm_recipe(recipe, arm, folder=tmp_path, seed=seed, max_steps=9, epochs=4, learning_rate=0.5)
            assert made.data.validation_seed == recipe.seed, "one held-out split for all seeds"
            assert (made.seed, made.train.max_steps, made.train.epochs, made.optimizer.learning_rate) == (
                seed,
                9,
                4,
                0.5,
            )
            changed = {"name", "seed", "output_dir", "data"}
            dumps.append(made.model_dump(exclude=changed))
    assert all(dump == dumps[0] for dump in dumps)
    base = recipe.model_dump(exclude={"name", "seed", "output_dir", "data"})
    assert dumps[0]["model"] == base["model"]
    assert dumps[0]["validation"] == base["validation"]


def test_rewards_in_rows_are_not_read_by_arms_without_weights(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    classes = {"expert": {"condition": CONDITION}, "suboptimal": {"condition": "GPT3"}}
    raw = str(tmp_path / "expert.jsonl")
    sources = [{"path": raw, "format": "messages", "class": name, "reward_field": "score"} for name in classes]
    recipe = load_recipe(make_recipe(data__classes=classes, data__sources=sources, data__reward_clip=[0.0, 1.0]))
    for arm in arms_of(recipe, inference_condition=CONDITION):
        made = arm_recipe(recipe, arm, folder=tmp_path, seed=0, max_steps=1, epochs=1, learning_rate=1.0)
        has_rewards = any(source.reward_field for source in made.data.sources)
        assert has_rewards == (arm.name in ("c-rlft", "weights-only"))


def test_recipe_without_classes_cannot_be_ablated(make_recipe: RecipeFactory) -> None:
    rule = {"field": "score", "quantiles": 2, "conditions": ["low", "high"]}
    recipe = load_recipe(
        make_recipe(data__classes={}, data__classes_from=rule, data__sources=[{"path": "a", "format": "messages"}])
    )
    with pytest.raises(UserError, match=r"data\.classes: the ablation changes conditions and weights"):
        arms_of(recipe, inference_condition="high")


def test_arms_of_any_class_names_have_their_own_folders_and_runs(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    raw = str(tmp_path / "expert.jsonl")
    names = [*HARD_NAMES, "weights", "condition", "x" * 300, "x" * 299 + "y"]
    classes = {name: {"condition": f"C{number}", "weight": 1.0} for number, name in enumerate(names)}
    sources = [{"path": raw, "format": "messages", "class": name} for name in names]
    longest = {"name": "r" * 64, "data__classes": classes, "data__sources": sources, "data__beta": None}
    recipe = load_recipe(make_recipe(**longest))
    arms = arms_of(recipe, inference_condition="C0")
    made = [
        arm_recipe(recipe, arm, folder=tmp_path, seed=2**32 - 1, max_steps=1, epochs=1, learning_rate=1.0)
        for arm in arms
    ]
    assert len({entry.name.casefold() for entry in made}) == len(names) + 4
    assert len({entry.output_dir.casefold() for entry in made}) == len(names) + 4
    assert {Path(entry.output_dir).parent.parent for entry in made} == {tmp_path}, "a slash makes no folder"
    assert [entry.data.only_classes for entry in made[4:]] == [[name] for name in names]
    control = {f"{name}-only" for name in names} | {arm.name for arm in arms[:4]}
    assert len(control) < len(names) + 4, "control: the names themselves are those of other arms"


STOPPABLE = """
import pathlib, signal, sys
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
pathlib.Path(sys.argv[1]).touch()
signal.pause()
signal.sigtimedwait([], 0.2)  # a second signal would be heard
sys.exit(10 + len(heard))
"""


def test_a_command_hears_once_that_it_is_to_stop_and_no_other_begins(tmp_path: Path) -> None:
    commands, running, codes = trainings._Commands(), tmp_path / "running", []
    command = [sys.executable, "-c", STOPPABLE, str(running)]
    with (tmp_path / "log").open("w") as log, ThreadPoolExecutor(1) as pool:
        assert commands.run(["true"], environment={**os.environ}, output=log) == 0, "the control"
        answer = pool.submit(commands.run, command, environment={**os.environ}, output=log)
        wait_for(running.exists, seconds=60)
        [process] = commands._running
        codes.append(os.getpgid(process.pid))
        commands.stop()
        for stopped in (answer.result, lambda: commands.run(["true"], environment={}, output=log)):
            with pytest.raises(StoppedBySignalError):
                stopped()
    assert codes == [process.pid], "a terminal's signals do not reach it"
    assert process.returncode == 11


# ---- a real one ----


def test_ablation_trains_scores_goes_on_and_refuses_another_recipe(
    tmp_path: Path, make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trainings and scores run in separate processes, but forked: the test below starts one from nothing."""

    def run(self: Any, command: Any, *, environment: Any, output: Any) -> int:
        done = run_forked(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
        return int(done.returncode)

    monkeypatch.setattr(trainings._Commands, "run", run)

    def ochat_here(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    questions = [{"question": f"Question {n}.0: how are you?", "answer": "42", "task": "ab"[n % 2]} for n in range(4)]
    file = write_jsonl(tmp_path / "questions.jsonl", questions)
    raw = [str(tmp_path / f"{name}.jsonl") for name in ("expert", "suboptimal")]
    recipe = make_recipe(
        data__classes={
            HARD_NAME: {"condition": CONDITION, "reward": 1.0},
            "weights": {"condition": "GPT3", "reward": 0.0},
        },
        data__sources=[
            {"path": path, "format": "messages", "class": name}
            for path, name in zip(raw, (HARD_NAME, "weights"), strict=True)
        ],
        data__validation_ratio=0.3,
        train__max_steps=2,
        validation__questions=str(file),
        validation__answer_tokens=3,
        validation__answer_pattern="[0-9]+",
        validation__sample_tokens=0,
        validation__benchmarks=[{"suite": "held-out", "data": str(file), "answer_tokens": 3}],
    )
    out = tmp_path / "ablation"
    command = ["ablate", str(recipe), "--out", str(out), "--arms", f"c-rlft,{HARD_FILE}", "--parallel", "2", "--json"]
    code, printed, said = ochat_here(*command)
    assert code == 0, said
    results = json.loads(printed)
    assert results == json.loads((out / "results.json").read_text())
    assert "</html>" in (out / "results.html").read_text()
    assert f"{HARD_NAME} only" in (out / "results.txt").read_text()
    assert xml.etree.ElementTree.parse(out / "results.svg").getroot().tag.endswith("svg")
    figures = {row.name: row for row in arm_figures(AblationResults.from_json(results))}
    assert list(figures) == ["c-rlft", HARD_FILE]
    assert figures["c-rlft"].conversations > figures[HARD_FILE].conversations
    exams = set()
    for name, row in figures.items():
        assert row.accuracy is not None
        assert row.nll is not None
        assert row.margin is not None, "scored under both conditions, also where training saw one"
        run = out / name / "seed-1"
        assert len(metrics(run)) == 2
        assert HARD_NAME in metrics(run)[0]["classes"]
        assert not (run / "checkpoints").exists()
        score = json.loads((run / "score.json").read_text())
        exams.add(tuple(entry["supervised_tokens"] for entry in score["classes"].values()))
        assert set(score["accuracy"]) == {CONDITION, "GPT3"}
        assert set(score["accuracy"][CONDITION]) == {"a", "b", "all"}
        assert score["benchmarks"] == {"held-out": {name: shares["all"] for name, shares in score["accuracy"].items()}}
        assert not (run / "benchmarks.jsonl").exists(), "asked once, of the trained arm"
    assert len(exams) == 1, "all arms answer the same exam"
    assert figures["c-rlft"].learnt in ("yes", "weak", "no")
    assert figures[HARD_FILE].learnt == "-", "an arm that saw one condition had none to learn"
    own_score = json.loads((out / HARD_FILE / "seed-1" / "score.json").read_text())
    assert {entry["verdict"] for entry in own_score["learnt"].values()} == {None}

    before = (out / "c-rlft" / "seed-1" / "score.json").stat().st_mtime_ns
    (out / HARD_FILE / "seed-1" / "score.json").unlink()
    (out / HARD_FILE / "seed-1" / "metrics.jsonl").unlink()
    code, printed, said = ochat_here(*command)
    assert code == 0, said
    assert "2 trainings of 2 steps, 1 finished already" in said
    assert json.loads(printed) == results, "the same seeds give the same figures"
    assert (out / "c-rlft" / "seed-1" / "score.json").stat().st_mtime_ns == before

    code, _, said = ochat_here("report", str(out / "c-rlft" / "seed-1"))
    assert code == 0, said
    assert html.escape(HARD_NAME, quote=False) in html.unescape(
        (out / "c-rlft" / "seed-1" / "report.html").read_text()
    ).replace("&", "&amp;")

    code, _, said = ochat_here(*command, "--set", "train.max_steps=3")
    assert code == 2
    assert "holds the ablation of a recipe with another train; choose another --out" in said
    code, _, said = ochat_here(*command[:4], "--arms", "c-rltf")
    assert code == 2
    assert "--arms: unknown c-rltf; arms: c-rlft, condition-only" in said


def test_failed_training_is_reported_with_its_words(tmp_path: Path, make_recipe: RecipeFactory) -> None:
    recipe = make_recipe(
        data__validation_ratio=0.3, train__max_steps=2, train__max_nonfinite_steps=1, optimizer__learning_rate=1e20
    )
    found = ochat("ablate", str(recipe), "--out", str(tmp_path / "ablation"), "--arms", "sft")
    assert found.returncode == 2
    assert "sft, seed 1: ended with exit code 2" in found.stderr
    assert "was not finite" in found.stderr
    assert "1 of 1 trainings failed; repair the cause and run the command again" in found.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "data.validation_ratio: 0 holds nothing out"),
        ({"data__validation_ratio": 0.3, "validation__questions": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read"),
        (
            {
                "data__validation_ratio": 0.3,
                "data__classes": {
                    "expert": {"condition": "A", "weight": 1.0},
                    "suboptimal": {"condition": "A", "weight": 0.1},
                },
            },
            "all classes have one condition",
        ),
    ],
)
def test_recipe_that_says_nothing_is_refused(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    make_recipe: RecipeFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["ablate", str(make_recipe(**changes)), "--out", str(tmp_path / "ablation")]) == 2
    assert message in capsys.readouterr().err


# ---- questions ----


@pytest.mark.parametrize(
    ("answer", "pattern", "expected"),
    [
        (" 42 ", None, "42"),
        ("so 6 * 7 = 42\n#### 42", r"####\s*(\S+)", "42"),
        ("#### 1\n#### 2", r"####\s*(\S+)", "2"),
        ("no number", r"[0-9]+", None),
        ("7 then 8", r"[0-9]+", "8"),
    ],
)
def test_what_of_an_answer_is_compared(answer: str, pattern: str | None, expected: str | None) -> None:
    assert result_of(answer, pattern) == expected


class Parrot:
    """Answers each question with what the table says, and notes how it was asked."""

    def __init__(self, table: dict[str, str]) -> None:
        self.table, self.batches = table, []

    def answers(
        self, conversations: Any, *, condition: str | None, max_new_tokens: int, temperature: float
    ) -> list[str]:
        self.batches.append((len(conversations), condition, max_new_tokens, temperature))
        return [self.table[messages[-1]["content"]] for messages in conversations]


def test_right_answers_are_counted_by_task() -> None:
    questions = [
        HeldOutQuestion(question=f"q{n}", answer=str(n), task="even" if n % 2 == 0 else "odd") for n in range(300)
    ]
    parrot = Parrot({f"q{n}": str(n if n < 100 else -1) for n in range(300)})
    found = right_ratios(parrot, questions, "C", max_new_tokens=7)
    assert found == {"even": 50 / 150, "odd": 50 / 150, "all": 100 / 300}
    assert parrot.batches == [(250, "C", 7, 0.0), (50, "C", 7, 0.0)]


def test_each_condition_is_asked_once() -> None:
    questions = [HeldOutQuestion(question="q", answer="1", task="")]
    parrot = Parrot({"q": "1"})
    assert right_ratios_by_condition(parrot, questions, ["A", "B", "A"], max_new_tokens=3) == {
        "A": {"all": 1.0},
        "B": {"all": 1.0},
    }
    assert [condition for _, condition, _, _ in parrot.batches] == ["A", "B"]
    assert right_ratios_by_condition(parrot, [], ["A"], max_new_tokens=3) == {}


@pytest.mark.parametrize(
    "line", ["[1]", "{", '{"question": "q"}', '{"question": "", "answer": "a"}', '{"question": 1, "answer": "a"}']
)
def test_wrong_question_is_an_error_with_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"questions\.jsonl:2: expected an object with the texts"):
        load_questions(path)


def test_mean_and_spread() -> None:
    figure = Figure(values=[0.5, 0.7])
    assert (figure.mean, figure.text(".1%")) == (pytest.approx(0.6), "60.0% ± 14.1%")
    assert Figure(values=[0.5]).text(".2f") == "0.50"


def test_the_time_that_is_left_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings.time, "monotonic", lambda: 1000.0 + 120.0)
    assert trainings._left_text(1000.0, 2, 6) == "; 4 left, about 4:00"
    assert trainings._left_text(1000.0, 6, 6) == ""


def test_progress_is_a_notice_and_what_went_wrong_is_not(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, tmp_path: Path
) -> None:
    """So `--quiet` leaves out the first and prints the second."""
    given: dict[str, object] = {}

    def run_nothing(recipe: Recipe, options: object, **functions: object) -> None:
        given.update(functions)
        raise UserError("the ablation", "is not run here")

    monkeypatch.setattr("ochat_train.ablation.ablate.ablate", run_nothing)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    assert main(["ablate", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert given == {"say": print_notice, "warn": print_message}

    train = recipe.train.model_copy(update={"max_steps": 3})
    jobs = [
        trainings.TrainingJob(
            arm=arm,
            seed=0,
            recipe=recipe.model_copy(update={"train": train, "output_dir": str(tmp_path / arm.name)}),
        )
        for arm in list(arms_of(recipe, inference_condition=CONDITION))[:2]
    ]
    fails = jobs[1].arm.name
    monkeypatch.setattr(
        trainings, "_train_and_score", lambda job, *_, **__: "went wrong" if job.arm.name == fails else None
    )
    said: list[str] = []
    warned: list[str] = []
    exam = trainings.Exam(prepared_dir=tmp_path, questions=None)
    options = {"gpus": 1, "parallel": 1, "keep_checkpoints": False}
    assert trainings.run_trainings(jobs, exam, **options, say=said.append, warn=warned.append) == 1
    assert ["done in" in line for line in said] == [False, True]
    assert [fails in line and "went wrong" in line for line in warned] == [True]
