"""`ochat doctor`: what this machine has for training, without a recipe."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from data_pipeline.files import cannot_write
from ochat_train.check.findings import Finding, ok, problem, run_checks, warning
from ochat_train.check.versions import check_versions
from ochat_train.hub.models import ANSWER_SECONDS, LOG_IN
from ochat_train.model.attention.choose import missing_packages
from ochat_train.system.library_output import quiet_libraries
from ochat_train.system.requirements import installed_version
from ochat_train.system.sizes import GIB

STALE_LOCK_SECONDS = 600.0  # the longest build of DeepSpeed's optimizer takes two minutes
_TRIED_BYTES = 256 * 2**20
_CHECKPOINT_GB = 101.0  # of a 7B model of which all weights are trained: 14 bytes for each of 7.24 billion parameters
_SLOW_BYTES_PER_SECOND = 200e6
_FEWEST_SHARED_BYTES = GIB
_FEWEST_MEMORY_BYTES = 8 * GIB  # what docs/install.md asks for
_BFLOAT16 = (8, 0)  # compute capability
_EXTRAS: Mapping[str, Mapping[str, str]] = {
    "adapters": {"peft": "adapters", "accelerate": "adapters", "bitsandbytes": "QLoRA"},
    "gpu": {"torchao": "model.float8"},
    "serve": {"starlette": "ochat serve", "uvicorn": "ochat serve", "httpx": "ochat chat and ochat eval"},
    "tracking": {"tensorboard": "tracking.tensorboard", "wandb": "tracking.wandb"},
}


def examine(folder: Path, *, online: bool) -> list[Finding]:
    """What is found, in the order in which it is worth reading. folder: on the disk to try. online: ask the Hub too."""
    quiet_libraries()
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", check_versions),
        ("versions", _packages),
        ("gpu", _gpus),
        ("gpu", _kernels),
        ("compiler", partial(compilers, os.environ, find=shutil.which)),
        ("compiler", lambda: stale_locks(extensions_folder(os.environ), now=time.time())),
        ("memory", lambda: memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max"))),
        ("memory", lambda: shared_memory(Path("/dev/shm"), num_gpus=torch.cuda.device_count())),
        ("disk", lambda: disk(folder)),
    ]
    if online:
        checks.append(("hub", _hub))
    return run_checks(checks)


def _packages() -> Iterator[Finding]:
    """Python, and packages that only some recipes and verbs need."""
    yield ok("versions", "Python", platform.python_version())
    for extra, packages in _EXTRAS.items():
        for name, purpose in packages.items():
            found = installed_version(name)
            if found is not None:
                yield ok("versions", name, found)
            elif extra != "gpu" or torch.cuda.is_available():
                text = f"not installed; only {purpose} needs it"
                yield warning("versions", name, text, f'pip install -e ".[{extra}]"')


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        text = "torch sees no GPU" if built else "this torch is built without CUDA"
        remedy = "`nvidia-smi` says whether the driver works" if built else "on a GPU host, install torch with CUDA"
        yield warning("gpu", "", f"{text}; training uses the CPU, for tests and toys alone", remedy)
        return
    count = torch.cuda.device_count()
    for number in range(count):
        yield from _gpu(number)
    yield ok("gpu", "CUDA", f"{torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
    cut_off = [number for number in range(1, count) if not torch.cuda.can_device_access_peer(0, number)]
    if cut_off:
        text = f"GPU 0 cannot read the memory of {cut_off} directly: exchange of gradients goes through the CPU"
        yield warning("gpu", "NCCL", text, "`nvidia-smi topo -m` shows the links; virtual machines may hide them")


def _gpu(number: int) -> Iterator[Finding]:
    place, properties = f"GPU {number}", torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    text = f"{properties.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, compute capability "
    text += f"{properties.major}.{properties.minor}"
    if (properties.major, properties.minor) < _BFLOAT16:
        yield problem("gpu", place, f"{text}: no bfloat16", "use `model.precision: float32`, or an Ampere GPU or newer")
    elif free < 0.9 * total:
        yield warning("gpu", place, text, "another process uses it: `nvidia-smi` names it")
    else:
        yield ok("gpu", place, text)


def _kernels() -> Iterator[Finding]:
    """The attention kernels that are installed; the model decides which of them is used."""
    missing = missing_packages()
    installed = ", ".join(name for name, text in missing.items() if text is None)
    yield ok("gpu", "attention", f"installed: {installed}; `ochat check RECIPE` says which one a run uses")
    is_hopper = torch.cuda.is_available() and torch.cuda.get_device_capability(0) >= (9, 0)
    if is_hopper and (text := missing["flash_attention_4"]) is not None:
        said = f"flash_attention_4, the fastest here: {text}"
        yield warning("gpu", "attention", said, 'pip install -e ".[gpu]"')


def compilers(environment: Mapping[str, str], *, find: Callable[[str], str | None]) -> Iterator[Finding]:
    """What DeepSpeed builds its CPU optimizer with. find: the path of a program, None where it is missing."""
    wanted = {environment.get("CXX", "c++"): "a C++ compiler", "ninja": "ninja"}
    missing = [what for program, what in wanted.items() if find(program) is None]
    if missing:
        text = f"{' and '.join(missing)} not found; only `deepspeed.offload_optimizer` needs them"
        yield warning("compiler", "", text, "install g++ with your system's packages, and ninja with pip")
    else:
        yield ok("compiler", "", f"{', '.join(wanted)}: DeepSpeed can build its CPU optimizer")


def extensions_folder(environment: Mapping[str, str]) -> Path:
    """Where torch builds extensions, for all versions of Python and CUDA."""
    cache = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".cache")
    return Path(environment.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")


def stale_locks(folder: Path, *, now: float) -> Iterator[Finding]:
    """Locks of builds that have ended without removing them: every later build waits for them, without end.

    folder: of `extensions_folder`. now: seconds since 1970.
    """
    locks = [*folder.glob("*/lock"), *folder.glob("*/*/lock")]
    old = [lock for lock in locks if now - lock.stat().st_mtime > STALE_LOCK_SECONDS]
    for lock in old:
        text = f"the build of {lock.parent.name} ended without removing its lock; a run that needs it waits without end"
        remedy = f"remove the file, unless something is being built: rm {shlex.quote(str(lock))}"
        yield problem("compiler", lock, text, remedy)
    if locks and not old:
        yield warning("compiler", folder, "something is being built", "wait ten minutes and run this again")


def memory(meminfo: Path, limit: Path) -> Iterator[Finding]:
    """CPU memory. meminfo: /proc/meminfo. limit: file of the container's limit, which may be missing."""
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", meminfo.read_text(), flags=re.MULTILINE))
    total, available = (int(sizes[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    container = limit.read_text().strip() if limit.is_file() else "max"
    if container.isdigit() and int(container) < total:
        total = int(container)
        available = min(available, total)
    text = f"{available / GIB:.0f} of {total / GIB:.0f} GiB free"
    if total < _FEWEST_MEMORY_BYTES:
        yield warning("memory", "", text, "less than 8 GiB: loading a base may end with `Killed`")
    else:
        yield ok("memory", "", text)


def shared_memory(folder: Path, *, num_gpus: int) -> Iterator[Finding]:
    """Where NCCL and workers exchange data on one host. folder: /dev/shm."""
    size = shutil.disk_usage(folder).total if folder.is_dir() else 0
    text = f"{size / GIB:.1f} GiB"
    if num_gpus > 1 and size < _FEWEST_SHARED_BYTES:
        remedy = "start the container with `--ipc=host` or `--shm-size 8g`"
        yield warning("memory", folder, f"{text} is little for {num_gpus} GPUs", remedy)
    elif size:
        yield ok("memory", folder, text)


def disk(
    folder: Path, *, num_bytes: int = _TRIED_BYTES, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Finding]:
    """How fast a folder's disk is written, and what is free. num_bytes: written to a file that is removed again."""
    try:
        seconds = _write_seconds(folder, num_bytes, clock)
    except OSError as error:
        found = cannot_write(folder, error, "name another disk with --folder")
        yield problem("disk", found.place, found.problem, found.remedy)
        return
    speed, free = num_bytes / seconds, shutil.disk_usage(folder).free
    minutes = _CHECKPOINT_GB * 1e9 / speed / 60
    text = f"{free / GIB:.0f} GiB free, written with {speed / 1e9:.2f} GB/s; a checkpoint of all weights of a 7B model "
    text += f"({_CHECKPOINT_GB:.0f} GB) would take {minutes:.1f} min"
    if speed < _SLOW_BYTES_PER_SECOND:
        yield warning("disk", folder.absolute(), text, "use a local disk for `output_dir`, or save less often")
    else:
        yield ok("disk", folder.absolute(), text)


def _write_seconds(folder: Path, num_bytes: int, clock: Callable[[], float]) -> float:
    block = os.urandom(2**20)  # some disks compress
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".ochat-doctor-") as file:
        start = clock()
        for _ in range(max(1, num_bytes // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return max(clock() - start, 1e-9)


def _hub() -> Iterator[Finding]:
    """Whether the Hub answers, and as whom."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield warning("hub", constants.ENDPOINT, "HF_HUB_OFFLINE is set", "unset it where bases are to be downloaded")
        return
    try:
        HfApi().model_info("openchat/openchat_3.5", timeout=ANSWER_SECONDS)
    except Exception as error:  # whatever the HTTP library raises
        text = f"cannot be reached ({type(error).__name__})"
        yield problem("hub", constants.ENDPOINT, text, "check network, proxy and HF_ENDPOINT; cached bases still work")
        return
    if get_token() is None:
        yield ok("hub", constants.ENDPOINT, f"answers; for gated bases and pushing, {LOG_IN}")
        return
    try:
        yield ok("hub", constants.ENDPOINT, f"answers; logged in as {HfApi().whoami()['name']}")
    except Exception:  # whatever the HTTP library raises
        yield problem("hub", "HF_TOKEN", "the Hub does not accept the token", LOG_IN)


def num_problems(findings: Sequence[Finding]) -> int:
    """How many of them would stop a run."""
    return sum(finding.level == "problem" for finding in findings)
