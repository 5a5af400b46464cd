"""Finds a base's chat template, tries it, and says what it is."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.json_files import read_json_object, read_text
from data_pipeline.prompt.base_template.probe import Probed, probe
from data_pipeline.prompt.base_template.sandbox import TemplateFault, compiled
from data_pipeline.prompt.base_template.template import BaseTemplate, ConditionPlace, RewrittenHistory
from data_pipeline.prompt.chat_template import CHAT_TEMPLATE
from data_pipeline.prompt.library_errors import TOKENIZER_REMEDY
from data_pipeline.prompt.tokenization import TokenizerSpec
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec, with_special_token

KEY = "model.template"
_OTHER_TEMPLATE = "name a file (`model.template: PATH.jinja`), or one of the built-in templates"
_SYSTEM, _USER, _ANSWER = "Sys7a", "Usr7b", "Ans7c"
_CALL = {"id": "call00001", "type": "function", "function": {"name": "fun7d", "arguments": {"arg7e": "val7f"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "fun7d",
        "description": "Does it.",
        "parameters": {"type": "object", "properties": {"arg7e": {"type": "string", "description": "What."}}},
    },
}


@dataclass(frozen=True, kw_only=True)
class BaseTemplateSettings:
    """What a recipe says of a base's template. path: a `.jinja` file, None for the one that the tokenizer has.

    variables: given to the template each time, as `enable_thinking`. date: what the template takes for today.
    """

    path: Path | None
    condition_in: ConditionPlace
    rewritten_history: RewrittenHistory
    variables: Mapping[str, Any]
    date: datetime.date | None


def load_base_prompts(files: Mapping[str, Path], settings: BaseTemplateSettings) -> tuple[BaseTemplate, TokenizerSpec]:
    """The template, and the tokenizer of these files made ready for it. Raises UserError as `load_base_template`."""
    tokenizer = load_tokenizer_spec(files, None)
    eos_token = named_tokens(files).get("eos_token")
    tokenizer = with_special_token(tokenizer, eos_token) if eos_token is not None else tokenizer
    return load_base_template(files, settings, special_tokens=tokenizer.special_tokens), tokenizer


def load_base_template(
    files: Mapping[str, Path], settings: BaseTemplateSettings, *, special_tokens: Sequence[str]
) -> BaseTemplate:
    """The template with what trying it shows. files: of the tokenizer, by name; special_tokens: of it.

    Raises UserError for a template that cannot be used, with what it does.
    """
    text, place = _text_of(files, settings.path)
    tokens_by_name = named_tokens(files)
    variables = tokens_by_name | dict(settings.variables)
    try:
        dates = _dates(text, settings.date)
        renders = _renders(variables)
        found = dict(zip(renders, probe(text, list(renders.values()), dates=dates), strict=True))
        _refuse_dates(found.values())
        tokens = _Tokens(special_tokens)
        return BaseTemplate(
            text=text,
            place=place,
            variables=variables,
            named_tokens=tuple(name for name in tokens_by_name if name not in settings.variables),
            dates=dates,
            condition_in=settings.condition_in,
            rewritten_history=settings.rewritten_history,
            control_tokens=tokens.written(found.values()),
            end_tokens=_end_tokens(found, tokens, variables.get("eos_token")),
            gap=_gap(found),
            marks_answers=compiled(text).has_blocks,
        )
    except TemplateFault as error:
        raise UserError(KEY, f"{place}: {error}", _OTHER_TEMPLATE) from None


# ---- where it is ----


def _text_of(files: Mapping[str, Path], path: Path | None) -> tuple[str, str]:
    """The template and where it is."""
    if path is not None:
        if not path.is_file():
            raise UserError(KEY, f"{path}: no such file", _OTHER_TEMPLATE)
        return read_text(path), str(path)
    if CHAT_TEMPLATE in files:
        return read_text(files[CHAT_TEMPLATE]), CHAT_TEMPLATE
    place = "tokenizer_config.json"
    value = read_json_object(files[place], remedy=TOKENIZER_REMEDY).get("chat_template") if place in files else None
    if isinstance(value, list):  # named ones
        value = next(
            (one.get("template") for one in value if isinstance(one, dict) and one.get("name") == "default"), None
        )
    if not isinstance(value, str):
        raise UserError(KEY, "the tokenizer has no chat template", _OTHER_TEMPLATE)
    return value, f"{place} (chat_template)"


def named_tokens(files: Mapping[str, Path]) -> dict[str, str]:
    """Every `..._token` that the tokenizer's files name; a template sees them."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if file not in files:
            continue
        for key, value in read_json_object(files[file], remedy=TOKENIZER_REMEDY).items():
            token = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(token, str):
                found[key] = token
    return found


# ---- what it does ----


def _dates(text: str, date: datetime.date | None) -> dict[str, str]:
    """What `strftime_now` gives, by format."""
    if date is None:
        return {}
    return {format: date.strftime(format) for format in re.findall(r"strftime_now\(\s*['\"](.*?)['\"]\s*\)", text)}


