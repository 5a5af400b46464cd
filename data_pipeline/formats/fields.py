"""The names of the keys that hold a conversation: those of a format, or those that a recipe gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

# What a speaker is called, in small letters. `function_call` is an assistant message whose text is a call.
_USERS = ("human", "user", "prompter", "instruction")
_ASSISTANTS = (
    *("gpt", "assistant", "model", "bot", "chatgpt", "chatbot", "ai", "bing", "bard", "claude", "palm", "gemini"),
    *("llama", "vicuna", "gpt-4", "gpt4", "gpt-3.5"),
)
_TOOLS = ("tool", "observation", "function_response", "ipython", "function", "tool_response", "tool_result")
ROLES: Mapping[str, str] = {
    **dict.fromkeys(_USERS, "user"),
    **dict.fromkeys(_ASSISTANTS, "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(_TOOLS, "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
}
# The keys of a message, of the system text, and of a prompt, of what follows it, and of an answer;
# the first that a row has is read.
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")
SYSTEMS = ("system", "system_prompt")
PROMPTS = ("instruction", "prompt", "question", "query", "problem", "inputs", "user", "human")
INPUTS = ("input", "context")
ANSWERS = (
    *("output", "completion", "response", "generated_solution", "solution", "answer", "targets"),
    *("assistant", "gpt"),
)
ROLES_OF_RECIPES = ("user", "assistant", "system", "tool")


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which key of a row holds what; None where the layout has no such thing.

    messages: the list of messages; role, content: within one. roles: further names of roles, each with the role that it
    means. prompt, input, answer, history: of rows with one prompt and one answer. chosen, rejected: of two answers.
    answers: the list of answers, each of them an object whose text is in `answer`. weight: of a message, how much is
    learned from it; masked: of a message, that nothing is. row_weight: the same for all answers of a row.
    """

    messages: str | None = None
    role: str | None = None
    content: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict, hash=False)
    prompt: str | None = None
    input: str | None = None
    answer: str | None = None
    history: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    answers: str | None = None
    system: str | None = "system"
    id: str | None = "id"
    tools: str | None = "tools"
    weight: str | None = None
    masked: str | None = None
    row_weight: str | None = None

    @property
    def row_keys(self) -> frozenset[str]:
        """The keys of a row that hold something of the conversation, or its id."""
        inside = ("role", "content", "roles", "weight", "masked", *(("answer",) if self.answers else ()))
        names = (getattr(self, f.name) for f in fields(self) if f.name not in inside)
        return frozenset(name for name in names if name)

    def changes(self, usual: Fields) -> dict[str, object]:
        """The values that differ from those of a format, as a recipe's `fields` gives them."""
        return {f.name: mine for f in fields(self) if (mine := getattr(self, f.name)) != getattr(usual, f.name)}


def without(names: Fields, ignored: Collection[str]) -> Fields:
    """The keys to read where a recipe ignores some of those that a conversation can do without."""
    optional = ("system", "tools", "id", "input", "history")
    nothing: dict[str, Any] = {name: None for name in optional if getattr(names, name) in ignored}
    return replace(names, **nothing)
