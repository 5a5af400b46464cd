"""Recipes on the command line: `--set` is checked like the file, and a mistake ends a command before torch is
loaded.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ochat_train.cli.main import main
from ochat_train.recipe.load import load_recipe
from tests.support.processes import run
from tests.support.recipe_texts import GOOD, changed, message_of, problem_of, write
from tests.support.small_recipe import RecipeFactory

# ---- --set ----


def test_set_changes_values(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, GOOD),
        [
            "name=other",
            "train.epochs=7",
            "optimizer.learning_rate=3e-5",
            "optimizer.betas=[0.8, 0.9]",
            "data.sources.1.path=c.jsonl",
            "data.classes.expert.reward=2",
            "data.classes.third={condition: Math, reward: 0.5}",
            "checkpoint.save_every_steps=10",
            "deepspeed.config.zero_optimization.overlap_comm=true",
            "model.revision=a=b",
            "train.epochs=8",  # the last one counts
        ],
    )
    assert recipe.name == "other"
    assert recipe.train.epochs == 8
    assert recipe.optimizer.learning_rate == 3e-5
    assert recipe.optimizer.betas == [0.8, 0.9]
    assert [source.path for source in recipe.data.sources] == ["a.jsonl", "c.jsonl"]
    assert recipe.data.classes["expert"].reward == 2.0
    assert recipe.data.classes["third"].condition == "Math"
    assert recipe.checkpoint.save_every_steps == 10
    assert recipe.deepspeed.config == {"zero_optimization": {"overlap_comm": True}}
    assert recipe.model.revision == "a=b"


def test_set_reaches_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("learning_rate: 2e-5", "betas: [0.9, 0.95]")))
    recipe = load_recipe(
        path, ["optimizer.betas.1=0.98", "data.sources.0={path: z.parquet, format: alpaca, class: expert}"]
    )
    assert recipe.optimizer.betas == [0.9, 0.98]
    assert (recipe.data.sources[0].path, recipe.data.sources[1].path) == ("z.parquet", "b.jsonl")


def test_set_repairs_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("max_length_tokens: 8192", "max_length_tokens: 9000")))
    assert "9000" in message_of(path)
    assert load_recipe(path, ["model.max_length_tokens=4096"]).model.max_length_tokens == 4096


# The override, how its one problem begins, and other texts that it contains.
WRONG_OVERRIDES = [
    ("foo", "--set foo: expected section.key=value"),
    ("=3", "--set =3: expected section.key=value"),
    ("train.epochs", "--set train.epochs: expected section.key=value"),
    ("train.epochs.x=7", "--set train.epochs.x=7: `train.epochs.x` is not inside a section"),
    ("data.sources.9.path=c", "--set data.sources.9.path=c: `data.sources.9.path` is not inside a section"),
    ("data.sources.²=3", "--set data.sources.²=3: `data.sources.²` is not inside a section"),
    ("data.sources.-1.path=c", "--set data.sources.-1.path=c: `data.sources.-1.path` is not inside a section"),
    ("train.epocs=7", "--set train.epocs: unknown key; did you mean `epochs`?"),
    ("trian.epochs=7", "--set trian: unknown key; did you mean `train`?"),
    ("data.sources.0.colour=red", "--set data.sources.0.colour: unknown key; known keys: path, format, class,"),
    ("train.epochs=x", "--set train.epochs: 'x': expected a whole number"),
    ("train.epochs=", "--set train.epochs: '': expected a whole number"),
    ('train.epochs="7"', "--set train.epochs: '7': expected a whole number"),
    ("tracking.wandb=no", "--set tracking.wandb: 'no': expected `true`, `false`, `online` or `offline`"),
    ("optimizer.warmup_ratio=1.5", "--set optimizer.warmup_ratio: 1.5: ", "less than 1"),
    (
        "optimizer.learning_rate=fast",
        "--set optimizer.learning_rate: 'fast': expected a number above 0 and at most 1e20, or `auto`",
    ),
    ("name=../x", "--set name: '../x': ", "letters, digits"),
    # whole sections: nothing is left of what the file said there
    ("tracking={wandb: 5}", "--set tracking.wandb: 5: expected `true`, `false`, `online` or `offline`"),
    ("data.classes.expert={condition: x}", "{path}:8: data: classes.expert: give `reward` or `weight`, or"),
    (
        "data.classes.expert={condition: x, weight: 1, reward: 1}",
        "--set data.classes.expert: give one of `reward` and `weight`",
    ),
    ("train={epochs: 1, tokens_per_step: 8192}", "--set train.pack_length_tokens: missing; length of a pack"),
    ("data.sources=[{path: a, class: expert}]", "--set data.sources.0.format: missing; layout of the rows"),
    # a rule over several keys is reported at their section, whoever gave the values
    ("train.tokens_per_step=9000", "{path}:17: train: tokens_per_step 9000 is not", "the nearest is 8192"),
    ("data.sources.0.class=nobody", "{path}:8: data: sources.0.class: unknown class `nobody`", "expert, suboptimal"),
]


@pytest.mark.parametrize("case", WRONG_OVERRIDES, ids=[case[0] for case in WRONG_OVERRIDES])
def test_a_wrong_override_is_one_problem_and_blamed_on_set(case: tuple[str, ...], tmp_path: Path) -> None:
    override, begins, *says = case
    path = write(tmp_path, GOOD)
    problem = problem_of(path, override)
    assert problem.startswith(begins.replace("{path}", str(path)))
    for part in says:
        assert part in problem


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs=[", "not valid YAML"),
        ("train.epochs=&a 3", "aliases and anchors are not allowed"),
        ("train.epochs=!!int 3", "tags (tag:yaml.org,2002:int) are not allowed"),
        ("tracking={wandb: false, wandb: true}", "wandb: duplicate key"),
        ("seed=" + "9" * 5000, "not a number that can be read"),
        ("seed=" + "[" * 500 + "]" * 500, "nested too deeply"),
        ("seed=" + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_value_that_is_no_yaml_is_blamed_on_set(override: str, says: str, tmp_path: Path) -> None:
    problem = problem_of(write(tmp_path, GOOD), override)
    assert problem.startswith(f"--set {override.partition('=')[0]}:")
    assert says in problem


def test_a_key_of_thousands_of_parts_is_refused(tmp_path: Path) -> None:
    problem = problem_of(write(tmp_path, GOOD), ".".join("a" * 50_000) + "=1")
    assert problem == f"--set {'a.' * 20}...: nested too deeply for a recipe (more than 32 levels)"


# ---- as a user sees it ----

CHECK_TORCH = """\
import sys
from ochat_train.cli.main import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


