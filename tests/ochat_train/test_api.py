"""The Python API, and the notebook that shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.support.processes import ROOT, process_environment
from tests.support.rank_processes import start_rank

NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"

AFTER_THE_NOTEBOOK = """
import os, threading
import ochat_train

right = recipe
assert [row.name for row in prepared.classes] == ["right", "wrong"]
assert prepared.ledger.read == prepared.ledger.kept == 72
assert run.folder == folder / "run" and run.step == 120 and run.checkpoint.is_dir()
assert model == folder / "run" / "export" and (model / "config.json").is_file()
assert answers == {"GPT4 Correct": "cold", "GPT3": "hot"}, answers
assert not {"RANK", "WORLD_SIZE", "MASTER_PORT"} & set(os.environ), "later processes are no ranks"

# a second run in the same process, after a shell without a launcher; and a third, which is complete
short = load_recipe(recipe_file, ["train.max_steps=2", f"output_dir={folder}/short"])
assert train(short).step == 2
assert train(short) == train(short, resume="auto")

# problems
try:
    load_recipe(str(recipe_file), ["train.epoch=2"])
except ochat_train.UserError as error:
    assert "did you mean `epochs`" in str(error)
else:
    raise AssertionError("no error")
try:
    export(run.folder, str(model))
except ochat_train.UserError as error:
    assert error.problem == "already exists"
else:
    raise AssertionError("no error")
failures = []
def call():
    try:
        train(short)
    except ochat_train.ReportedError as error:
        failures.append(str(error))
thread = threading.Thread(target=call)
thread.start(); thread.join()
assert failures == ["train: was called in a thread, which receives no signals; call it in the main thread"]
"""


def run_python(code: str, where: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(where)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_notebook_ends_with_two_answers_and_the_api_keeps_its_promises(tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"]), "committed without outputs"
    (tmp_path / "notebook.py").write_text("\n".join([*cells, AFTER_THE_NOTEBOOK]), encoding="utf-8")
    arguments = [str(tmp_path / "notebook.py"), str(tmp_path)]
    environment = process_environment({"TMPDIR": str(tmp_path)})
    process = start_rank("tests.support.python_file", arguments, environment, fork=not torch.cuda.is_available())
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def test_importing_the_package_is_cheap_and_names_are_functions_in_any_order(tmp_path: Path) -> None:
    done = run_python(
        """
import sys
import ochat_train
assert not {"torch", "pydantic", "numpy"} & set(sys.modules), "import ochat_train loads nothing"
import ochat_train.export.layout  # binds the package to the name of the function
from ochat_train import __all__, export
assert callable(export)
assert set(__all__) <= set(dir(ochat_train))
for name in __all__:
    assert getattr(ochat_train, name) is not None
assert "torch" not in sys.modules
try:
    ochat_train.nothing
except AttributeError as error:
    assert str(error) == "module 'ochat_train' has no attribute 'nothing'"
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
