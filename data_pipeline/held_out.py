"""Which conversations are held out, decided by their text and the seed alone: never by order, file or class."""

from __future__ import annotations

import hashlib

from data_pipeline.conversation import Conversation

# Under the other conditions: enough for a narrow confidence interval, and cheap compared to training.
CONDITION_ROWS_PER_CLASS = 1000


def prompt_of(conversation: Conversation) -> tuple[str, str]:
    """System text and first prompt (the id where there is no prompt). Conversations that share both stay together."""
    return conversation.system, next((m.content for m in conversation.messages if m.role == "user"), conversation.id)


def is_held_out(conversation: Conversation, *, ratio: float, seed: int) -> bool:
    """Whether a conversation belongs to the validation split. ratio: the share of prompts that is held out."""
    return ratio > 0 and is_drawn("\0".join((str(seed), *prompt_of(conversation))), ratio)


def loses_condition(conversation: Conversation, *, ratio: float, seed: int) -> bool:
    """Whether condition dropout leaves the condition out, if the conversation is trained on."""
    messages = [(message.role, message.content) for message in conversation.messages]
    return ratio > 0 and is_drawn(f"{seed}\0condition dropout\0{conversation.system}\0{messages}", ratio)


def is_drawn(key: str, ratio: float) -> bool:
    """Whether a text is among the share `ratio` of all texts; its hash decides, so it always gets the same answer."""
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < ratio * 2.0**64
