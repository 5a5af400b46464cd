"""Prompt formats: one record each. `render.py` writes the prompts of training with them, `chat_template.py` those of
exports; no other file knows prompt text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.conversation import Role


@dataclass(frozen=True, kw_only=True)
class Template:
    """A prompt format.

    A message is: header_open? + `CONDITION ROLE` + (header_close token | header_suffix) + content + end_of_turn +
    after.

    role_names: what `user` and `assistant` are called. system_name: None where a system text has no header.
    header_open, header_close: control tokens around the role, or None for a header that is plain text.
    header_suffix: plain text after the role (after `header_close` where there is one).
    content_lead: text between header and content, left out for an empty content (so `User:` has no trailing space).
    after_turn: plain text after `end_of_turn`.
    inference_condition: the condition that published models of this template are prompted with.
    """

    name: str
    role_names: Mapping[Role, str]
    system_name: str | None
    header_open: str | None
    header_close: str | None
    header_suffix: str
    content_lead: str
    end_of_turn: str
    after_turn: str
    inference_condition: str

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The control tokens that the template writes, without beginning-of-sequence."""
        return tuple(token for token in (self.header_open, self.header_close, self.end_of_turn) if token)


def _openchat(name: str, inference_condition: str) -> Template:
    return Template(
        name=name,
        role_names={"user": "User", "assistant": "Assistant"},
        system_name=None,
        header_open=None,
        header_close=None,
        header_suffix=":",
        content_lead=" ",
        end_of_turn="<|end_of_turn|>",
        after_turn="",
        inference_condition=inference_condition,
    )


TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        _openchat("openchat_3.2", inference_condition="GPT4"),
        _openchat("openchat_3.5", inference_condition="GPT4 Correct"),
        Template(
            name="openchat_3.6",
            role_names={"user": "User", "assistant": "Assistant"},
            system_name="System",
            header_open="<|start_header_id|>",
            header_close="<|end_header_id|>",
            header_suffix="\n\n",
            content_lead="",
            end_of_turn="<|eot_id|>",
            after_turn="",
            inference_condition="GPT4 Correct",
        ),
        Template(
            name="chatml",
            role_names={"user": "user", "assistant": "assistant"},
            system_name="system",
            header_open="<|im_start|>",
            header_close=None,
            header_suffix="\n",
            content_lead="",
            end_of_turn="<|im_end|>",
            after_turn="\n",
            inference_condition="",
        ),
    )
}
