"""An exception carries its exit code and says which ranks print it; 0 is for success alone."""

from __future__ import annotations

import argparse
import errno
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import ReportedError, UserError
from ochat_train.check.findings import run_checks
from ochat_train.cli.main import main
from ochat_train.cli.report import REPORT
from ochat_train.distributed.launch import EXIT_CODES
from ochat_train.system import exits
from ochat_train.system.durable import replace_text
from tests.support.small_recipe import RecipeFactory


class LeftReader(io.StringIO):
    """A pipe whose reader has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_verbs_that_print_what_was_asked_for_may_lose_their_reader(
    make_recipe: RecipeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ochat inspect ... | head` is not a failure; a training that cannot print any more has not succeeded. What a
    verb has found still decides its exit code.
    """
    recipe = make_recipe()
    assert main(["prepare", str(recipe), "--workers", "1"]) == 0
    shown = [["inspect", str(tmp_path / "prepared")], ["schema", "--path"], ["completion", "fish"]]
    for arguments in shown:
        monkeypatch.setattr("sys.stdout", LeftReader())
        assert main(arguments) == 0, arguments
    monkeypatch.setattr("sys.stdout", LeftReader())
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        monkeypatch.setattr("sys.stdout", LeftReader())
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    assert capsys.readouterr().err.endswith("none.yaml: 1 problem\n")
    monkeypatch.setattr("sys.stdout", LeftReader())
    with pytest.raises(BrokenPipeError):
        main(["prepare", str(recipe)])


