"""An export that answers through an engine, asked by the ids of its prompts."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.file_hashes import hash_files
from ochat_train.export.layout import read_mark, weights_sha256
from ochat_train.inference.answers import whole_answer
from ochat_train.inference.engine import AnswerSettings, Engine, EngineBusy, EngineError, EngineUnavailable
from ochat_train.inference.served_model import ServedModel
from ochat_train.suites.ask import NoAnswer, Prompt, TurnAnswer, TurnSettings
from ochat_train.suites.results import ModelFacts
from ochat_train.suites.suite import Message
from ochat_train.system.pretrained import reason_of

# Files of an export that decide what it answers. Its card and its own record do not.
_WEIGHTS = ("*.safetensors", "*.bin")
_DECIDING = (
    *("config.json", "generation_config.json", "chat_template*", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "adapter_config.json"),
)


class ExportRespondent:
    """`Respondent` of an export. engine: started by whoever makes this. say: takes a line about the first failure of a
    kind.
    """

    def __init__(self, served: ServedModel, engine: Engine, *, say: Callable[[str], None]) -> None:
        self._served, self._engine, self._say = served, engine, say
        self._said: set[str] = set()

    def prompt(self, messages: Sequence[Message], condition: str | None) -> Prompt:
        """The ids of training, and how many tokens the context leaves after them."""
        ids = array("I", self._served.prompt_ids(messages, condition=condition))  # many are kept at once
        fingerprint = hashlib.sha256(ids.tobytes()).hexdigest()
        return Prompt(fingerprint=fingerprint, room=self._engine.context_tokens - len(ids), content=ids)

    async def answer(self, prompt: Prompt, settings: TurnSettings) -> TurnAnswer:
        """One answer. Raises NoAnswer where the engine fails at it."""
        wanted = AnswerSettings(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
        )
        try:
            answer = await whole_answer(self._engine.stream(list(prompt.content), wanted))
        except EngineBusy as error:
            raise self._no_answer("the engine is busy", error) from None
        except EngineUnavailable as error:
            raise self._no_answer("the engine is not running", error) from None
        except EngineError as error:
            raise self._no_answer("the engine failed", error) from None
        return TurnAnswer(text=answer.text, num_tokens=answer.num_tokens, finish=answer.finish)

    def _no_answer(self, reason: str, error: EngineError) -> NoAnswer:
        if reason not in self._said:
            self._said.add(reason)
            self._say(f"{reason}: {reason_of(error)}")
        return NoAnswer(reason, is_temporary=True)


def model_facts(served: ServedModel) -> ModelFacts:
    """What a result says of an export. Its files are read, and hashes of unchanged ones are remembered."""
    mark = read_mark(served.folder)
    weights = weights_sha256(_sha256_by_name(served.folder, _WEIGHTS))
    base = mark.get("adapter", {}).get("base_sha256") if isinstance(mark.get("adapter"), dict) else None
    parts = [weights, list(_sha256_by_name(served.folder, _DECIDING).items()), base or served.base]
    template = mark.get("template")
    return ModelFacts(
        name=served.name,
        kind="export",
        sha256=hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        weights_sha256=weights,
        base=served.base,
        template=template if isinstance(template, str) else None,
    )


def _sha256_by_name(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Name -> sha256 of the files with these names, sorted."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    try:
        hashed = hash_files(files, group=folder).files if files else {}
    except OSError as error:
        raise UserError(folder, f"cannot be read: {error}") from None
    return {file.name: hashed[file].sha256 for file in files}


def chosen_conditions(served: ServedModel, text: str, *, any_condition: bool) -> tuple[str | None, ...]:
    """The conditions to ask under. text: `all`, `default`, or names of classes or conditions with commas between.

    Raises UserError for one that was not trained, unless any_condition.
    """
    known = served.answerable_conditions
    if text == "default":
        return (served.default_condition,)
    if text == "all":
        return served.conditions or (None,)
    by_class = _conditions_by_class(served.folder)
    chosen: list[str] = []
    for name in [text] if text in known else [part.strip() for part in text.split(",")]:
        condition = name if name in known else by_class.get(name, name)
        if condition not in known and not any_condition:
            shown = ", ".join(map(repr, known)) or "it does not say"
            problem = f"no class was trained under {name!r}; trained: {shown}"
            raise UserError("--condition", problem, "see --any-condition")
        chosen.append(condition)
    return tuple(dict.fromkeys(chosen))


def _conditions_by_class(folder: Path) -> dict[str, str]:
    try:
        return {str(row["name"]): str(row["condition"]) for row in read_mark(folder)["classes"]}
    except (KeyError, TypeError):
        return {}
