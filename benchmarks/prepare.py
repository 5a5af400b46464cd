"""How fast `ochat prepare` is beside the tokenizer alone, and how much memory it takes.

    python benchmarks/prepare.py                                  # 60 MB of made conversations, Mistral-7B's tokenizer
    python benchmarks/prepare.py --megabytes 1000 --pairs 1       # memory on 1 GB
    python benchmarks/prepare.py --data chats.jsonl --format sharegpt --tokenizer FOLDER

Both measurements run in new processes, turn by turn (A B A B), so that a busy machine slows both:
raw tokenizers   the texts of all messages are in memory; `Tokenizer.encode_batch_fast` on all cores; only encoding is
timed ochat prepare    `data_pipeline.prepare.prepare` with a process per core, from the raw file to the finished folder
Both speeds are tokens of message text (as the raw tokenizer counts them) per second. Printed: a table with the median
of each; the speed of prepare divided by that of the raw tokenizer, the median over pairs (target: 0.80); peak memory.
Memory is PSS (shared pages are divided among their users) summed over the process and its children every 0.2 s.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET_RATIO = 0.80
MAX_LENGTH_TOKENS = 8192
TEXTS_PER_BATCH = 2048  # the fastest of 16 to 16,384 on two cores
SAMPLE_EVERY_SECONDS = 0.2
MIB = 1 << 20


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.measure:
        measure = measure_raw if options.measure == "raw" else measure_prepare
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory(dir=options.work_dir, prefix="bench-prepare-") as folder:
        work = Path(folder)
        options.tokenizer = options.tokenizer or mistral_tokenizer(work / "tokenizer")
        if options.data is None:
            options.data = made_data(work / "made.jsonl", options.megabytes)
        pairs = [(run(options, "raw", work), run(options, "prepare", work)) for _ in range(options.pairs)]
        result = summary(options, pairs)
    print(json.dumps(result) if options.json else table(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=60, help="size of the made data (default: 60)")
    parser.add_argument("--data", type=Path, help="your own conversations instead of made ones")
    parser.add_argument("--format", default="sharegpt", choices=_text_formats())
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer folder (default: Mistral-7B's, from package mistral-common)"
    )
    parser.add_argument(
        "--template", default="openchat_3.5", help="a built-in one, `base` (the tokenizer's own), or a .jinja file"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes of the preparation (default: one per core)"
    )
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each kind (default: 3)")
    parser.add_argument(
        "--work-dir", type=Path, help="where data is written, and deleted at the end (default: system's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--measure", choices=["raw", "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--prepared-dir", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- inputs ----


def made_data(path: Path, megabytes: float) -> Path:
    """A JSONL file of made conversations in format `sharegpt`."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from benchmarks.made_conversations import write_conversations

    write_conversations(path, num_bytes=int(megabytes * 1e6))
    return path


def mistral_tokenizer(folder: Path) -> Path:
    """The Mistral-7B-v0.1 tokenizer (32,000 pieces) as a folder."""
    import transformers

    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        sys.exit(
            "the default tokenizer needs `pip install mistral-common sentencepiece`; or name one with --tokenizer "
            "FOLDER"
        )
    source = folder / "source"
    source.mkdir(parents=True)
    shutil.copy(Path(spec.origin).parent / "data" / "tokenizer.model.v1", source / "tokenizer.model")
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, **tokens}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    backend = transformers.AutoTokenizer.from_pretrained(source).backend_tokenizer
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **tokens}))
    return folder


def _text_formats() -> tuple[str, ...]:
    from data_pipeline.formats.table import TEXT_FORMATS

    return TEXT_FORMATS


def _source(options: argparse.Namespace) -> Any:
    from data_pipeline.settings.sources import SourceSettings

    own_class = {} if options.format == "openchat" else {"class": "expert"}
    return SourceSettings.model_validate({"path": str(options.data), "format": options.format, **own_class})


