"""Make the quickstart's raw data and tokenizer: `python -m ochat_train.quickstart.make data/quickstart`.

expert.jsonl        few conversations, every answer right         (format `messages`)
suboptimal.jsonl    many conversations, most answers wrong        (format `sharegpt`)
held_out.jsonl      questions that are in neither, to score with
tokenizer/          a small byte-level BPE, trained on the two
base/               with --base: a small Mistral with random weights and that tokenizer, to train from like any base
model
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ochat_train.quickstart.tasks import Problem, draw_problem
from ochat_train.system.library_output import quiet_libraries
from ochat_train.system.scripts import run_script

SEED = 0
NUM_EXPERT = 2_000
NUM_SUBOPTIMAL = 8_000
NUM_HELD_OUT = 300
WRONG_RATIO = 0.75  # of the suboptimal teacher's answers
VOCAB_SIZE = 512
_SYSTEM_TEXTS = ("You are a helpful assistant.", "Answer briefly.")
_BOS = "<s>"
BASE_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
# Part of the tokenizer's training text, so that a prefix takes a handful of tokens as in a large vocabulary.
_ROLE_PREFIXES = ("GPT4 Correct User:", "GPT4 Correct Assistant:", "GPT3 User:", "GPT3 Assistant:")


def main() -> None:
    """Write all files; the same ones every time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", action="store_true", help="also write base/, a small model to train from")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    experts = [_conversation(rng, wrong_ratio=0.0) for _ in range(NUM_EXPERT)]
    suboptimal = [_conversation(rng, wrong_ratio=WRONG_RATIO) for _ in range(NUM_SUBOPTIMAL)]
    _write(folder / "expert.jsonl", [_as_messages(*c) for c in experts])
    _write(folder / "suboptimal.jsonl", [_as_sharegpt(*c) for c in suboptimal])
    _write(folder / "held_out.jsonl", [_as_question(problem) for problem in _held_out(rng)])
    texts = [text for system, turns in experts + suboptimal for text in (system, *(t for turn in turns for t in turn))]
    write_tokenizer(folder / "tokenizer", texts + list(_ROLE_PREFIXES) * len(experts))
    if options.base:
        write_base(folder / "base", folder / "tokenizer")
    print(
        f"{folder}: {NUM_EXPERT:,} expert and {NUM_SUBOPTIMAL:,} suboptimal conversations, {NUM_HELD_OUT} held-out "
        "questions"
    )


def is_held_out(question: str) -> bool:
    """Whether a question is kept from training: one in ten, by its text."""
    return hashlib.sha256(question.encode()).digest()[0] % 10 == 0


def _training_problem(rng: random.Random) -> Problem:
    return next(problem for problem in iter(lambda: draw_problem(rng), None) if not is_held_out(problem.question))


def _conversation(rng: random.Random, *, wrong_ratio: float) -> tuple[str, list[tuple[str, str]]]:
    """A system text (often none) and one to three turns of (question, answer)."""
    system = rng.choice(_SYSTEM_TEXTS) if rng.random() < 0.2 else ""
    turns = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        problem = _training_problem(rng)
        turns.append((problem.question, problem.wrong if rng.random() < wrong_ratio else problem.right))
    return system, turns


def _held_out(rng: random.Random) -> Iterator[Problem]:
    seen: set[str] = set()
    while len(seen) < NUM_HELD_OUT:
        problem = draw_problem(rng)
        if is_held_out(problem.question) and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def _as_question(problem: Problem) -> dict[str, object]:
    return {"task": problem.task, "question": problem.question, "answer": problem.right}


def _as_messages(system: str, turns: list[tuple[str, str]]) -> dict[str, object]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _as_sharegpt(system: str, turns: list[tuple[str, str]]) -> dict[str, object]:
    items = [{"from": "system", "value": system}] if system else []
    for question, answer in turns:
        items += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": items}


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tokenizer(folder: Path, texts: list[str], *, vocab_size: int = VOCAB_SIZE) -> None:
    """Train a byte-level BPE on texts and write it as a tokenizer folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(_BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, bos_id)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": _BOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_base(folder: Path, tokenizer_dir: Path) -> None:
    """Write a Mistral with random weights, the same every time, as a Hugging Face folder with this tokenizer."""
    import torch
    import transformers

    quiet_libraries()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir, trust_remote_code=False)
    config = transformers.MistralConfig(
        **BASE_CONFIG, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=None
    )
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.save_pretrained(folder)
    shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)


if __name__ == "__main__":
    run_script("ochat_train.quickstart.make", main)
