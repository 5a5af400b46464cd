"""Two hosts on one machine: the quickstart under real launchers that meet over a network, with and without a shared
disk.

    python benchmarks/two_hosts.py --json two_hosts.json
    python benchmarks/two_hosts.py --only torchrun,kill-b

A host is a network, mount and host-name namespace, with its own launcher and a cable (veth) to the other one; that
needs root on Linux (`ip`, `unshare`). Every run trains the same steps on two ranks, one per host, and is compared with
one host of two. Takes about 15 minutes on two cores, and 20 more for the two `no-recipe`, which wait for a roll call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline.prepared.dataset import manifest_digest
from ochat_train.checkpoint.state import list_checkpoints
from ochat_train.export.trained import load_trained_weights

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "quickstart.yaml"
NUM_STEPS, SAVE_EVERY = 8, 3
PORT = 29400
PYTHON = [sys.executable, "-u"]


@dataclass(frozen=True, kw_only=True)
class Host:
    """One of two hosts. disk: folder of this host alone -> where it is seen, instead of what is there."""

    name: str
    address: str
    disk: dict[Path, Path] = field(default_factory=dict)

    def start(self, command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
        """Start a command on this host."""
        names = folder / "etc-hosts"  # every host knows its own name and the other's
        names.write_text(f"127.0.0.1 localhost\n{A.address} {A.name}\n{B.address} {B.name}\n", encoding="utf-8")
        disks = {names: Path("/etc/hosts"), **self.disk}
        mounts = "".join(f"mount --bind '{own}' '{seen}' && " for own, seen in disks.items())
        inside = f'hostname {self.name} && {mounts}exec "$@"'
        isolated = ["unshare", "--mount", "--uts", "--propagation", "private", "bash", "-c", inside, "--"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "TORCHDYNAMO_DISABLE": "1",
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *isolated, *command],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        """End every process of this host at once, as a power cut does."""
        for number in _output("ip", "netns", "pids", self.name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)


A, B = Host(name="ochat-a", address="10.201.0.1"), Host(name="ochat-b", address="10.201.0.2")


@contextlib.contextmanager
def cable() -> Iterator[None]:
    """Two hosts that reach each other, and nothing else."""
    try:
        for host in (A, B):
            _output("ip", "netns", "add", host.name)
        _output(
            "ip",
            "link",
            "add",
            f"veth-{A.name}",
            "netns",
            A.name,
            "type",
            "veth",
            "peer",
            f"veth-{B.name}",
            "netns",
            B.name,
        )
        for host in (A, B):
            inside = ["ip", "-n", host.name]
            _output(*inside, "addr", "add", f"{host.address}/24", "dev", f"veth-{host.name}")
            for device in ("lo", f"veth-{host.name}"):
                _output(*inside, "link", "set", device, "up")
        yield
    finally:
        for host in (A, B):
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# ---- launchers ----


def torchrun(host: Host, ochat: Sequence[str]) -> list[str]:
    """torchrun with a meeting point (c10d) on host A."""
    return [
        *PYTHON,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--rdzv_backend",
        "c10d",
        "--rdzv_id",
        "two-hosts",
        "--rdzv_endpoint",
        f"{A.name}:{PORT}",
        "-m",
        "ochat_train",
        *ochat,
    ]


def deepspeed(host: Host, ochat: Sequence[str]) -> list[str]:
    """DeepSpeed's launcher with a hostfile, started on each host by hand (`--no_ssh`)."""
    hostfile = Path(tempfile.gettempdir()) / "two_hosts_hostfile"
    hostfile.write_text(f"{A.name} slots=1\n{B.name} slots=1\n", encoding="utf-8")
    return [
        *PYTHON,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile",
        str(hostfile),
        "--no_ssh",
        "--node_rank",
        str([A.name, B.name].index(host.name)),
        "--master_addr",
        A.name,
        "--master_port",
        str(PORT),
        "--log_level",
        "warning",
        "--module",
        "ochat_train",
        *ochat,
    ]


LAUNCHERS = {"torchrun": torchrun, "deepspeed": deepspeed}


