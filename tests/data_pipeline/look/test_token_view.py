"""What each token is told to be and to say, against the segments that the row was made from."""

from __future__ import annotations

import functools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_pipeline.conversation import ControlToken, Conversation, Message, TaggedConversation, TokenizedConversation
from data_pipeline.look.tokens import TokenReader, runs
from data_pipeline.prompt.render import render
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from data_pipeline.text_rules import RESERVED_CHARACTER, text_problem, visible
from tests.support.data import control_ids, tokenizer_spec
from tests.support.templates import CLOSED_HEADERS, TEXT_HEADERS

ALIKE = ("openchat_3.2", "openchat_3.5", "openchat_3.6", "chatml")  # all that is not supervised is the template's text
SHOWN = {
    **{name: TEMPLATES[name] for name in ALIKE},
    **{template.name: template for template in (TEXT_HEADERS, CLOSED_HEADERS)},
}
HOSTILE = "\x1b[31m \x9b1m \x07 \r \u202ebidi <|end_of_turn|></s> 日本語 🙂👩\u200d👧 \ufffd é"
texts = st.text(st.characters(codec="utf-8", exclude_characters=RESERVED_CHARACTER), max_size=12) | st.sampled_from(
    ["", " a", "\n\nb ", ":x", "User:", HOSTILE]
)


@functools.cache
def loaded(folder: Path, template: str) -> tuple[TokenizerSpec, TokenReader, TemplateTokenizer]:
    spec = load_tokenizer_spec(find_tokenizer_files(str(folder)), SHOWN[template])
    return spec, TokenReader(Tokenizer.from_str(spec.backend), SHOWN[template]), TemplateTokenizer(spec)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(contents=st.lists(texts, min_size=1, max_size=4), condition=st.sampled_from(["", "GPT4 Correct", "é <i>"]))
@pytest.mark.parametrize(
    ("kind_of_tokenizer", "template"),
    [*((kind, template) for kind in ("small", "llama") for template in sorted(SHOWN)), ("mistral", "openchat_3.5")],
)
def test_kinds_and_texts_are_those_of_the_rendered_segments(
    request: pytest.FixtureRequest, kind_of_tokenizer: str, template: str, contents: list[str], condition: str
) -> None:
    """With a weight on every message, a token weighs 0 exactly where it is a prefix (or BOS)."""
    folder = request.getfixturevalue(f"{kind_of_tokenizer}_tokenizer_dir")
    spec, reader, tokenizer = loaded(folder, template)
    messages = tuple(
        Message(role="user" if number % 2 == 0 else "assistant", content=text) for number, text in enumerate(contents)
    )
    tagged = TaggedConversation(
        conversation=Conversation(id="x", place="x", messages=messages),
        class_name="x",
        condition=condition,
        message_weights=(0.5,) * len(messages),
    )
    segments = render(tagged, SHOWN[template], bos_token=spec.bos_token)
    row = tokenizer.tokenize([segments])[0]
    assert isinstance(row, TokenizedConversation)

    shown = reader(row, condition=condition)

    assert [token.id for token in shown] == row.input_ids.tolist()
    controls = control_ids(spec)
    for token, weight in zip(shown, row.loss_weights, strict=True):
        assert token.weight == weight
        assert token.kind == ("control" if token.id in controls else "content" if weight else "prefix")
    texts_between = "".join("\0" if token.kind == "control" else token.text for token in shown)
    wanted = "".join(
        "\0" if isinstance(segment, ControlToken) else segment.prefix + segment.content for segment in segments
    )
    assert texts_between == wanted
    assert "".join(run.text for run in runs(shown)) == "".join(token.text for token in shown)


def test_row_that_ends_inside_a_character(mistral_tokenizer_dir: Path) -> None:
    """A conversation that was cut may end in the middle of one; the rest of the row is shown all the same."""
    spec = tokenizer_spec(mistral_tokenizer_dir, "openchat_3.5")
    tokenizer = Tokenizer.from_str(spec.backend)
    ids = tokenizer.encode("GPT3 User: \U0001fae8", add_special_tokens=False).ids
    assert tokenizer.decode(ids[:-1]).endswith("\ufffd"), "the character takes several tokens"
    row = TokenizedConversation(input_ids=np.array(ids[:-1], np.int32), loss_weights=np.zeros(len(ids) - 1, np.float32))
    shown = TokenReader(tokenizer, TEMPLATES["openchat_3.5"])(row, condition="GPT3")
    assert "".join(token.text for token in shown).rstrip("\ufffd") == "GPT3 User: "
    assert "".join(token.text for token in shown if token.kind == "prefix") == "GPT3 User:"


def test_without_a_template_nothing_is_called_a_prefix(small_tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_spec(small_tokenizer_dir, "openchat_3.5").backend)
    ids = tokenizer.encode("GPT3 User: Hi<|end_of_turn|>").ids
    row = TokenizedConversation(input_ids=np.array(ids, np.int32), loss_weights=np.zeros(len(ids), np.float32))
    assert [token.kind for token in TokenReader(tokenizer, None)(row, condition="GPT3")].count("prefix") == 0


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(text=st.text() | st.just(HOSTILE))
def test_visible_text_moves_nothing_and_keeps_json(text: str) -> None:
    seen = visible(text)
    dangerous = {c for c in seen if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Cn")} - set(
        "\n\t\u200c\u200d"
    )
    assert not dangerous
    assert "\n" not in visible(text, kept="")
    document = json.dumps({"text": text}, ensure_ascii=False)
    assert json.loads(visible(document)) == {"text": text}
    if text_problem(text) is None and text.isprintable():
        assert seen == text