def assert_one_message(finished: subprocess.CompletedProcess[str], *says: str) -> None:
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    assert finished.stderr.startswith("ochat train: ")
    assert finished.stderr.count("ochat train") == 1
    for part in says:
        assert part in finished.stderr


def test_a_wrong_recipe_ends_training_before_torch_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("epochs: 5", "epocs: 5")))
    finished = run([sys.executable, "-c", CHECK_TORCH, "train", str(path), "--set", "optimizer.warmup_ratio=1.5"])
    lines = finished.stderr.splitlines()
    assert_one_message(finished, "train.epochs: missing", "did you mean `epochs`?", "--set optimizer.warmup_ratio: 1.5")
    assert lines[0] == f"ochat train: {path}: 3 problems"
    assert len(lines) == 4


def test_what_launchers_start_ends_in_the_same_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ochat_train", str(tmp_path / "none.yaml"), "--local_rank", "0"]
    assert_one_message(run(command), f"{tmp_path / 'none.yaml'}: cannot be read")
    second_rank = run(command, RANK="1")
    assert second_rank.returncode == 2
    assert second_rank.stderr == ""  # every rank finds the problem; rank 0 tells it


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    finished = run([sys.executable, "-m", "ochat_train", str(tmp_path / "none.yaml"), "--debug"])
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
    assert "cannot be read" in finished.stderr


@pytest.mark.parametrize("inside", ["", "run"])
def test_prepare_never_removes_a_run(
    inside: str, make_recipe: RecipeFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "prepared" / inside
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("{}\n")
    recipe = make_recipe(output_dir=str(run_dir))
    assert main(["prepare", str(recipe)]) == 2
    assert "output_dir must not be data.prepared_dir or inside it" in capsys.readouterr().err
    elsewhere = ["--set", f"output_dir={tmp_path / 'elsewhere'}", "--workers", "1"]
    assert main(["prepare", str(recipe), *elsewhere]) == 2
    assert "was not made by this command" in capsys.readouterr().err
    assert (run_dir / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("epochs=3", "did you mean `train.epochs`?"),
        ("learning_rate=1e-5", "did you mean `optimizer.learning_rate`?"),
        ("model.epochs=3", "did you mean `train.epochs`?"),
        ("model.nothing_like_it=3", "known keys: path"),
    ],
)
def test_a_key_of_another_section_is_named(override: str, hint: str, tmp_path: Path) -> None:
    assert hint in problem_of(write(tmp_path, GOOD), override)