# ---- measurements, each in a separate process ----


def measure_raw(options: argparse.Namespace) -> dict[str, float]:
    """Seconds to encode the texts of all messages, and their tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    texts = _message_texts(options)
    seconds, num_tokens = 0.0, 0
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        batch = texts[start : start + TEXTS_PER_BATCH]
        began = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        seconds += time.perf_counter() - began
        num_tokens += sum(map(len, encodings))
    return {"seconds": seconds, "tokens": num_tokens, "texts": len(texts)}


def _message_texts(options: argparse.Namespace) -> list[str]:
    from data_pipeline.read.conversations import BadRow, parse_rows
    from data_pipeline.read.sources import chunks, read_chunk

    source, texts = _source(options), []
    for chunk in chunks(source, where="--data"):
        for item in parse_rows(read_chunk(chunk), source=source):
            if not isinstance(item, BadRow):  # the preparation counts those
                texts += [message.content for message in item.messages]
    return texts


def measure_prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to prepare the data, and the account of it."""
    from data_pipeline.prepare.job import PrepareJob
    from data_pipeline.prepare.prepare import prepare
    from data_pipeline.settings.classes import ClassSettings
    from data_pipeline.settings.data import DataSettings

    began = time.perf_counter()
    template, tokenizer = _prompts(options)
    data = DataSettings(
        prepared_dir=str(options.prepared_dir),
        classes={} if options.format == "openchat" else {"expert": ClassSettings(condition="GPT4 Correct", weight=1.0)},
        sources=[_source(options)],
        bad_rows="drop",
    )
    job = PrepareJob(data=data, template=template, tokenizer=tokenizer, max_length_tokens=MAX_LENGTH_TOKENS, seed=0)
    manifest, _ = prepare(job, num_workers=options.workers)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": manifest.splits["train"].tokens, "ledger": asdict(manifest.ledger)}


def _prompts(options: argparse.Namespace) -> tuple[Any, Any]:
    """Template and tokenizer."""
    from data_pipeline.prompt.base_template.load import BaseTemplateSettings, load_base_prompts
    from data_pipeline.prompt.base_template.template import BASE, is_jinja
    from data_pipeline.prompt.chat_template import CHAT_TEMPLATE
    from data_pipeline.prompt.templates import TEMPLATES
    from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
    from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec

    files = find_tokenizer_files(str(options.tokenizer), more=[CHAT_TEMPLATE])
    if not is_jinja(options.template):
        template = TEMPLATES[options.template]
        return template, load_tokenizer_spec(files, template)
    settings = BaseTemplateSettings(
        path=None if options.template == BASE else Path(options.template),
        condition_in="system",
        rewritten_history="one_row_per_answer",
        variables={},
        date=None,
    )
    return load_base_prompts(files, settings)


def run(options: argparse.Namespace, kind: str, work: Path) -> dict[str, Any]:
    """One measurement, with `peak_mib` of memory added."""
    prepared_dir = work / "prepared"
    command = [
        sys.executable,
        __file__,
        "--measure",
        kind,
        "--data",
        options.data,
        "--format",
        options.format,
        "--tokenizer",
        options.tokenizer,
        "--template",
        options.template,
        "--workers",
        options.workers,
        "--prepared-dir",
        prepared_dir,
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "true"}
    cpu = CpuClock()
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    memory = MemorySampler(process.pid)
    output, _ = process.communicate()
    memory.stop()
    other_cpu_ratio = cpu.other_ratio()
    shutil.rmtree(prepared_dir, ignore_errors=True)
    if process.returncode != 0:
        sys.exit(f"measurement `{kind}` failed with exit code {process.returncode}")
    return {**json.loads(output), "peak_mib": memory.peak_bytes / MIB, "other_cpu_ratio": other_cpu_ratio}


# ---- memory, and how busy the machine is ----


