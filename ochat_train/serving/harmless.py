"""Fields of OpenAI's API and of its servers that clients send although they mean nothing.

Many clients send every field they know, at its default. Those values are accepted; a value that would change the answer
is refused, because nothing here does what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Harmless:
    """is_harmless: of a value other than null, which always is. only: says which values are."""

    is_harmless: Callable[[Any], bool]
    only: str


def _only(*values: Any) -> Harmless:
    def is_one(given: Any) -> bool:
        return any(given == value and isinstance(given, bool) == isinstance(value, bool) for value in values)

    shown = ["[]" if value == [] else "{}" if value == {} else str(value).lower() for value in values]
    return Harmless(is_harmless=is_one, only=f"only {' or '.join(shown or ['null'])}, which changes nothing")


def _any_of(kind: type, what: str) -> Harmless:
    return Harmless(is_harmless=lambda given: isinstance(given, kind), only=f"only {what}, which is not used")


# Field of a request -> when it may be there. `null` is always allowed.
HARMLESS: Mapping[str, Harmless] = {
    "add_generation_prompt": _only(True),
    "add_special_tokens": _only(False),
    "audio": _only(),
    "best_of": _only(1),
    "continue_final_message": _only(False),
    "do_sample": _only(),
    "documents": _only([]),
    "echo": _only(False),
    "frequency_penalty": _only(0),
    "function_call": _only("none", "auto"),
    "functions": _only([]),
    "ignore_eos": _only(False),
    "include_stop_str_in_output": _only(False),
    "length_penalty": _only(1),
    "logit_bias": _only({}),
    "metadata": _any_of(dict, "an object"),
    "min_p": _only(0),
    "min_tokens": _only(0),
    "modalities": _only(["text"]),
    "parallel_tool_calls": _only(True, False),
    "prediction": _only(),
    "presence_penalty": _only(0),
    "prompt_cache_key": _any_of(str, "a text"),
    "prompt_cache_retention": _any_of(str, "a text"),
    "reasoning_effort": _only("none"),
    "repetition_penalty": _only(1),
    "safety_identifier": _any_of(str, "a text"),
    "service_tier": _only("auto", "default"),
    "skip_special_tokens": _only(True),
    "stop_token_ids": _only([]),
    "store": _only(False),
    "top_k": _only(0, -1),
    "use_beam_search": _only(False),
    "user": _any_of(str, "a text"),
    "verbosity": _only("medium"),
    "web_search_options": _only(),
}
# The same of a message, as answers hold them that clients send back.
HARMLESS_IN_MESSAGES: Mapping[str, Harmless] = {
    "annotations": _only([]),
    "audio": _only(),
    "function_call": _only(),
    "refusal": _only(),
    "type": _only("text", "message"),
}
