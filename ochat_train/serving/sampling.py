"""How answers are made: fields of a request as settings of an engine."""

from __future__ import annotations

from collections.abc import Mapping

from ochat_train.inference.engine import SMALLEST_TEMPERATURE, AnswerSettings
from ochat_train.serving.errors import bad_request
from ochat_train.serving.requests import ChatRequest

DEFAULT_TEMPERATURE = DEFAULT_TOP_P = 1.0  # OpenAI's
# Field of the API -> field of `AnswerSettings`.
_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "logprobs": "num_logprobs",
    "response_format": "response_format",
}


def answer_settings(request: ChatRequest, *, max_new_tokens: int, adapter: str | None) -> AnswerSettings:
    """The settings of an engine for a request."""
    temperature = DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
    form = request.response_format
    return AnswerSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature if temperature >= SMALLEST_TEMPERATURE else 0.0,
        top_p=DEFAULT_TOP_P if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=tuple(request.stop or ()),
        num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        response_format=None
        if form is None or form.type == "text"
        else form.model_dump(by_alias=True, exclude_none=True),
        adapter=adapter,
    )


def refuse_unsupported(request: ChatRequest, unsupported: Mapping[str, str]) -> None:
    """Raise ApiError for a field that the engine cannot follow, with its reason."""
    settings, free = answer_settings(request, max_new_tokens=1, adapter=None), AnswerSettings(max_new_tokens=1)
    for name, setting in _FIELDS.items():
        is_used = getattr(request, name) is not None and getattr(settings, setting) != getattr(free, setting)
        if setting in unsupported and is_used:
            text = f"`{name}` is not supported by this engine: {unsupported[setting]}"
            raise bad_request(text, param=name, code="unsupported_parameter")
