"""Answers of an export in this process, or of an engine that this process starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from data_pipeline.errors import UserError
from data_pipeline.text_rules import RESERVED_CHARACTER
from ochat_train.chat.answerer import ChatError, ChatModel, Question, SentPrompt
from ochat_train.inference.answers import message_pieces
from ochat_train.inference.engine import AnswerSettings, Engine, EngineError, Piece
from ochat_train.inference.served_model import ServedModel


class EngineAnswerer:
    """Asks an engine about one export."""

    def __init__(self, served: ServedModel, engine: Engine) -> None:
        self._served, self._engine = served, engine

    async def start(self) -> ChatModel:
        """Load the model. Raises UserError where that cannot work."""
        await self._engine.start()
        served = self._served
        return ChatModel(name=served.name, conditions=served.answerable_conditions, default=served.default_condition)

    async def close(self) -> None:
        """Free the model."""
        await self._engine.close()

    async def pieces(self, question: Question) -> AsyncIterator[Piece]:
        """The pieces of an answer. Raises ChatError where the prompt is too long or the engine fails."""
        ids, room = self._ids(question), self._engine.context_tokens
        if len(ids) >= room:
            raise ChatError(f"the conversation has {len(ids):,} tokens, and {room:,} is the most; /undo or /reset it")
        settings = AnswerSettings(
            max_new_tokens=min(question.max_new_tokens or room, room - len(ids)),
            temperature=question.temperature,
            seed=question.seed,
        )
        try:
            async with aclosing(message_pieces(self._engine.stream(ids, settings))) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
        except EngineError as error:
            raise ChatError(f"the engine failed: {error}") from None

    async def prompt(self, question: Question) -> SentPrompt:
        """Text and ids of a prompt. The text is what the chat template writes."""
        ids = self._ids(question)
        variables = {} if question.condition is None else {"condition": question.condition}
        text = self._served.tokenizer.apply_chat_template(
            list(question.messages), add_generation_prompt=True, tokenize=False, **variables
        )
        return SentPrompt(text=str(text).replace(RESERVED_CHARACTER, ""), ids=ids)

    def _ids(self, question: Question) -> list[int]:
        try:
            return self._served.prompt_ids(question.messages, condition=question.condition)
        except UserError as error:
            raise ChatError(error.problem) from None