class MemorySampler:
    """Watches the memory of a process and its descendants until it is stopped; `peak_bytes` is the largest sum of
    PSS.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stopped = threading.Event()
        self.peak_bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid in _family(self._pid)))

    def stop(self) -> None:
        """Take no more samples."""
        self._stopped.set()
        self._thread.join()


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(child) for child in file.read_text().split()]
        except OSError:
            continue  # the thread has ended
    return [pid, *(member for child in children for member in _family(child))]


def _pss_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # the process has ended
        pass
    return 0


class CpuClock:
    """Tells how much of the machine's time went to processes that are not ours, since it was made."""

    def __init__(self) -> None:
        self._start = self._now()

    def _now(self) -> tuple[float, float, float]:
        ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle = ticks[3] + ticks[4]  # idle, iowait
        return sum(ticks) / os.sysconf("SC_CLK_TCK"), idle / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])

    def other_ratio(self) -> float:
        """From 0 (we are alone) to 1; processes of ours count once they have ended."""
        total, idle, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return max(0.0, (total - idle - own) / total)


# ---- the report ----


def summary(options: argparse.Namespace, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the pairs."""
    num_tokens = pairs[0][0]["tokens"]

    def row(side: int) -> dict[str, float]:
        seconds = [pair[side]["seconds"] for pair in pairs]
        middle = statistics.median(seconds)
        return {
            "seconds": middle,
            "seconds_of_each": seconds,
            "million_tokens_per_second": num_tokens / middle / 1e6,
            "peak_mib": max(pair[side]["peak_mib"] for pair in pairs),
            "other_cpu_ratio": max(pair[side]["other_cpu_ratio"] for pair in pairs),
        }

    ratios = [raw["seconds"] / prepare["seconds"] for raw, prepare in pairs]
    ledger = pairs[0][1]["ledger"]
    return {
        "megabytes": options.data.stat().st_size / 1e6,
        "conversations": {key: ledger[key] for key in ("read", "kept", "truncated", "dropped")},
        "messages": pairs[0][0]["texts"],
        "message_tokens": num_tokens,
        "prepared_tokens": pairs[0][1]["tokens"],
        "cores": os.cpu_count(),
        "workers": options.workers,
        "pairs": options.pairs,
        "raw": row(0),
        "prepare": row(1),
        "ratio": statistics.median(ratios),
        "ratio_of_each": ratios,
        "target_ratio": TARGET_RATIO,
    }


def table(result: dict[str, Any]) -> str:
    """The summary as text."""
    counts = result["conversations"]
    lines = [
        f"{result['megabytes']:.0f} MB, {counts['read']:,} conversations, {result['messages']:,} messages, "
        f"{result['message_tokens'] / 1e6:.2f} M tokens of text; {result['cores']} cores, {result['workers']} workers",
        f"kept {counts['kept']:,} (truncated {counts['truncated']:,}), dropped {sum(counts['dropped'].values()):,}",
        "",
        f"{'':<16}{'seconds':>10}{'M tokens/s':>13}{'peak MiB':>11}   seconds of each run",
    ]
    for name, key in (("raw tokenizers", "raw"), ("ochat prepare", "prepare")):
        row = result[key]
        runs = " ".join(f"{seconds:.1f}" for seconds in row["seconds_of_each"])
        lines.append(
            f"{name:<16}{row['seconds']:>10.1f}{row['million_tokens_per_second']:>13.2f}{row['peak_mib']:>11,.0f}   "
            f"{runs}"
        )
    busy = max(result[key]["other_cpu_ratio"] for key in ("raw", "prepare"))
    lines.append(f"\nother processes took up to {100 * busy:.0f} % of the CPU time; measure again if that is much")
    each = " ".join(f"{ratio:.3f}" for ratio in result["ratio_of_each"])
    lines.append(f"prepare / raw speed: {result['ratio']:.3f} (median of {each}; target {result['target_ratio']:.2f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