def _refuse_dates(found: Iterable[Probed]) -> None:
    for one in found:
        if one.date_format is not None:
            raise UserError(
                "model.template_date",
                f"{one.fault}, so a row would depend on the day on which it is prepared",
                "set `model.template_date: YYYY-MM-DD`, which exports then keep, or give the template's own variable "
                "for it in `model.template_variables`",
            )


def _renders(variables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> what the template is tried with."""
    system, user = {"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}
    answer = {"role": "assistant", "content": _ANSWER}
    thought = {**answer, "reasoning_content": "Rea7g", "thinking": "Rea7g"}
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    result = {"role": "tool", "name": "fun7d", "tool_call_id": "call00001", "content": "Res7h"}
    chats: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
        "asked": ([user], True, False),
        "answer": ([user, answer], False, False),
        "later": ([user, answer, user], False, False),
        "thought": ([user, thought], False, False),
        "with system": ([system, user, answer], False, False),
        "call": ([user, call], False, True),
        "called": ([user, call, result], True, True),
        "after call": ([user, call, result, answer], False, True),
    }
    return {
        name: {
            **variables,
            "messages": messages,
            "tools": [_TOOL] if has_tools else None,
            "documents": None,
            "add_generation_prompt": asks,
        }
        for name, (messages, asks, has_tools) in chats.items()
    }


class _Tokens:
    """Finds control tokens in texts."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def written(self, found: Iterable[Probed]) -> tuple[str, ...]:
        """The tokens in all texts, in the order in which they come."""
        return tuple(dict.fromkeys(token for one in found for token in self._pattern.findall(one.text or "")))

    def trailing(self, text: str) -> list[tuple[str, int]]:
        """The tokens at the end of a text, with nothing but white space between or after them, and where each ends."""
        found: list[tuple[str, int]] = []
        begin = len(text)
        for match in reversed(list(self._pattern.finditer(text))):
            if text[match.end() : begin].strip():
                break
            found.append((match.group(), match.end()))
            begin = match.start()
        return found[::-1]

    def leading(self, text: str) -> list[str]:
        """The tokens at the beginning of a text, with nothing but white space before or between them."""
        tokens, at = [], 0
        for match in self._pattern.finditer(text):
            if text[at : match.start()].strip():
                break
            tokens.append(match.group())
            at = match.end()
        return tokens


def _gap(found: Mapping[str, Probed]) -> str:
    """White space between the prompt for an answer and its text."""
    asked, answer = found["asked"].text or "", found["answer"].text or ""
    between = answer[len(asked) :].split(_ANSWER)[0] if answer.startswith(asked) else ""
    return between if between.isspace() else ""


def _end_tokens(found: Mapping[str, Probed], tokens: _Tokens, eos_token: str | None) -> tuple[str, ...]:
    """The tokens that end an answer, first the one of an answer without tool calls.

    Of those that follow an answer whether or not the conversation continues, it is `eos_token`, or else the last one
    that does not open turns; where none does, it is the first one that follows the last answer of a conversation.
    Raises TemplateFault where there is none.
    """
    answer = found["answer"].text
    if answer is None:
        raise TemplateFault(f"it cannot show a question with its answer: {found['answer'].fault}")
    if answer.count(_ANSWER) != 1:
        raise TemplateFault("it does not show an answer exactly once")
    ending = tokens.leading(answer.split(_ANSWER)[1])
    if not ending:
        raise TemplateFault(
            "no control token ends an answer, so a model could not learn to stop; is it the template of this tokenizer?"
        )
    later = found["later"].text or ""
    follows = tokens.leading(later.split(_ANSWER)[1]) if later.count(_ANSWER) == 1 else []
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(ending, follows, strict=False))]
    opening = tokens.leading(found["asked"].text or "")
    ends = [_end_among(shared or ending[:1], opening, eos_token)]
    if of_calls := _after_call(found, tokens):
        ends.append(_end_among(of_calls, opening, eos_token))
    return tuple(dict.fromkeys(ends))


def _end_among(shared: Sequence[str], opening: Sequence[str], eos_token: str | None) -> str:
    """The one of the tokens after an answer that ends it. opening: the tokens that open a turn."""
    if eos_token is not None and eos_token in shared:
        return eos_token
    left = list(shared)
    while len(left) > 1 and left[-1] in opening:  # a template that begins the next turn unasked
        left.pop()
    return left[-1]


def _after_call(found: Mapping[str, Probed], tokens: _Tokens) -> list[str]:
    """The tokens after an answer with tool calls, where the template shows them."""
    text, later = found["call"].text, found["called"].text or ""
    if text is None or "val7f" not in text:
        return []
    ending = tokens.trailing(text)
    shared = [token for token, end in ending if later.startswith(text[:end])]
    return shared or [token for token, _ in ending[:1]]
