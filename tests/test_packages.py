"""Which package may import which: one table, without circles.

A file beside packages counts as one. Adding an import between two packages means adding it here, so
that a reader of the change sees it; a row that no import needs any more is also an error.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.processes import ROOT

# Files that every package may import; they import only each other.
LEAVES = (
    "class_names conversation errors file_hashes files held_out hub_cache hub_names json_files ledger nesting "
    "path_keys section text_rules unfinished_folders weight"
)
DATA_PIPELINE: Mapping[str, str] = {
    "formats": "",
    "prepared": "",
    "settings": "formats",
    "plan": "prepared",
    "classes": "settings",
    "read": "formats settings",
    "prompt": "classes",
    "look": "classes formats prepared prompt read settings",
    "prepare": "classes prepared prompt read settings",
}
# Every package of ochat_train may also import all of data_pipeline.
OCHAT_TRAIN: Mapping[str, str] = {
    "system": "",
    "recipe": "",
    "suites": "recipe system",
    "model": "recipe system",
    "adapter": "model recipe system",
    "distributed": "recipe system",
    "evaluation": "distributed model recipe suites system",
    "runs": "evaluation recipe system",
    "report": "evaluation runs suites system",
    "optimizer": "",
    "checkpoint": "distributed optimizer recipe runs system",
    "planning": "adapter evaluation model optimizer recipe report system",
    "init": "model planning recipe system",
    "tracking": "distributed evaluation recipe report runs system",
    "export": "adapter checkpoint evaluation model recipe report runs suites system",
    "hub": "adapter checkpoint distributed export model recipe runs system",
    "inference": "adapter export model recipe runs system",
    "serving": "export inference system",
    "chat": "inference system",
    "respondents": "adapter export inference report runs suites system",
    "training": "adapter checkpoint distributed evaluation hub model optimizer planning recipe report runs suites "
    "system tracking",
    "check": "adapter checkpoint evaluation hub model planning recipe suites system",
    "quickstart": "evaluation export inference system",
    "ablation": "checkpoint distributed evaluation export inference model planning recipe report runs suites system",
    "cli": "ablation chat check distributed export hub inference init planning recipe report respondents serving "
    "suites system training",
    "api": "checkpoint distributed inference recipe system training",
    "__init__": "api export",
    "__main__": "cli distributed",
}


def package_of(module: str) -> str:
    """`ochat_train.model.loss` -> `ochat_train.model`."""
    return ".".join(module.split(".")[:2])


def imported_modules(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports anywhere, even inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def edges_between_packages(root: Path) -> dict[str, set[str]]:
    """Imports between packages: package -> packages that it imports."""
    edges: dict[str, set[str]] = {}
    for top in ("data_pipeline", "ochat_train"):
        for path in (root / top).rglob("*.py"):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            targets = {
                name for name in imported_modules(path) if name.split(".")[0] in ("data_pipeline", "ochat_train")
            }
            found = {package_of(target) for target in targets} - {package_of(module), "ochat_train.__version__"}
            edges.setdefault(package_of(module), set()).update(found)
    return edges


def allowed_edges() -> dict[str, set[str]]:
    """The tables above: package -> packages that it may import."""
    leaves = {f"data_pipeline.{name}" for name in LEAVES.split()}
    edges = {leaf: leaves - {leaf} for leaf in leaves}
    for name, row in DATA_PIPELINE.items():
        edges[f"data_pipeline.{name}"] = leaves | {f"data_pipeline.{target}" for target in row.split()}
    data_pipeline = set(edges)
    for name, row in OCHAT_TRAIN.items():
        edges[f"ochat_train.{name}"] = data_pipeline | {f"ochat_train.{target}" for target in row.split()}
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_packages_import_what_the_table_allows_and_nothing_else() -> None:
    found, allowed = edges_between_packages(ROOT), allowed_edges()
    assert found.keys() - {"data_pipeline.__init__"} == allowed.keys()
    forbidden = [
        f"{package} -> {target}"
        for package, row in found.items()
        for target in sorted(row - allowed.get(package, set()))
    ]
    assert forbidden == []


def test_the_table_has_no_row_that_nothing_needs() -> None:
    found = edges_between_packages(ROOT)
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
    assert circles(edges_between_packages(ROOT)) == []
    assert circles({"a": {"b"}, "b": {"a"}})  # the control


def test_only_the_command_line_and_the_api_import_training() -> None:
    found = edges_between_packages(ROOT)
    assert [package for package, row in found.items() if "ochat_train.training" in row] == [
        "ochat_train.api",
        "ochat_train.cli",
    ]


@pytest.mark.parametrize("top", ["data_pipeline", "ochat_train"])
def test_a_forbidden_import_is_found(top: str, tmp_path: Path) -> None:
    """The control: one file that imports upwards, inside a function."""
    for name in ("data_pipeline", "ochat_train"):
        (tmp_path / name / "prompt").mkdir(parents=True)
    upward = {"data_pipeline": "ochat_train.recipe.load", "ochat_train": "ochat_train.training.run"}[top]
    (tmp_path / top / "prompt" / "new.py").write_text(f"def later():\n    from {upward} import run\n")
    package = f"{top}.prompt"
    assert edges_between_packages(tmp_path)[package] - allowed_edges().get(package, set()) == {package_of(upward)}
