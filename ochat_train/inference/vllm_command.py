"""How vLLM is started for an export: which Python, which flags, which adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object
from ochat_train.adapter.folder import base_of, is_adapter, num_rows_needed
from ochat_train.inference.served_model import ServedModel
from ochat_train.model.weights.files import ADAPTER_CONFIG

_LOOK_SECONDS = 60.0
# Prints the version, whatever the distribution is called (builds for CPUs have other names).
_LOOK = """
import importlib.util, importlib.metadata as metadata, json
version = None
if importlib.util.find_spec("vllm"):
    try:
        version = metadata.version("vllm")
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get("vllm")
        version = metadata.version(names[0]) if names else "of unknown version"
print(json.dumps(version))
"""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes (vllm/config/lora.py, 0.26)
# What is decided here, and what the answers must not depend on.
_OURS = (
    "--model", "--served-model-name", "--host", "--port", "--uds", "--api-key", "--generation-config",
    "--max-model-len", "--enable-lora", "--lora-modules", "--max-lora-rank", "--middleware", "--tokenizer",
    "--root-path",
)  # fmt: skip
_HOW_TO = (
    "make an environment for it (python3 -m venv vllm-env && vllm-env/bin/pip install vllm) and name it with "
    "`--vllm-python vllm-env/bin/python`"
)


@dataclass(frozen=True, kw_only=True)
class VllmPython:
    """A Python that vLLM is installed for."""

    path: str
    version: str


def find_vllm(python: str | None) -> VllmPython | None:
    """vLLM in the environment of a Python, this one for None; None where it is not installed there.

    Raises UserError for a named Python that does not run.
    """
    path = python or sys.executable
    try:
        done = subprocess.run(
            [path, "-c", _LOOK],
            capture_output=True,
            text=True,
            timeout=_LOOK_SECONDS,
            env=environment(path),
            check=True,
        )
        version = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        if python is None:
            return None
        detail = getattr(error, "stderr", None) or error
        raise UserError(f"--vllm-python {python}", f"does not run: {str(detail).strip()[-300:]}") from None
    return VllmPython(path=path, version=str(version)) if version else None


def require_vllm(python: str | None) -> VllmPython:
    """As `find_vllm`; raises UserError where vLLM is not there."""
    found = find_vllm(python)
    if found is None:
        place = f"--vllm-python {python}" if python else "--engine vllm"
        problem = f"vLLM is not installed for {python or sys.executable}"
        raise UserError(place, f"{problem}; its packages do not go together with those of a training", _HOW_TO)
    return found


def environment(python: str) -> dict[str, str]:
    """The variables of a process of that Python: ours, without what belongs to the environment of this one."""
    variables = dict(os.environ)
    if (
        os.path.realpath(python) != os.path.realpath(sys.executable)
        or Path(python).parent != Path(sys.executable).parent
    ):
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            variables.pop(name, None)
    return variables


def command_of(
    served: ServedModel,
    vllm: VllmPython,
    *,
    adapters: Mapping[str, Path],
    flags: Sequence[str],
    listen: Sequence[str],
) -> list[str]:
    """The command line. listen: flags of the address. Raises UserError for flags that are ours, and for adapters that
    vLLM cannot serve.
    """
    for flag in flags:
        if flag.split("=")[0] in _OURS:
            raise UserError(flag, "is set by this command, and not by flags of vLLM", "leave it out after `--`")
    loras = dict(adapters)
    model = str(served.folder.resolve())
    if is_adapter(served.folder):  # the base answers to no name of ours
        loras, model = {served.name: served.folder, **loras}, str(served.base)
    command = [vllm.path, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", base_name(served), *listen]
    command += ["--max-model-len", str(served.context_tokens)]
    # answers depend on what a request says, and on nothing that a file says
    command += ["--generation-config", "vllm"]
    if loras:
        rank = max(lora_rank(folder, served) for folder in loras.values())
        command += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules"]
        command += [f"{name}={folder.resolve()}" for name, folder in loras.items()]
    return [*command, *flags]


def base_name(served: ServedModel) -> str:
    """What vLLM calls the model of --model."""
    return f"{served.name}.base" if is_adapter(served.folder) else served.name


def lora_rank(folder: Path, served: ServedModel) -> int:
    """The smallest --max-lora-rank that holds an adapter. Raises UserError for one that vLLM cannot serve."""
    remedy = "merge it: `ochat export` without `--adapter`, and serve that"
    if not is_adapter(folder):
        raise UserError(
            folder, f"is no adapter ({ADAPTER_CONFIG} is missing)", "name a folder of `ochat export --adapter`"
        )
    config = read_json_object(folder / ADAPTER_CONFIG, remedy="export the adapter again")
    if num_rows_needed(folder):
        raise UserError(folder, "trains rows of the embedding (new control tokens), which vLLM does not load", remedy)
    for name, what in _UNSERVED.items():
        if config.get(name) not in (None, False, [], {}, "none"):
            raise UserError(folder, f"uses `{name}` ({what}), which vLLM does not load", remedy)
    _check_base_of(folder, served)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    rank = max((number for number in ranks if isinstance(number, int)), default=0)
    fitting = [number for number in _RANKS if number >= rank > 0]
    if not fitting:
        raise UserError(folder, f"has rank {rank}, and vLLM takes 1 to {_RANKS[-1]}", remedy)
    return fitting[0]


_UNSERVED = {
    "modules_to_save": "whole modules that are trained",
    "use_dora": "DoRA",
    "bias": "trained biases",
    "rank_pattern": "other ranks for some modules",
    "alpha_pattern": "other scales for some modules",
}


def _check_base_of(folder: Path, served: ServedModel) -> None:
    """An adapter of another base would answer nonsense. A name or a folder that is another is refused; a base that was
    trained further (this model is an export) has other weights than the one that the adapter names.
    """
    if is_adapter(served.folder):
        base, _ = base_of(folder)
        if folder != served.folder and base != base_of(served.folder)[0]:
            raise UserError(folder, f"is an adapter of {base}, and not of {served.base}", "serve it alone")
        return
    base, _ = base_of(folder)
    if base is None or _place(base) != _place(str(served.folder)):
        problem = f"is an adapter of {base}, and not of {served.folder}"
        raise UserError(folder, problem, "serve the adapter's own folder, on its base")


def _place(text: str) -> Any:
    return Path(text).resolve() if Path(text).is_dir() else text
