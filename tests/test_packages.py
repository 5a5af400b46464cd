"""Which package may import which: one table, without circles.

A room is a package, or a file that lies beside packages. Adding an import between two rooms means adding it here, so
that a reader of the change sees it; a row that no import needs any more is an error too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.processes import ROOT

# Files that every room of data_pipeline and ochat_train may import; they import only each other.
DATA_LEAVES = {
    "conversation",
    "errors",
    "files",
    "hub_cache",
    "hub_names",
    "ledger",
    "section",
    "settings",
    "text_rules",
}
DATA_PIPELINE: Mapping[str, str] = {
    "classes": "read",
    "prompt": "classes",
    "prepared": "",
    "plan": "prepared",
    "read": "",
    "prepare": "classes prepared prompt read",
    "look": "classes prepared prompt read",
}
OCHAT_TRAIN: Mapping[str, str] = {
    "system": "",
    "recipe": "",
    "runs": "recipe system",
    "distributed": "recipe system",
    "model": "recipe",
    "evaluation": "distributed model recipe",
    "checkpoint": "distributed recipe system",
    "report": "evaluation runs system",
    "planning": "evaluation model recipe report",
    "export": "checkpoint recipe report runs system",
    "inference": "export system",
    "hub": "checkpoint distributed export recipe runs system",
    "tracking": "distributed recipe report system",
    "training": "checkpoint distributed evaluation hub model planning recipe report runs system tracking",
    "check": "checkpoint evaluation hub model planning recipe system",
    "init": "model recipe report system",
    "ablation": "checkpoint distributed evaluation export inference model planning recipe report runs system",
    "quickstart": "evaluation export inference system",
    "cli": "ablation check export hub inference init planning recipe report system training",
    "__main__": "cli",
}


def room_of(module: str) -> str:
    """`ochat_train.model.loss` -> `ochat_train.model`."""
    return ".".join(module.split(".")[:2])


def imported_modules(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports anywhere, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def edges_between_rooms(root: Path) -> dict[str, set[str]]:
    """Imports between rooms: room -> rooms that it imports."""
    edges: dict[str, set[str]] = {}
    for top in ("data_pipeline", "ochat_train"):
        for path in (root / top).rglob("*.py"):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            targets = {
                name for name in imported_modules(path) if name.split(".")[0] in ("data_pipeline", "ochat_train")
            }
            found = {room_of(target) for target in targets} - {room_of(module), "ochat_train.__version__"}
            edges.setdefault(room_of(module), set()).update(found)
    return edges


def allowed_edges() -> dict[str, set[str]]:
    leaves = {f"data_pipeline.{name}" for name in DATA_LEAVES}
    everything_below = leaves | {f"data_pipeline.{name}" for name in DATA_PIPELINE}
    edges = {
        f"data_pipeline.{name}": {f"data_pipeline.{r}" for r in row.split()} | leaves
        for name, row in DATA_PIPELINE.items()
    }
    edges |= {leaf: leaves - {leaf} for leaf in leaves}
    edges |= {
        f"ochat_train.{name}": {f"ochat_train.{r}" for r in row.split()} | everything_below
        for name, row in OCHAT_TRAIN.items()
    }
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_rooms_import_what_the_table_allows_and_nothing_else() -> None:
    found, allowed = edges_between_rooms(ROOT), allowed_edges()
    assert found.keys() - {"data_pipeline.__init__", "ochat_train.__init__"} == allowed.keys()
    forbidden = [
        f"{room} -> {target}" for room, row in found.items() for target in sorted(row - allowed.get(room, set()))
    ]
    assert forbidden == []


def test_the_table_has_no_row_that_nothing_needs() -> None:
    found = edges_between_rooms(ROOT)
    tables = {"data_pipeline": DATA_PIPELINE, "ochat_train": OCHAT_TRAIN}
    stale = [
        f"{top}.{name} -> {top}.{target}"
        for top, table in tables.items()
        for name, row in table.items()
        for target in row.split()
        if f"{top}.{target}" not in found[f"{top}.{name}"]
    ]
    assert stale == []


def test_there_is_no_circle() -> None:
    assert circles(edges_between_rooms(ROOT)) == []
    assert circles({"a": {"b"}, "b": {"a"}})  # the control


def test_only_the_command_line_imports_training() -> None:
    found = edges_between_rooms(ROOT)
    assert [room for room, row in found.items() if "ochat_train.training" in row] == ["ochat_train.cli"]


@pytest.mark.parametrize("top", ["data_pipeline", "ochat_train"])
def test_a_forbidden_import_is_found(top: str, tmp_path: Path) -> None:
    """The control: one file that imports upwards, inside of a function."""
    for name in ("data_pipeline", "ochat_train"):
        (tmp_path / name / "prompt").mkdir(parents=True)
    upward = {"data_pipeline": "ochat_train.recipe.load", "ochat_train": "ochat_train.training.run"}[top]
    (tmp_path / top / "prompt" / "new.py").write_text(f"def later():\n    from {upward} import run\n")
    room = f"{top}.prompt"
    assert edges_between_rooms(tmp_path)[room] - allowed_edges().get(room, set()) == {room_of(upward)}