# ---- runs ----


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A folder with the quickstart's data, prepared, and what is run in it."""

    folder: Path

    def arguments(self, run: str, *more: str) -> list[str]:
        """Arguments of `ochat train` for a run folder."""
        settings = [
            f"train.max_steps={NUM_STEPS}",
            f"checkpoint.save_every_steps={SAVE_EVERY}",
            "checkpoint.keep_last=5",
            f"output_dir=runs/{run}",
            "validation.sample_tokens=0",
            *more,
        ]
        return [str(RECIPE), *(part for setting in settings for part in ("--set", setting))]

    def start(
        self, launcher: str, run: str, *more: str, b: Host = B, b_more: Sequence[str] = (), b_recipe: Path = RECIPE
    ) -> list[subprocess.Popen[str]]:
        """Start both hosts; `b...`: what is another on the second one."""
        make = LAUNCHERS[launcher]
        of_a, of_b = self.arguments(run, *more), [str(b_recipe), *self.arguments(run, *more, *b_more)[1:]]
        return [A.start(make(A, of_a), self.folder), b.start(make(b, of_b), self.folder)]

    def result(self, run: str) -> tuple[list[float], dict[str, torch.Tensor]]:
        """Losses and final weights of a finished run."""
        lines = (self.folder / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        weights = load_trained_weights(list_checkpoints(self.folder / "runs" / run)[-1])
        return [json.loads(line)["loss"] for line in lines], weights

    def equals(self, run: str, other: str) -> bool:
        """Whether two runs have the same losses and weights, bit for bit."""
        (losses, weights), (truth, expected) = self.result(run), self.result(other)
        same = weights.keys() == expected.keys() and all(
            torch.equal(value, expected[key]) for key, value in weights.items()
        )
        return same and losses == truth and len(losses) == NUM_STEPS


def finish(processes: Sequence[subprocess.Popen[str]], *, seconds: float = 240.0) -> dict[str, Any]:
    """Wait for both hosts: exit codes, seconds, and the lines that `ochat train` said on each."""
    start = time.monotonic()
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=max(1.0, seconds - (time.monotonic() - start)))[0])
        except subprocess.TimeoutExpired:
            for host in (A, B):
                host.kill()
            outputs.append(process.communicate()[0] + "\n(ended by the trial)\n")
    said = [[line for line in text.splitlines() if line.startswith(("ochat train:", "(ended"))] for text in outputs]
    codes = [process.returncode for process in processes]
    return {"exit_codes": codes, "seconds": round(time.monotonic() - start, 1), "said": said, "outputs": outputs}


