"""Templates unlike those of the project, which a newcomer could add."""

from __future__ import annotations

from data_pipeline.prompt.uniform import UniformFormat

# Between two turns there is text of the template before a header that is plain text.
TEXT_HEADERS = UniformFormat(
    name="text_headers",
    role_names={"user": "Human", "assistant": "Assistant"},
    system_name="System",
    header_open=None,
    header_close=None,
    header_suffix=":",
    content_lead=" ",
    end_of_turn="<|end|>",
    after_turn="\n",
    inference_condition="",
).as_template()
# Only a role's end is a control token.
CLOSED_HEADERS = UniformFormat(
    name="closed_headers",
    role_names={"user": "Human", "assistant": "Assistant"},
    system_name="System",
    header_open=None,
    header_close="<|role|>",
    header_suffix="\n",
    content_lead="",
    end_of_turn="<|end|>",
    after_turn="\n\n",
    inference_condition="",
).as_template()
