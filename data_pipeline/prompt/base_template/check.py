"""The proof, before anything is prepared, that a base's template gives the ids of training for whole prompts too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tokenizers import Tokenizer

from data_pipeline.conversation import Conversation, Message, TaggedConversation, ToolCall
from data_pipeline.errors import RowError, UserError
from data_pipeline.prompt.base_template.chat import chat_of
from data_pipeline.prompt.base_template.load import KEY
from data_pipeline.prompt.base_template.renderer import BaseRenderer
from data_pipeline.prompt.base_template.sandbox import TemplateFault, compiled
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.base_template.wrapper import wrapped_templates
from data_pipeline.prompt.chat_template import CHAT_TEMPLATE
from data_pipeline.prompt.library_errors import tokenizers_errors
from data_pipeline.prompt.rendered import RenderedConversation
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec

_TOOLS = '[{"type": "function", "function": {"name": "look_up", "description": "", "parameters": {}}}]'


def check_base_template(spec: TokenizerSpec, template: BaseTemplate) -> None:
    """Raise UserError unless the exported template gives the ids of training, on conversations that are known to be
    difficult. Those that the template cannot show are passed over, but it has to show a question with its answer, with
    or without reasoning.
    """
    proof, refused = _Proof(spec, template), []
    for tagged in _FIRST:
        try:
            proof.require_prompt(proof.render(tagged)[-1])
        except RowError as error:
            refused.append(error)
    if len(refused) == len(_FIRST):
        raise UserError(KEY, f"{template.place}: {refused[0]}", _remedy(template))
    for tagged in (*_FIRST, *_probes(template)):
        with suppress(RowError):
            for rendered in proof.render(tagged):
                proof.require_same(rendered)


def _remedy(template: BaseTemplate) -> str:
    if template.condition_in == "system":
        return "set `model.condition_in: assistant` where the template has no place for a system message"
    return "use another template"


def _probes(template: BaseTemplate) -> Iterator[TaggedConversation]:
    for text in (" a\n", "\n\n b ", "1,000", "\u00e9\U0001f642", f"x{template.end_of_turn}y"):
        pair = [Message(role="user", content=text), Message(role="assistant", content=text)]
        yield _tagged(pair, condition="")
        yield _tagged(pair, system=text)
        yield _tagged([*pair, *pair], system=text)
        yield _tagged([pair[0], Message(role="assistant", content=text, reasoning="so")])
        call = ToolCall(name="look_up", arguments='{"a": "b"}', id="call00001")
        answer = Message(role="assistant", content="", tool_calls=(call,))
        result = Message(role="tool", content=text, name="look_up", tool_call_id="call00001")
        yield _tagged([pair[0], answer, result, pair[1]], tools=_TOOLS)


def _tagged(
    messages: list[Message], *, system: str = "", condition: str = "Probe", tools: str = ""
) -> TaggedConversation:
    conversation = Conversation(id="probe", place="probe", messages=tuple(messages), system=system, tools=tools)
    weights = tuple(1.0 if message.role == "assistant" else 0.0 for message in messages)
    return TaggedConversation(
        conversation=conversation, class_name="probe", condition=condition, message_weights=weights
    )


_HELLO = Message(role="user", content="Hello")
_FIRST = (
    _tagged([_HELLO, Message(role="assistant", content="World")]),
    _tagged([_HELLO, Message(role="assistant", content="World", reasoning="Why")]),
)


class _Proof:
    """Compares rendered conversations with whole prompts of the exported template."""

    def __init__(self, spec: TokenizerSpec, template: BaseTemplate) -> None:
        texts = wrapped_templates(template, special_tokens=spec.special_tokens, inference_condition="Probe")
        self._template, self.render, self._tokenizer = template, BaseRenderer(template, spec), TemplateTokenizer(spec)
        self._whole = Tokenizer.from_str(spec.backend)
        self._exported = compiled(texts[CHAT_TEMPLATE])

    def require_same(self, rendered: RenderedConversation) -> None:
        """Raise UserError unless a prompt of the exported template begins with the ids of training."""
        tokens = self._tokenizer.tokenize([rendered.segments])[0]
        prompt = self._prompt_ids(rendered.tagged, len(rendered.tagged.conversation.messages), asks=False)
        if not isinstance(tokens, RowError) and prompt[: len(tokens.input_ids)] != tokens.input_ids.tolist():
            raise self._other_ids(rendered.tagged)

    def require_prompt(self, rendered: RenderedConversation) -> None:
        """Raise UserError unless the prompt for the last answer has the ids that come before it in training."""
        prompt = self._prompt_ids(rendered.tagged, len(rendered.tagged.conversation.messages) - 1, asks=True)
        tokens = self._tokenizer.tokenize([rendered.segments])[0]
        is_same = not isinstance(tokens, RowError) and tokens.input_ids[: len(prompt)].tolist() == prompt
        if isinstance(tokens, RowError) or not is_same or tokens.loss_weights[: len(prompt)].any():
            raise UserError(
                "model.tokenizer",
                f"with the template of {self._template.place} the prompt for an answer has other ids than the same "
                "text before an answer, so a trained model could not be prompted as it was trained",
                "use another template or tokenizer; an export of ochat names its own in ochat.json",
            )

    def _prompt_ids(self, tagged: TaggedConversation, num_messages: int, *, asks: bool) -> list[int]:
        chat = chat_of(tagged.conversation, "", "role", lambda text: text)
        variables: dict[str, Any] = chat.variables(chat.first + num_messages, asks=asks)
        for message in variables["messages"]:
            message.pop("thinking", None)  # the exported template gives it, whatever `transformers` does
        try:
            text = self._exported(variables | {"condition": tagged.condition}, dates={})
        except TemplateFault as error:
            raise UserError(KEY, f"{self._template.place}: with `condition`: {error}", "use another template") from None
        with tokenizers_errors("model.tokenizer"):
            return list(self._whole.encode(text, add_special_tokens=False).ids)

    def _other_ids(self, tagged: TaggedConversation) -> UserError:
        return UserError(
            "model.tokenizer",
            f"with the template of {self._template.place} this tokenizer gives other ids for a whole prompt than for "
            f"its parts (message {tagged.conversation.messages[-1].content!r}), so a trained model could not be "
            "prompted as it was trained",
            "use another template or tokenizer",
        )