class FullDisk(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class LateFullDisk(FullDisk):
    """The same where only the end of the command notices it: until then all is in a buffer."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        super().write("")


@pytest.mark.parametrize("stdout", [FullDisk, LateFullDisk])
def test_a_full_disk_behind_the_output_is_an_error_with_a_message(
    stdout: type[FullDisk], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", stdout())
    assert main(["schema"]) == 2
    message = "the output: cannot be written: No space left on device; make room there, and run the command again"
    assert capsys.readouterr().err == f"ochat schema: {message}\n"
    monkeypatch.setattr("sys.stdout", stdout())
    monkeypatch.setattr("sys.stderr", FullDisk())
    assert main(["schema"]) == 2, "the exit code says it where no message can"
    monkeypatch.setattr("sys.stdout", stdout())
    with pytest.raises(OSError, match="No space left"):
        main(["schema", "--debug"])


@pytest.mark.parametrize("stdout", [FullDisk, LateFullDisk])
def test_help_that_cannot_be_written_is_an_error(
    stdout: type[FullDisk], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """argparse ends with 0 then. What it writes to standard error may be lost: the exit code says it."""
    for program, arguments in [("ochat", ["--help"]), ("ochat", ["--version"]), ("ochat train", ["train", "-h"])]:
        monkeypatch.setattr("sys.stdout", stdout())
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert capsys.readouterr().err.startswith(f"{program}: the output: cannot be written: No space left on device")
    monkeypatch.setattr("sys.stderr", stdout())
    for arguments in (["train", "-h"], ["train", "--nonsense"]):
        monkeypatch.setattr("sys.stdout", stdout())
        with pytest.raises(SystemExit, match="2"):
            main(arguments)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_python_does_not_write_again_what_could_not_be_written() -> None:
    """It would print its own complaint, and end with 120. The control is a program that does no more than print."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    def ended(program: str) -> tuple[int, str]:
        with open("/dev/full", "w") as full:
            run = subprocess.run(
                [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, env=environment
            )
        return run.returncode, run.stderr

    code, said = ended("import sys; from ochat_train.cli.main import main; sys.exit(main(['schema', '--path']))")
    assert (code, said.count("\n")) == (2, 1), said
    assert ended("print(1)")[0] == 120


def test_a_page_that_does_not_fit_is_named_and_leaves_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = tmp_path / "page.html", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    options = argparse.Namespace(
        run=lambda options: replace_text(path, "new" * 100), debug=False, verb="report", quiet=False, log_file=None
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ochat_train.cli.main.parse", lambda verbs, arguments: options)
            assert main(["report"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert error.startswith(f"ochat report: {path}: cannot be written: File too large (")
    assert "bytes are free there); make room there, and run the command again" in error
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"], "nothing half-written stays"


ENDS = [
    (UserError("recipe.yaml", "cannot be read"), 2, False),
    (exits.OneRankError("host-b", "out of memory"), 2, True),
    (exits.StoppedBySignalError("stopped by SIGTERM"), 75, False),
    (exits.LostRanksError("rank 1 has ended"), 76, True),
    (exits.NotPushedError("trained to the end, but not on the Hub"), 77, False),
]


@pytest.mark.parametrize(("error", "code", "each_prints"), ENDS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("rank", [0, 1])
def test_every_end_has_its_code_and_is_printed_once_for_what_all_ranks_find(
    error: ReportedError,
    code: int,
    each_prints: bool,
    rank: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_run_page(run_dir: Path, out: Path, *, price: float | None = None) -> None:
        raise error

    monkeypatch.setattr("ochat_train.report.run_page.write_run_page", write_run_page)
    monkeypatch.setenv("RANK", str(rank))
    assert main([REPORT.name, "runs/mine"]) == code
    assert capsys.readouterr().err == (f"ochat report: {error}\n" if rank == 0 or each_prints else "")


def test_every_exception_that_ends_a_command_has_an_exit_code() -> None:
    def subclasses(kind: type[ReportedError]) -> set[type[ReportedError]]:
        return {kind}.union(*map(subclasses, kind.__subclasses__()))

    kinds = subclasses(ReportedError) - {ReportedError}
    assert kinds >= {type(error) for error, _, _ in ENDS}
    codes = {value for name, value in vars(exits).items() if name.isupper()}
    assert {kind.exit_code for kind in kinds} == codes - {exits.DONE, exits.BUG}


@pytest.mark.parametrize(
    ("environment", "names_host"),
    [
        ({}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, False),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, True),
        ({"RANK": "9", "LOCAL_RANK": "1"}, False),
    ],
)
def test_one_rank_of_every_other_host_prints_what_that_host_finds(
    environment: dict[str, str], names_host: bool
) -> None:
    error = UserError("recipe.yaml", "cannot be read")
    found = exits.found_on_host(error, environment, host="host-b")
    assert found.each_process_prints == names_host
    assert str(found) == ("host-b: recipe.yaml: cannot be read" if names_host else str(error))


PERMISSIONS = [errno.EACCES, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR]


@pytest.mark.parametrize("number", PERMISSIONS)
def test_a_file_that_may_not_be_used_is_named(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By any verb, wherever it meets the file; other errors of the system are defects of ours."""

    def write_run_page(run_dir: Path, out: Path, *, price: float | None = None) -> None:
        raise OSError(number, os.strerror(number), "secret.json")

    monkeypatch.setattr("ochat_train.report.run_page.write_run_page", write_run_page)
    assert main(["report", "run"]) == 2
    said = capsys.readouterr().err
    assert f"ochat report: secret.json: cannot be used: {os.strerror(number)}; change its permissions" in said
    [finding] = run_checks([("base", lambda: write_run_page(Path(), Path()) or [])])
    assert (finding.level, finding.place) == ("problem", "secret.json")
    assert "the check itself failed" not in finding.problem
    number = errno.EINVAL
    with pytest.raises(OSError, match="Invalid argument"):
        main(["report", "run"])
    [defect] = run_checks([("base", lambda: write_run_page(Path(), Path()) or [])])
    assert "the check itself failed" in defect.problem, "the control"


def test_a_prepared_folder_that_cannot_be_written_is_named(
    make_recipe: RecipeFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its parent is a file; for root a folder without the right to write is writable."""
    (tmp_path / "file").write_text("")
    recipe = make_recipe(data__prepared_dir=str(tmp_path / "file" / "prepared"))
    assert main(["prepare", str(recipe), "--workers", "1"]) == 2
    assert "prepared" in capsys.readouterr().err


def test_a_full_disk_behind_a_library_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """safetensors and tokenizers raise their own exceptions. The control: one that names no error of the system."""
    import ochat_train.export.export as exporting

    def fails(text: str) -> None:
        def export(*arguments: object, **more: object) -> None:
            raise ValueError(text)

        monkeypatch.setattr(exporting, "export", export)

    out = tmp_path / "out"
    fails("Error while serializing: I/O error: No space left on device (os error 28)")
    assert main(["export", "run", "--out", str(out)]) == exits.USER_ERROR
    assert capsys.readouterr().err.startswith(f"ochat export: {out}: cannot be written: No space left on device")
    fails("I/O error: Read-only file system (os error 30)")
    assert main(["export", "run", "--out", str(out)]) == exits.USER_ERROR
    assert f"{out}: cannot be used: Read-only file system" in capsys.readouterr().err
    for text in ("something else", "Connection refused (os error 111)"):
        fails(text)
        with pytest.raises(ValueError, match=text[:10]):
            main(["export", "run", "--out", str(out)])


LEAVING = """
import atexit, runpy, sys, threading
import ochat_train.cli.main as command

class Kept:
    def __del__(self):
        print("taken down", flush=True)

kept = Kept()

def main(words):
    atexit.register(print, "handler")
    threading.Thread(target=print, args=["thread"]).start()
    return 5

command.main = main
"""


@pytest.mark.parametrize(
    ("start", "lines"),
    [
        ('runpy.run_module("ochat_train", run_name="__main__")', ["handler", "thread"]),
        ("sys.exit(main([]))", ["handler", "taken down", "thread"]),  # the control: Python's usual end
    ],
)
def test_a_rank_ends_before_python_takes_its_interpreter_down(start: str, lines: list[str], tmp_path: Path) -> None:
    """Exit code, output, threads and handlers are as usual; only threads of C++ never meet half an interpreter. Where
    `ochat launch` has started it, it leaves its exit code there.
    """
    environment = {**os.environ, EXIT_CODES: str(tmp_path), "RANK": "3"}
    ended = subprocess.run(
        [sys.executable, "-c", LEAVING + start], capture_output=True, text=True, timeout=300, env=environment
    )
    left = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert left == ({"00003": "5"} if "ochat_train" in start else {})
    assert (ended.returncode, sorted(ended.stdout.split("\n"))[1:], ended.stderr) == (5, lines, "")
