"""A file of prompts, and their answers in the same order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data_pipeline import nesting
from data_pipeline.errors import UserError
from data_pipeline.text_rules import quoted, text_problem
from ochat_train.inference.generate import Generator

_BATCH = 32  # answered together
_FIELDS = ("prompt", "condition", "system")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a user says. condition: None for the export's own. system: empty for none."""

    prompt: str
    condition: str | None = None
    system: str = ""

    def messages(self) -> list[dict[str, str]]:
        """As a conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]


def load_prompts(path: Path, *, condition: str | None, system: str) -> list[Prompt]:
    """Read prompts, one on each line: a JSON text, or an object with `prompt` and, if wanted, `condition` and `system`.

    condition, system: where a line does not say. Raises UserError for a file or a line that is not like that.
    """
    try:
        # a mark of the byte order is left out; not splitlines(), which also splits at characters of a text (U+2028)
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}", f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = [
        _prompt(line, f"{path}:{number}", condition=condition, system=system)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not found:
        raise UserError(f"--prompts {path}", "holds no prompts")
    return found


def check_texts(place: str, texts: Mapping[str, str | None]) -> None:
    """Raise UserError for a text that could not have been in training, and would be changed silently."""
    for name, text in texts.items():
        if text is not None and (problem := text_problem(text)) is not None:
            raise UserError(place, f"`{name}` {problem}")


def answers_in_order(
    generator: Generator, prompts: Sequence[Prompt], *, max_new_tokens: int, temperature: float
) -> Iterator[str]:
    """One answer for each prompt, some computed together."""
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        places = sorted(range(len(batch)), key=lambda place: str(batch[place].condition))
        answers = [""] * len(batch)
        for condition, group in groupby(places, key=lambda place: batch[place].condition):
            same = list(group)
            found = generator.answers(
                [batch[place].messages() for place in same],
                condition=condition,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
            for place, answer in zip(same, found, strict=True):
                answers[place] = answer
        yield from answers


def notes_of_empty_answers(prompts: Sequence[Prompt], answers: Sequence[str], *, default: str | None) -> list[str]:
    """A line for each condition under which the model wrote nothing, with how many of all answers that are.

    default: the condition of a prompt without one, None where nobody says.
    """
    conditions = [default if prompt.condition is None else prompt.condition for prompt in prompts]
    empty = Counter(condition for condition, answer in zip(conditions, answers, strict=True) if not answer)
    lines = []
    for condition, number in empty.items():
        which = "the answer is empty" if len(answers) == 1 else f"{number:,} of {len(answers):,} answers are empty"
        under = "" if condition is None else f" under the condition {quoted(condition)}"
        lines.append(f"{which}: the model wrote no text{under}, usually because it ended its turn at once")
    return lines


def _prompt(line: str, place: str, *, condition: str | None, system: str) -> Prompt:
    expected = 'expected a JSON text, or an object like {"prompt": "...", "condition": "..."}'
    try:
        row = nesting.loads(line)
    except ValueError as error:
        raise UserError(place, f"is not JSON ({error}); {expected}") from None
    fields = {"prompt": row} if isinstance(row, str) else row
    if not isinstance(fields, dict) or not fields.get("prompt"):
        raise UserError(place, f"has no `prompt`; {expected}")
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        raise UserError(place, f"unknown field `{unknown[0]}`; known: {', '.join(_FIELDS)}")
    values = {name: value for name, value in fields.items() if value is not None}
    if wrong := [name for name, value in values.items() if not isinstance(value, str)]:
        raise UserError(place, f"`{wrong[0]}` is not a text")
    check_texts(place, values)
    return Prompt(**{"condition": condition, "system": system, **values})
