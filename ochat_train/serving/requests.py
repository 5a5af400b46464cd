"""What a request may hold: every field that is read, and every field that may be sent because it means nothing.

Nothing is ignored silently. A field that would change the answer, and cannot, is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from data_pipeline.text_rules import did_you_mean, text_problem
from ochat_train.serving.errors import ApiError, bad_request
from ochat_train.serving.harmless import HARMLESS, HARMLESS_IN_MESSAGES
from ochat_train.serving.settings import MAX_CHOICES, MAX_STOPS, MAX_TOP_LOGPROBS

_MOST_PROBLEMS = 3  # in one message
_MOST_CHARACTERS = 100  # of a name that a client sent


def _checked(text: str) -> str:
    if (problem := text_problem(text)) is not None:
        raise ValueError(problem)
    return text


def _joined(content: Any) -> Any:
    """A list of parts of text as one text, joined as training joins them."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            found = f" of type {kind!r}"[:_MOST_CHARACTERS] if isinstance(kind, str) else ""
            raise ValueError(f'part {number}{found}: only parts `{{"type": "text", "text": ...}}` are supported')
        if extra := sorted(key for key in part.keys() - {"type", "text"} if part[key] not in (None, [], {})):
            raise ValueError(f"part {number}: `{extra[0][:_MOST_CHARACTERS]}` is not supported")
        texts.append(part["text"])
    return "".join(texts)


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Text = Annotated[str, AfterValidator(_checked)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FunctionCall(_Strict):
    """A function and its arguments, a JSON object as text."""

    name: Text
    arguments: Text = "{}"


class ToolCall(_Strict):
    """A call that an assistant message made."""

    id: Text | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Strict):
    """One message. `developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Text | None, BeforeValidator(_joined)] = None
    name: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(_Strict):
    """A schema that the answer follows."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateVariables(_Strict):
    """The one variable of the chat template that a request sets; vLLM's clients write it here."""

    condition: Text | None = None


class PromptRequest(_Strict):
    """What decides the prompt."""

    model: str | None = None
    condition: Text | None = None
    chat_template_kwargs: TemplateVariables | None = None
    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None


class ChatRequest(PromptRequest):
    """A request for answers. None is OpenAI's default everywhere."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_as_list)] = Field(
        None, max_length=MAX_STOPS
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None


def read_request(value: Mapping[str, Any]) -> ChatRequest:
    """A request from its parsed JSON. Raises ApiError (400) that names what is wrong."""
    fields = {name: item for name, item in value.items() if not _means_nothing(name, item)}
    messages = fields.get("messages")
    if isinstance(messages, list):
        fields["messages"] = [_without_harmless(message, number) for number, message in enumerate(messages)]
    try:
        request = ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _explained(error) from None
    _check_pairs(request)
    return request


def _means_nothing(name: str, value: Any) -> bool:
    """Whether a field can be left out because it has no effect. Raises ApiError for one that would have an effect."""
    rule = HARMLESS.get(name)
    if rule is None:
        return False
    if value is not None and not rule.is_harmless(value):
        text = f"`{name}` is not supported with this value: {rule.only}"
        raise bad_request(text, param=name, code="unsupported_parameter")
    return True


def _without_harmless(message: Any, number: int) -> Any:
    if not isinstance(message, dict):
        return message
    for name in message.keys() & HARMLESS_IN_MESSAGES.keys():
        rule = HARMLESS_IN_MESSAGES[name]
        if message[name] is not None and not rule.is_harmless(message[name]):
            param = f"messages[{number}].{name}"
            raise bad_request(f"`{param}` is not supported: {rule.only}", param=param, code="unsupported_parameter")
    return {name: value for name, value in message.items() if name not in HARMLESS_IN_MESSAGES}


def _check_pairs(request: ChatRequest) -> None:
    """Raise ApiError for fields that only make sense together, or not together."""
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise bad_request(
            "`max_tokens` and `max_completion_tokens` differ; send one of them", param="max_completion_tokens"
        )
    if request.top_logprobs and not request.logprobs:
        raise bad_request("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
    if request.stream_options is not None and request.stream_options.include_usage and not request.stream:
        raise bad_request("`stream_options` needs `stream: true`", param="stream_options")
    form = request.response_format
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        raise bad_request("`json_schema` goes with `type: json_schema`", param="response_format")
    if request.tools and request.tool_choice != "none":
        text = (
            "`tools` are only supported with `tool_choice: none`: they are in the prompt, and the answer is text, "
            "because this server does not read tool calls out of answers"
        )
        raise bad_request(text, param="tools", code="unsupported_parameter")
    if not request.tools and request.tool_choice not in (None, "none", "auto"):
        raise bad_request("`tool_choice` needs `tools`", param="tool_choice")
    if request.tools and (problem := text_problem(json.dumps(request.tools, ensure_ascii=False))) is not None:
        raise bad_request(f"`tools`: {problem}", param="tools")
    if request.model is not None and (problem := text_problem(request.model)) is not None:
        raise bad_request(f"`model`: {problem}", param="model")


def _explained(error: ValidationError) -> ApiError:
    """The first problems in one message; `param` is the first of them."""
    problems = error.errors(include_url=False, include_context=True, include_input=False)
    known = [*ChatRequest.model_fields, *HARMLESS]
    texts = [_problem_text(problem, known) for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        texts.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    first = problems[0]
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return bad_request("; ".join(texts), param=_place(first["loc"]), code=code)


def _problem_text(problem: Any, known: list[str]) -> str:
    place = _place(problem["loc"])
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(str(problem["loc"][-1]), known if len(problem["loc"]) == 1 else Message.model_fields)
        return f"unknown field `{place}`" + (f", {hint}" if hint else "")
    if problem["type"] == "missing":
        return f"`{place}` is missing"
    if problem["type"] == "value_error":
        return f"`{place}`: {problem['ctx']['error']}"
    if problem["type"] in ("model_type", "dict_type"):  # pydantic would name the class
        return f"`{place}`: input should be an object"
    return f"`{place}`: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _place(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`, without the names of the branches that pydantic tried."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith(("function-", "list[", "constrained-", "literal[")):
            text += ("." if text else "") + part[:_MOST_CHARACTERS]
    return text
