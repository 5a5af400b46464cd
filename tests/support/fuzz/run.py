"""Runs cases of the fuzz test, each in a forked process with a time limit and a memory limit.

    python -m tests.support.fuzz.run '{"folder": "/tmp/x", "seed": 0, "first": 0, "count": 40}'

Prints one JSON line for each case. A case is known by seed and number: the same numbers damage the same bytes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.prepared.dataset import manifest_digest
from tests.support.fuzz.mutations import choose, no_permission, obey_permissions
from tests.support.fuzz.world import COMMANDS, Command, pick, write_inputs

DOCUMENTED_EXITS = (0, 2, 75, 76, 77)
SECONDS = 10.0  # a case that takes longer has failed
_MEMORY_BYTES = 6 << 30  # of addresses, beside those in use before
# What the commands import, so that not every case does.
_IMPORTED_ONCE = (
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "ochat_train.check.check",
    "ochat_train.check.text",
    "ochat_train.inference.generate",
    "ochat_train.init.init",
    "ochat_train.planning.report",
    "ochat_train.planning.text",
    "ochat_train.report.inspect_page",
    "ochat_train.report.run_page",
    "transformers.models.auto.tokenization_auto",
    "jinja2.sandbox",
)
_CHECK_FAILED = "the check itself failed"  # what `ochat check` says of an exception that nobody expected


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a case. outcome: `exit N`, `traceback`, `signal N` or `too slow`. detail: the last lines said."""

    number: int
    kind: str
    file: str
    mutation: str
    command: str
    outcome: str
    seconds: float
    detail: str

    @property
    def is_good(self) -> bool:
        """Whether it ended as documented."""
        return self.outcome in {f"exit {code}" for code in DOCUMENTED_EXITS}


def run_command(
    command: Command | Callable[[Path], None],
    folder: Path,
    log: Path,
    *,
    drop_rights: bool = False,
    seconds: float = SECONDS,
) -> tuple[str, float, str]:
    """Run `ochat`, or a function, in a folder, in a forked process: outcome, seconds, and what it said."""
    start = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _run_in_child(command, folder, log, drop_rights=drop_rights)
    status = _wait(child, seconds=seconds * _slowness())
    taken = time.monotonic() - start
    said = log.read_text(encoding="utf-8", errors="replace")
    if status is None:
        return "too slow", taken, said
    code = os.waitstatus_to_exitcode(status)
    outcome = f"signal {-code}" if code < 0 else f"exit {code}"
    if "Traceback (most recent call last)" in said or _CHECK_FAILED in said:
        outcome = "traceback"
    return outcome, taken, said


def _slowness() -> float:
    """How much longer a case may take where others use the processors as well, so that no test depends on the load."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _run_in_child(command: Command | Callable[[Path], None], folder: Path, log: Path, *, drop_rights: bool) -> None:
    """Never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if drop_rights:
            obey_permissions()
        if callable(command):
            command(folder)
            code = 0
        else:
            from ochat_train.cli.main import main

            code = main(command)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, *, seconds: float) -> int | None:
    """The status of a child process; None where it had to be killed."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


def seal(world: Path, path: Path) -> None:
    """Make the sizes and hashes that a checkpoint or prepared dataset records of `path` agree with what it holds."""
    if not path.is_file() or os.access(path, os.R_OK) is False:
        return
    data = path.read_bytes()
    size, sha256 = len(data), hashlib.sha256(data).hexdigest()
    for manifest in {parent / "MANIFEST.json" for parent in path.parents} | {world / "prepared" / "manifest.json"}:
        if manifest.is_file() and manifest != path and path.is_relative_to(manifest.parent):
            content = json.loads(manifest.read_text(encoding="utf-8"))
            name = str(path.relative_to(manifest.parent))
            if name in (content.get("files") or {}):
                is_prepared = manifest.name == "manifest.json"
                content["files"][name] = {"size": size, "sha256": sha256} if is_prepared else [size, sha256]
                manifest.write_text(json.dumps(content, indent=1), encoding="utf-8")
                _seal_manifest(manifest)
    _seal_manifest(path)


def _seal_manifest(path: Path) -> None:
    if path.name == "manifest.json":
        with contextlib.suppress(
            ValueError, AttributeError, TypeError, RecursionError
        ):  # it is not a manifest any more
            content = json.loads(path.read_text(encoding="utf-8"))
            content["digest"] = manifest_digest(content)
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if path.name == "MANIFEST.json":
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (path.parent / "MANIFEST.sha256").write_text(f"{digest}  MANIFEST.json\n", encoding="utf-8")


def run_case(number: int, seed: int, world: Path, folder: Path) -> Result:
    """Damage a copy of the world in one place, and run a command that reads that place."""
    rng = random.Random(f"{seed}-{number}")
    copy = folder / f"case-{os.getpid()}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world, copy)
    kind, name = pick(world, rng)
    mutation = choose(copy / name, rng)
    label = mutation.__name__
    try:
        mutation(copy / name, rng)
    except (ValueError, KeyError, IndexError, OSError, RecursionError) as error:  # it does not fit this file
        label = f"{label} (not possible: {type(error).__name__})"
    if kind.sealed and rng.randrange(2):
        seal(copy, copy / name)
        label = f"{label}, sealed"
    command = rng.choice(kind.commands)
    log = folder / f"case-{os.getpid()}.log"
    outcome, seconds, said = run_command(command, copy, log, drop_rights=mutation is no_permission)
    allow_all(copy)
    shutil.rmtree(copy)
    return Result(
        number=number,
        kind=kind.name,
        file=str(name),
        mutation=label,
        command=" ".join(command[:2]) if len(command) > 1 else command[0],
        outcome=outcome,
        seconds=round(seconds, 3),
        detail="" if outcome in ("exit 0",) else said[-3000:],
    )


def allow_all(folder: Path) -> None:
    """Take back what `no_permission` did, so that the folder can be removed."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            allow_all(path)


def make_world(folder: Path) -> Path:
    """The world, made once in `folder`."""
    world = folder / "world"
    if not (world / "export").is_dir():
        shutil.rmtree(world, ignore_errors=True)
        world.mkdir(parents=True)

        # each in its own process: one that has threads (torch's, the tokenizers') is not one to fork from
        for step in (write_inputs, *COMMANDS):
            outcome, _, said = run_command(step, world, folder / "build.log")
            assert outcome == "exit 0", f"{step}: {outcome}\n{said}"
    return world


def controls(folder: Path) -> list[str]:
    """The outcomes of what must be seen: an exception, the death of the process, one that takes too long."""

    def raises(_: Path) -> None:
        raise ValueError("planted")

    def dies(_: Path) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def sleeps(_: Path) -> None:
        time.sleep(600)

    log = folder / "control.log"
    return [run_command(function, folder, log, seconds=0.2)[0] for function in (raises, dies, sleeps)]


def main(text: str) -> None:
    """Run the cases `first` to `first + count` of a seed."""
    job = json.loads(text)
    folder = Path(job["folder"])
    if job.get("controls"):
        print(json.dumps(controls(folder)), flush=True)
    os.environ.update(
        HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hub"), WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false"
    )
    for module in _IMPORTED_ONCE:
        importlib.import_module(module)
    world = make_world(folder)
    for number in range(job["first"], job["first"] + job["count"]):
        print(json.dumps(asdict(run_case(number, job["seed"], world, folder))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