def wait_for_steps(trial: Trial, run: str, steps: int, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until a run has written so many steps."""
    path = trial.folder / "runs" / run / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < steps:
        assert all(process.poll() is None for process in processes), "ended before it was disturbed"
        time.sleep(0.05)


# ---- what is tried ----


def same_as_one_host(trial: Trial, launcher: str) -> dict[str, Any]:
    """A run over two hosts with a shared disk, against one host with two ranks."""
    found = finish(trial.start(launcher, launcher))
    return {**found, "bit_equal": found["exit_codes"] == [0, 0] and trial.equals(launcher, "one_host")}


def killed_host(trial: Trial, victim: Host) -> dict[str, Any]:
    """One host loses its power in the middle; then both are started again."""
    run = f"killed_{victim.name}"
    processes = trial.start("torchrun", run)
    wait_for_steps(trial, run, SAVE_EVERY + 1, processes)
    victim.kill()
    found = finish(processes)
    again = finish(trial.start("torchrun", run))
    resumed = any(
        "resumes from" in line for line in again["outputs"][0].splitlines() + again["outputs"][1].splitlines()
    )
    return {**found, "resumed": resumed, "bit_equal": again["exit_codes"] == [0, 0] and trial.equals(run, "one_host")}


def cut_cable(trial: Trial) -> dict[str, Any]:
    """The network between the hosts goes away; the disk stays."""
    processes = trial.start("torchrun", "cut", "train.hang_timeout_seconds=15")
    wait_for_steps(trial, "cut", SAVE_EVERY + 1, processes)
    _output("ip", "-n", B.name, "link", "set", f"veth-{B.name}", "down")
    try:
        return finish(processes, seconds=120.0)
    finally:
        _output("ip", "-n", B.name, "link", "set", f"veth-{B.name}", "up")


def own_disks(trial: Trial, launcher: str) -> dict[str, Any]:
    """Each host has its own run folder under the same path."""
    run = f"own_disk_{launcher}"
    seen, own = trial.folder / "runs" / run, trial.folder / f"disk-of-b-{launcher}"
    seen.mkdir(parents=True)
    own.mkdir()
    found = finish(trial.start(launcher, run, b=replace(B, disk={own: seen})))
    return {**found, "steps": (seen / "metrics.jsonl").exists(), "left_on_b": sorted(str(p) for p in own.rglob("*"))}


def own_copy_of_data(trial: Trial, *, same: bool) -> dict[str, Any]:
    """Host B has its own copy of the prepared data, the same or another."""
    run, seen = f"copy_{same}", trial.folder / "data" / "quickstart" / "prepared"
    own = trial.folder / f"copy-{same}"
    _output("cp", "-r", str(seen), str(own))
    if not same:
        path = own / "manifest.json"
        content = json.loads(path.read_text(encoding="utf-8")) | {"fingerprint": "0" * 64}
        path.write_text(json.dumps(content | {"digest": manifest_digest(content)}), encoding="utf-8")
    found = finish(trial.start("torchrun", run, b=replace(B, disk={own: seen})))
    return {**found, "bit_equal": found["exit_codes"] == [0, 0] and trial.equals(run, "one_host")}


def no_data(trial: Trial) -> dict[str, Any]:
    """Host B has no prepared data."""
    seen, own = trial.folder / "data" / "quickstart" / "prepared", trial.folder / "nothing"
    own.mkdir()
    return finish(trial.start("torchrun", "no_data", b=replace(B, disk={own: seen})))


def other_recipe(trial: Trial) -> dict[str, Any]:
    """A `--set` on one host only."""
    return finish(trial.start("torchrun", "other_recipe", b_more=["optimizer.learning_rate=1e-4"]))


def no_recipe(trial: Trial, launcher: str) -> dict[str, Any]:
    """Host B lacks the recipe: its ranks end before they meet the others."""
    return finish(trial.start(launcher, f"no_recipe_{launcher}", b_recipe=trial.folder / "none.yaml"), seconds=800.0)


TRIALS = {
    "torchrun": lambda trial: same_as_one_host(trial, "torchrun"),
    "deepspeed": lambda trial: same_as_one_host(trial, "deepspeed"),
    "kill-b": lambda trial: killed_host(trial, B),
    "kill-a": lambda trial: killed_host(trial, A),
    "cut": cut_cable,
    "own-disks-torchrun": lambda trial: own_disks(trial, "torchrun"),
    "own-disks-deepspeed": lambda trial: own_disks(trial, "deepspeed"),
    "same-copy": lambda trial: own_copy_of_data(trial, same=True),
    "other-copy": lambda trial: own_copy_of_data(trial, same=False),
    "no-data": no_data,
    "other-recipe": other_recipe,
    "no-recipe-torchrun": lambda trial: no_recipe(trial, "torchrun"),
    "no-recipe-deepspeed": lambda trial: no_recipe(trial, "deepspeed"),
}


def prepare(folder: Path) -> Trial:
    """Make and prepare the quickstart's data, and train it on one host with two ranks."""
    trial = Trial(folder=folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    one_host = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ochat_train"]
    for command in (
        ["-m", "ochat_train.quickstart.make", "data/quickstart"],
        ["-c", "from ochat_train.cli.main import run_as_script; run_as_script()", "prepare", str(RECIPE)],
        [*one_host, *trial.arguments("one_host")],
    ):
        subprocess.run(
            [*PYTHON, *command],
            cwd=folder,
            env={**environment, "TORCHDYNAMO_DISABLE": "1"},
            check=True,
            stdout=sys.stderr,
        )
    return trial


def main() -> None:
    """Run the trials and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"trials, with commas between: {', '.join(TRIALS)}")
    parser.add_argument("--json", type=Path, help="write results here")
    parser.add_argument("--show", action="store_true", help="print everything that the hosts print")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(TRIALS)
    if unknown := [name for name in names if name not in TRIALS]:
        parser.error(f"--only: no such trial: {', '.join(unknown)}")
    results = {}
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as folder, cable():
        trial = prepare(Path(folder))
        for name in names:
            result = TRIALS[name](trial)
            outputs = result.pop("outputs")
            results[name] = result
            print(json.dumps({name: result}, indent=1), flush=True)
            if options.show:
                print("\n".join(outputs), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if differing := [name for name, result in results.items() if result.get("bit_equal") is False]:
        sys.exit(f"not bit-equal to one host: {', '.join(differing)}")


if __name__ == "__main__":
    main()
