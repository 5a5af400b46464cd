"""Reads a real chat template as a base brings it, and compares rows with what `transformers` makes of it."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from data_pipeline.conversation import Message, TaggedConversation
from data_pipeline.errors import RowError, UserError
from data_pipeline.prompt.base_template.check import check_base_template
from data_pipeline.prompt.base_template.load import BaseTemplateSettings, load_base_prompts
from data_pipeline.prompt.chat_folder import write_tokenizer_folder
from data_pipeline.prompt.prompt_format import renderer_of
from data_pipeline.prompt.tokenization import TemplateTokenizer
from tests.support.jinja_templates import answer, as_messages, tagged, write_base_tokenizer

_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_]+\|?>|<[a-z_]+\|>|<\uff5c[^\uff5c]{1,40}\uff5c>|\[/?[A-Z_]{3,20}\]|<(?:start|end)_of_turn>|"
    r"\[\|[a-z]+\|\]|<(?:bos|eos)>"
)
_ENDS = ("<|END_OF_TURN_TOKEN|>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
_TOOL = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}, "required": []}}
TOOLS = json.dumps([{"type": "function", "function": _TOOL}])
_RESULT = Message(role="tool", content="12 degrees", name="look", tool_call_id="call00001")


def _call(reasoning: str = "") -> Message:
    return answer("", reasoning, look={"city": 'Paris "x"', "n": 3})


KINDS = {
    "plain": tagged("Hi there", "Hello!", "And?", "Bye."),
    "system": tagged("Hi there", "Hello!", system="Be brief."),
    "thinking": tagged("Hi", answer("Hello!", "Greet them."), "And?", answer("Bye.", "Part.")),
    "tools": tagged("Weather?", _call(), _RESULT, answer("It is 12."), tools=TOOLS),
    "thinking and tools": tagged("Weather?", _call("Look."), _RESULT, answer("It is 12.", "Say it."), tools=TOOLS),
}


def read_real_template(path: Path, folder: Path, **settings: Any) -> Iterator[tuple[str, str]]:
    """(kind of conversation, what became of it) for a template; a template that is refused has one line."""
    text = path.read_text(encoding="utf-8")
    special = tuple(dict.fromkeys(["<bos>", "<eos>", *_TOKEN.findall(text)]))
    write_base_tokenizer(folder / "base", text, special=special)
    if end := next((token for token in _ENDS if token in special), None):
        config = folder / "base" / "tokenizer_config.json"
        config.write_text(config.read_text().replace('"content": "<eos>"', f'"content": {json.dumps(end)}'))
    files = {file.name: file for file in (folder / "base").iterdir()}
    values = {"condition_in": "system", "rewritten_history": "one_row_per_answer", "variables": {}, **settings}
    try:
        template, spec = load_base_prompts(files, BaseTemplateSettings(path=None, date=datetime.date.today(), **values))
        check_base_template(spec, template)
    except UserError as error:
        yield "all", f"refused: {error}"
        return
    write_tokenizer_folder(folder / "export", spec, template, inference_condition="", max_length_tokens=9999)
    tokenizers = [transformers.AutoTokenizer.from_pretrained(folder / name) for name in ("base", "export")]
    render, tokenize = renderer_of(template, spec), TemplateTokenizer(spec)
    method = "blocks" if template.marks_answers else "differences"
    for kind, item in KINDS.items():
        try:
            found = render(item)
        except RowError as error:
            yield kind, f"refused ({error.reason}): {error}"
            continue
        for row in found:
            tokens = tokenize.tokenize([row.segments])[0]
            assert not isinstance(tokens, RowError)
            for tokenizer in tokenizers:
                _require_same(tokenizer, row.tagged, tokens.input_ids.tolist(), tokens.loss_weights.tolist(), values)
        yield kind, f"{len(found)} row(s), {method}, ends with {template.end_of_turn}"


def _require_same(
    tokenizer: Any, item: TaggedConversation, ids: list[int], weights: list[float], settings: dict[str, Any]
) -> None:
    """The base's own tokenizer and template give a row's ids, and the prompt for its last answer begins it."""
    messages, tools = as_messages(item.conversation), item.conversation.tools
    given = {"tools": json.loads(tools) if tools else None, "return_dict": False, **settings["variables"]}
    assert tokenizer.apply_chat_template(messages, **given)[: len(ids)] == ids
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **given)
    assert ids[: len(prompt)] == prompt
    assert weights[-1] > 0
    if len([message for message in messages if message["role"] == "assistant"]) == 1:
        assert not any(weights[: len(prompt)])
