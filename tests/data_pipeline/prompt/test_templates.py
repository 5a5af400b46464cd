"""Prompt ids: training, the exported chat template and OpenChat's published lists must agree, whatever a person
types.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_pipeline.conversation import Conversation, Message, Segment, TaggedConversation, TokenizedConversation
from data_pipeline.errors import UserError
from data_pipeline.prepare.prepare import prepare
from data_pipeline.prompt.chat_folder import check_chat_template, write_tokenizer_folder
from data_pipeline.prompt.render import render
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from data_pipeline.prompt.uniform import uniform_format
from tests.support.data import control_ids, make_job, rows_of, source
from tests.support.rows import write_jsonl
from tests.support.templates import CLOSED_HEADERS, TEXT_HEADERS
from tests.support.tokenizers import changed_tokenizer

# The ids that openchat/openchat_3.5 is prompted with
SINGLE_TURN = [1, 420, 6316, 28781, 3198, 3123, 1247, 28747, 22557, 32000, 420, 6316, 28781, 3198, 3123, 21631, 28747]
MULTI_TURN = [
    1,
    420,
    6316,
    28781,
    3198,
    3123,
    1247,
    28747,
    22557,
    32000,
    420,
    6316,
    28781,
    3198,
    3123,
    21631,
    28747,
    15359,
    32000,
    420,
    6316,
    28781,
    3198,
    3123,
    1247,
    28747,
    1602,
    460,
    368,
    3154,
    28804,
    32000,
    420,
    6316,
    28781,
    3198,
    3123,
    21631,
    28747,
]
CODING = [1, 7596, 1247, 28747, 26256, 2936, 7653, 1413, 334, 1680, 32000, 7596, 21631, 28747]
MODEL_CARD = {
    "single_turn": (SINGLE_TURN, "GPT4 Correct", ["Hello"]),
    "multi_turn": (MULTI_TURN, "GPT4 Correct", ["Hello", "Hi", "How are you today?"]),
    "coding_mode": (CODING, "Code", ["Implement quicksort using C++"]),
}

# What every template writes, said a second time: control tokens per turn, and what is between header and content.
CONTROL_TOKENS_PER_TURN = {"openchat_3.2": 1, "openchat_3.5": 1, "openchat_3.6": 3, "chatml": 2}
CONTENT_LEAD = {"openchat_3.2": " ", "openchat_3.5": " ", "openchat_3.6": "", "chatml": ""}
END_OF_TURN = {
    "openchat_3.2": "<|end_of_turn|>",
    "openchat_3.5": "<|end_of_turn|>",
    "openchat_3.6": "<|eot_id|>",
    "chatml": "<|im_end|>",
}
TOKENIZERS = ("mistral", "byte_level")
every_template = pytest.mark.parametrize("template_name", sorted(CONTROL_TOKENS_PER_TURN))


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """A template on a tokenizer: in training, and in an export."""

    template: Template
    spec: TokenizerSpec
    training: TemplateTokenizer
    whole: Tokenizer  # the tokenizer with its special tokens on
    exported: Any

    def segments(self, turns: Sequence[tuple[str, str]], *, condition: str, system: str = "") -> Sequence[Segment]:
        messages = tuple(
            Message(role="user" if role == "user" else "assistant", content=content) for role, content in turns
        )
        tagged = TaggedConversation(
            conversation=Conversation(id="x", place="x", messages=messages, system=system),
            class_name="x",
            condition=condition,
            message_weights=tuple(float(role == "assistant") for role, _ in turns),
        )
        return render(tagged, self.template, bos_token=self.spec.bos_token)

    def train(self, turns: Sequence[tuple[str, str]], *, condition: str, system: str = "") -> TokenizedConversation:
        [tokens] = self.training.tokenize([self.segments(turns, condition=condition, system=system)])
        assert isinstance(tokens, TokenizedConversation)
        return tokens

    def prompt(self, turns: Sequence[tuple[str, str]], *, system: str = "", **variables: Any) -> list[int]:
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": role, "content": content} for role, content in turns]
        return list(self.exported.apply_chat_template(messages, return_dict=False, **variables))

    def decode(self, ids: Any) -> str:
        return self.whole.decode(list(ids), skip_special_tokens=False)

    def num_control(self, ids: Sequence[int]) -> int:
        control = control_ids(self.spec)
        return sum(i in control for i in ids)


PrompterFactory = Callable[[str], Prompter]


def export(tokenizer_dir: Path, template: Template, folder: Path) -> Prompter:
    spec = load_tokenizer_spec(find_tokenizer_files(str(tokenizer_dir)), template)
    condition = template.inference_condition
    write_tokenizer_folder(folder, spec, template, inference_condition=condition, max_length_tokens=10**6)
    return Prompter(
        template=template,
        spec=spec,
        training=TemplateTokenizer(spec),
        whole=Tokenizer.from_str(spec.backend),
        exported=transformers.AutoTokenizer.from_pretrained(folder),
    )


@pytest.fixture(scope="session")
def exported(
    mistral_tokenizer_dir: Path,
    llama_tokenizer_dir: Path,
    small_tokenizer_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Prompter]:
    """(tokenizer, template) -> that template on that tokenizer, made once; Mistral's has all its pieces with the
    template that OpenChat uses it with.
    """
    folders = {"mistral": llama_tokenizer_dir, "byte_level": small_tokenizer_dir}

    @functools.cache
    def make(tokenizer: str, template_name: str) -> Prompter:
        is_whole = (tokenizer, template_name) == ("mistral", "openchat_3.5")
        base = mistral_tokenizer_dir if is_whole else folders[tokenizer]
        return export(base, TEMPLATES[template_name], tmp_path_factory.mktemp("exported") / "tokenizer")

    return make


@pytest.fixture(params=TOKENIZERS, scope="session")
def prompter(request: pytest.FixtureRequest, exported: Callable[[str, str], Prompter]) -> PrompterFactory:
    """Template name -> that template on one of the tokenizers."""
    return functools.partial(exported, request.param)


def test_templates_are_all_in_the_tables_of_this_file() -> None:
    """Formats in which all turns are alike; the others are in test_vendor_templates.py."""
    alike = sorted(name for name, template in TEMPLATES.items() if uniform_format(template) is not None)
    assert alike == sorted(CONTROL_TOKENS_PER_TURN) == sorted(CONTENT_LEAD) == sorted(END_OF_TURN)


# ---- OpenChat's published ids ----


def card_messages(contents: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "assistant" if n % 2 else "user", "content": content} for n, content in enumerate(contents)]


@pytest.fixture(scope="module")
def card_prepared_dir(tmp_path_factory: pytest.TempPathFactory, mistral_tokenizer_dir: Path) -> Path:
    """The model card's conversations, each answered with "Hi", prepared with the real Mistral tokenizer."""
    folder = tmp_path_factory.mktemp("model_card")
    rows = [
        {"id": name, "condition": condition, "messages": card_messages([*contents, "Hi"])}
        for name, (_, condition, contents) in MODEL_CARD.items()
    ]
    path = write_jsonl(folder / "rows.jsonl", rows)
    classes = {condition: {"condition": condition, "weight": 1.0} for _, condition, _ in MODEL_CARD.values()}
    described = source(path, class_field="condition")
    prepare(make_job(folder / "prepared", [described], mistral_tokenizer_dir, classes=classes), num_workers=1)
    return folder / "prepared"


def test_prepared_tokens_begin_with_the_published_ids(card_prepared_dir: Path) -> None:
    answer = [15359, 32000]  # "Hi" and its end-of-turn
    rows = {row.id: row for row in rows_of(card_prepared_dir)}
    assert {name: row.input_ids for name, row in rows.items()} == {
        name: ids + answer for name, (ids, _, _) in MODEL_CARD.items()
    }
    first_answer = [0.0] * 17 + [1.0] * 2
    assert rows["single_turn"].loss_weights == first_answer
    assert rows["multi_turn"].loss_weights == first_answer + [0.0] * 20 + [1.0] * 2
    assert rows["coding_mode"].loss_weights == [0.0] * 14 + [1.0] * 2


@pytest.mark.parametrize("name", MODEL_CARD)
def test_exported_chat_template_gives_the_published_ids(name: str, exported: Callable[[str, str], Prompter]) -> None:
    ids, condition, contents = MODEL_CARD[name]
    tokenizer, messages = exported("mistral", "openchat_3.5").exported, card_messages(contents)
    assert ids == tokenizer.apply_chat_template(
        messages, condition=condition, add_generation_prompt=True, return_dict=False
    )
    if condition == "GPT4 Correct":  # the template's own
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == tokenizer.apply_chat_template(
            messages, condition=None, add_generation_prompt=True, return_dict=False
        )


def test_tokenizer_of_the_prepared_folder_gives_the_published_ids_and_survives_saving(
    card_prepared_dir: Path, tmp_path: Path
) -> None:
    """transformers 5.23 loses `legacy` of a Llama tokenizer in this way, and writes 28777 where 420 should be."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(card_prepared_dir / "tokenizer")
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        for ids, condition, contents in MODEL_CARD.values():
            variables = {"condition": condition, "add_generation_prompt": True, "return_dict": False}
            assert loaded.apply_chat_template(card_messages(contents), **variables) == ids


# ---- the text of a prompt ----

PROMPTS = {
    "openchat_3.2": "Be brief.<|end_of_turn|>C User: Hi<|end_of_turn|>C Assistant: Ho<|end_of_turn|>",
    "openchat_3.5": "Be brief.<|end_of_turn|>C User: Hi<|end_of_turn|>C Assistant: Ho<|end_of_turn|>",
    "openchat_3.6": (
        "<|start_header_id|>System<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>C User<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>C Assistant<|end_header_id|>\n\nHo<|eot_id|>"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>C user\nHi<|im_end|>\n<|im_start|>C "
        "assistant\nHo<|im_end|>\n"
    ),
}
GENERATION_PROMPTS = {
    "openchat_3.2": "C Assistant:",
    "openchat_3.5": "C Assistant:",
    "openchat_3.6": "<|start_header_id|>C Assistant<|end_header_id|>\n\n",
    "chatml": "<|im_start|>C assistant\n",
}


@every_template
def test_prompt_text_is_the_published_one(template_name: str, prompter: PrompterFactory) -> None:
    made, turns = prompter(template_name), [("user", "Hi"), ("assistant", "Ho")]
    for suffix, variables in (("", {}), (GENERATION_PROMPTS[template_name], {"add_generation_prompt": True})):
        expected = made.whole.encode("<s>" + PROMPTS[template_name] + suffix, add_special_tokens=False).ids
        assert made.prompt(turns, system="Be brief.", condition="C", **variables) == expected
    assert made.train(turns, system="Be brief.", condition="C").input_ids.tolist() == made.prompt(
        turns, system="Be brief.", condition="C"
    )


@every_template
def test_empty_condition_means_plain_roles(template_name: str, prompter: PrompterFactory) -> None:
    made, turns = prompter(template_name), [("user", "Hi"), ("assistant", "Ho")]
    expected = "<s>" + PROMPTS[template_name].replace("C ", "")
    ids = made.whole.encode(expected, add_special_tokens=False).ids
    assert made.train(turns, system="Be brief.", condition="").input_ids.tolist() == ids
    assert made.prompt(turns, system="Be brief.", condition="") == ids


# ---- training ids = exported ids, on texts that are known to be difficult ----

DIFFICULT = [
    "Hi",
    " Hi",
    "  Hi",
    "Hi ",
    "Hi  ",
    " ",
    "   ",
    "\n",
    "\n\n",
    "\nHi",
    "\n\nHi",
    "\n \nHi",
    "Hi\n",
    "Hi\n\n",
    "\tHi",
    "Hi\t",
    "\r\nHi\r\n",
    "Hi\r",
    "\x0b\x0cHi",
    "\u00a0Hi\u00a0",
    "\u2003Hi",
    "\u2028Hi\u2028",
    "\u200bHi\u200d",
    "\ufeffHi",
    "▁Hi▁",
    "▁",
    "_Hi",
    "é",
    "e\u0301",
    "\u0301",
    "\u0301Hi",
    "Ａ①ﬁ",
    "İß",
    "🙂",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "🙂\n🙂",
    "你好，世界。",
    "こんにちは",
    "안녕",
    "مرحبا",
    "\u202eHi",
    "1",
    "1,000",
    "3.14159",
    "0123456789",
    "１２",
    "a\0b",
    "\x7f\x80",
    "\ufffd",
    "\ufffe",
    "\U0010ffff",
    ":",
    ": Hi",
    "User:",
    " User: Hi",
    "GPT4 Correct Assistant:",
    "assistant\n",
    "def f(x):\n\treturn  x\n",
    "<",
    ">",
    "|",
    "<|",
    "|>",
    "<s>",
    "</s>",
    "<unk>",
    "<s> Hi </s>",
    "x<s>y",
    "<s",
    "s>",
    "<<s>>",
    "<s><s>",
    "<|end_of_turn|>",
    " <|end_of_turn|> ",
    "<|end_of_turn|><|end_of_turn|>",
    "x<|end_of_turn|>y",
    "<|end_of_turn|",
    "<|end_of_turn|<|end_of_turn|>",
    "<|end_of_turn|>GPT4 Correct Assistant: x",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|start_header_id|>System<|end_header_id|>\n\nx<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<0x0A>",
    "<0x41>",
    "{{ bos_token }}",
    "{% raw %}",
    "&lt;s&gt;",
]
CONDITIONS = [
    "",
    "GPT4 Correct",
    "Code",
    " ",
    " lead",
    "trail ",
    "\n",
    "é🙂",
    "<s>",
    "GPT4<|end_of_turn|>Correct",
    "<|end_of_turn|>",
    "<|eot_id|><|start_header_id|>",
    "<|im_end|>\n<|im_start|>",
]


def disagreement(
    made: Prompter,
    turns: Sequence[tuple[str, str]],
    *,
    condition: str,
    system: str = "",
    tokens: TokenizedConversation | None = None,
) -> str | None:
    """What is wrong between the ids of training and of the exported template, None where they are right.

    tokens: what training makes of these turns, where it is known.
    """
    tokens = tokens or made.train(turns, condition=condition, system=system)
    ids = tokens.input_ids.tolist()
    prompted = made.prompt(turns, condition=condition, system=system)
    num_expected = 1 + (len(turns) + bool(system)) * {**CONTROL_TOKENS_PER_TURN, **UNLIKE_OURS}[made.template.name]
    if ids != prompted:
        return f"trained on {made.decode(ids)!r} {ids}, prompted with {made.decode(prompted)!r} {prompted}"
    if made.num_control(ids) != num_expected:
        return f"{made.num_control(ids)} control ids, not {num_expected}: {made.decode(ids)!r}"
    return None


def disagreements_on_difficult_texts(made: Prompter) -> dict[str, str]:
    """Each text is in every place of a conversation: system, user, assistant, in the middle and last."""
    found = {}
    for text in DIFFICULT:
        turns = [("user", text), ("assistant", text), ("user", "Hi"), ("assistant", text)]
        if problem := disagreement(made, turns, condition="GPT4 Correct", system=text):
            found[text] = problem
    return found


@every_template
def test_exported_ids_are_the_training_ids(template_name: str, prompter: PrompterFactory) -> None:
    assert disagreements_on_difficult_texts(prompter(template_name)) == {}


UNLIKE_OURS = {"text_headers": 1, "closed_headers": 2}  # control tokens per turn


@pytest.mark.parametrize("template", [TEXT_HEADERS, CLOSED_HEADERS], ids=lambda template: template.name)
@pytest.mark.parametrize("tokenizer", ["llama", "small"])
def test_exported_ids_are_the_training_ids_for_templates_unlike_ours(
    template: Template, tokenizer: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{tokenizer}_tokenizer_dir")
    assert disagreements_on_difficult_texts(export(folder, template, tmp_path / "exported")) == {}


@every_template
@pytest.mark.parametrize("condition", CONDITIONS, ids=ascii)
def test_exported_ids_are_the_training_ids_under_any_condition(
    condition: str, template_name: str, prompter: PrompterFactory
) -> None:
    made = prompter(template_name)
    turns = [("user", "Hi"), ("assistant", "Ho")]
    assert disagreement(made, turns, condition=condition, system="Be brief.") is None
    generation = made.prompt(turns[:1], condition=condition, add_generation_prompt=True)
    assert generation == made.train(turns, condition=condition).input_ids.tolist()[: len(generation)]


@every_template
@pytest.mark.parametrize("contents", [("", "Ho"), ("Hi", ""), ("", "")], ids=["user", "assistant", "both"])
def test_exported_ids_are_the_training_ids_with_empty_content(
    contents: tuple[str, str], template_name: str, prompter: PrompterFactory
) -> None:
    """Preparation refuses empty messages; the template itself writes the bare header, without a space after it."""
    turns = [("user", contents[0]), ("assistant", contents[1])]
    assert disagreement(prompter(template_name), turns * 2, condition="C") is None


def supervised_texts(made: Prompter, tokens: TokenizedConversation) -> list[str]:
    """The text of each run of supervised tokens.

    Decoded from the whole prompt, because a Llama tokenizer strips the space in front of a piece that is decoded alone.
    """
    edges = np.flatnonzero(np.diff(tokens.loss_weights > 0, prepend=False, append=False)).tolist()
    texts = [made.decode(tokens.input_ids[:edge].tolist()) for edge in edges]
    return [end.removeprefix(start) for start, end in zip(texts[::2], texts[1::2], strict=True)]


@every_template
def test_supervised_tokens_are_exactly_content_and_end_of_turn(template_name: str, prompter: PrompterFactory) -> None:
    made = prompter(template_name)
    lead, end_of_turn = CONTENT_LEAD[template_name], END_OF_TURN[template_name]
    wrong = {}
    for text in DIFFICULT:
        if text[0].isspace():
            continue
        tokens = made.train(
            [("user", text), ("assistant", text), ("user", "Hi"), ("assistant", "Ho")], condition="C", system=text
        )
        # a Llama tokenizer writes ▁ for a space, so that it cannot tell the two apart
        found = [run.replace("▁", " ") for run in supervised_texts(made, tokens)]
        if found != [(lead + answer + end_of_turn).replace("▁", " ") for answer in (text, "Ho")]:
            wrong[text] = found
        assert set(tokens.loss_weights.tolist()) == {0.0, 1.0}
    assert wrong == {}


@every_template
@pytest.mark.parametrize("text", ["\nHi", "\n\nHi", "  Hi", "\tHi", "\r\n Hi"], ids=ascii)
def test_leading_white_space_is_all_that_may_be_left_unsupervised(
    text: str, template_name: str, prompter: PrompterFactory
) -> None:
    """White space that shares a token with the prefix is not supervised; the rest of the message is."""
    made = prompter(template_name)
    [found] = supervised_texts(made, made.train([("user", "Hi"), ("assistant", text)], condition="C"))
    assert found.endswith("Hi" + END_OF_TURN[template_name])
    assert (CONTENT_LEAD[template_name] + text + END_OF_TURN[template_name]).endswith(found)


# ---- the same, on texts that nobody chose ----

RESERVED = "\ufdd0"
PIECES = sorted(
    {token for name in CONTROL_TOKENS_PER_TURN for token in TEMPLATES[name].control_tokens}
    | {
        "<s>",
        "</s>",
        "<unk>",
        "<|im_",
        "start|>",
        "<|",
        "|>",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        ":",
        "User:",
        "▁",
        "🙂",
        "\u0301",
    }
)
random_pieces = st.one_of(
    st.sampled_from(PIECES), st.text(st.characters(codec="utf-8", exclude_characters=RESERVED), max_size=5)
)
random_texts = st.lists(random_pieces, max_size=5).map("".join)
random_turns = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), random_texts), min_size=1, max_size=4)


# most code points have no meaning, so ASCII, accents, spaces, CJK and emoji are drawn more often
CHARACTER_RANGES = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x2000, 0x206F), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)]
CHARACTER_RANGES += [(0x1F300, 0x1FAFF), (0xE000, 0xFDCF), (0xFDD1, 0x10FFFF)]  # without surrogates and U+FDD0


def random_text(rng: random.Random) -> str:
    """Up to five pieces: known ones, or up to five characters."""
    texts = []
    for _ in range(rng.randint(0, 5)):
        if rng.random() < 0.5:
            texts.append(rng.choice(PIECES))
        else:
            texts += [chr(rng.randint(*rng.choice(CHARACTER_RANGES))) for _ in range(rng.randint(0, 5))]
    return "".join(texts)


def check_random_conversation(
    exported: Callable[[str, str], Prompter],
    template_name: str,
    turns: list[tuple[str, str]],
    system: str,
    condition: str,
) -> None:
    """Exported ids = training ids, control ids are the template's own, the right ids are supervised; both
    tokenizers.
    """
    lead, end_of_turn = CONTENT_LEAD[template_name], END_OF_TURN[template_name]
    answers = [content for role, content in turns if role == "assistant"]
    for tokenizer in TOKENIZERS:
        made = exported(tokenizer, template_name)
        asked = f"{tokenizer}, {template_name}: {turns!r}, system {system!r}, condition {condition!r}"
        tokens = made.train(turns, system=system, condition=condition)
        assert disagreement(made, turns, system=system, condition=condition, tokens=tokens) is None, asked
        supervised = supervised_texts(made, tokens)
        assert len(supervised) == len(answers), asked
        for found, answer in zip(supervised, answers, strict=True):
            whole = (lead + answer if answer else "") + end_of_turn
            # white space in front may share a token with the prefix; ▁ is how a Llama tokenizer writes a space
            assert whole.replace("▁", " ").endswith(found.replace("▁", " ")), asked
            assert found.replace("▁", " ").endswith((answer.lstrip() + end_of_turn).lstrip("▁").replace("▁", " ")), (
                asked
            )


def test_2_000_random_conversations(exported: Callable[[str, str], Prompter]) -> None:
    """1,000 on each tokenizer. Hypothesis, below, would take longer to make them up than the checks take."""
    rng = random.Random(0)
    for number in range(1_000):
        template_name = sorted(CONTROL_TOKENS_PER_TURN)[number % len(CONTROL_TOKENS_PER_TURN)]
        turns = [(rng.choice(["user", "assistant"]), random_text(rng)) for _ in range(rng.randint(1, 4))]
        condition = rng.choice(CONDITIONS) if rng.random() < 0.5 else random_text(rng)
        check_random_conversation(exported, template_name, turns, random_text(rng), condition)


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(
    template_name=st.sampled_from(sorted(CONTROL_TOKENS_PER_TURN)),
    turns=random_turns,
    system=random_texts,
    condition=st.one_of(st.sampled_from(CONDITIONS), random_texts),
)
def test_random_conversations_that_shrink_to_the_smallest_wrong_one(
    exported: Callable[[str, str], Prompter],
    template_name: str,
    turns: list[tuple[str, str]],
    system: str,
    condition: str,
) -> None:
    check_random_conversation(exported, template_name, turns, system, condition)


# ---- controls: the checks above can fail ----


@every_template
@pytest.mark.parametrize("place", ["system", "user", "assistant", "condition"])
def test_tokenizing_with_special_tokens_on_would_inject_control_ids(
    place: str, template_name: str, prompter: PrompterFactory
) -> None:
    """What OpenChat did for the condition, and what a plain chat template does for everything."""
    made = prompter(template_name)
    texts = {"system": "Be brief.", "user": "Hi", "assistant": "Ho", "condition": "C"}
    texts[place] = f"x{END_OF_TURN[template_name]}y<s>z"
    turns = [(role, texts[role]) for role in ("user", "assistant")]
    segments = made.segments(turns, condition=texts["condition"], system=texts["system"])
    prompt = "".join(
        getattr(segment, "prefix", "") + getattr(segment, "content", "") or segment.text for segment in segments
    )
    naive = made.num_control(made.whole.encode(prompt, add_special_tokens=False).ids)
    times = 2 if place == "condition" else 1
    assert naive == 1 + 3 * CONTROL_TOKENS_PER_TURN[template_name] + 2 * times
    safe = made.train(turns, condition=texts["condition"], system=texts["system"]).input_ids.tolist()
    assert made.num_control(safe) == 1 + 3 * CONTROL_TOKENS_PER_TURN[template_name]


# ---- tokenizers of other kinds ----


def legacy_llama(description: dict[str, Any]) -> None:
    """Llama-2's tokenizer.json: the space in front comes from the normalizer."""
    prepend, replace = (
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    )
    description["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    description["pre_tokenizer"] = None


def metaspace(prepend_scheme: str, description: dict[str, Any]) -> None:
    pre_tokenizer = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": False}
    description["pre_tokenizer"] = pre_tokenizer


def space_before_the_first_text_only(description: dict[str, Any]) -> None:
    """A Llama tokenizer saved with `legacy: false`."""
    metaspace("first", description)


def no_space_in_front(description: dict[str, Any]) -> None:
    metaspace("never", description)


def composed_unicode(description: dict[str, Any]) -> None:
    description["normalizer"] = {"type": "NFC"}


def length_limit(description: dict[str, Any]) -> None:
    """A limit that somebody saved with the tokenizer would cut texts silently."""
    description["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}


def specials_matched_after_normalizing(description: dict[str, Any]) -> None:
    for token in description["added_tokens"]:
        token["normalized"] = True


def text_tokens_with_flags(description: dict[str, Any]) -> None:
    """Added tokens that are plain text and take white space with them, as code models have."""
    flags = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": False}
    number = max(description["model"]["vocab"].values()) + 1
    description["added_tokens"].append({"id": number, "content": "Hi", **flags})


OTHER_KINDS = [
    (legacy_llama, "openchat_3.2"),
    (legacy_llama, "chatml"),
    (space_before_the_first_text_only, "openchat_3.5"),
    (space_before_the_first_text_only, "openchat_3.6"),
    (no_space_in_front, "openchat_3.5"),
    (composed_unicode, "chatml"),
    (length_limit, "openchat_3.5"),
]


@pytest.mark.parametrize(("change", "template_name"), OTHER_KINDS)
def test_other_llama_tokenizers_export_the_training_ids(
    change: Callable[[dict[str, Any]], None], template_name: str, tmp_path: Path, llama_tokenizer_dir: Path
) -> None:
    tokenizer_dir = changed_tokenizer(tmp_path / "changed", llama_tokenizer_dir, change)
    made = export(tokenizer_dir, TEMPLATES[template_name], tmp_path / "exported")
    check_chat_template(made.spec, made.template)
    assert disagreements_on_difficult_texts(made) == {}


@pytest.mark.parametrize("change", [specials_matched_after_normalizing, text_tokens_with_flags])
@pytest.mark.parametrize("base", ["llama", "byte_level"])
def test_tokenizer_that_reads_a_whole_prompt_differently_is_refused_or_safe(
    base: str,
    change: Callable[[dict[str, Any]], None],
    tmp_path: Path,
    llama_tokenizer_dir: Path,
    small_tokenizer_dir: Path,
) -> None:
    """`normalized: true`, as in early Llama tokenizers, finds `<s>` after the template's break has been taken out
    again.
    """
    base_dir = llama_tokenizer_dir if base == "llama" else small_tokenizer_dir
    made = export(
        changed_tokenizer(tmp_path / "changed", base_dir, change), TEMPLATES["openchat_3.5"], tmp_path / "exported"
    )
    with contextlib.suppress(UserError):
        check_chat_template(made.spec, made.template)
        assert disagreements_on_difficult_texts(made) == {}


def test_preparation_refuses_a_tokenizer_that_cannot_be_prompted_as_trained(
    tmp_path: Path, llama_tokenizer_dir: Path
) -> None:
    def change(description: dict[str, Any]) -> None:
        description["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
        description["normalizer"] = None

    tokenizer_dir = changed_tokenizer(tmp_path / "changed", llama_tokenizer_dir, change)
    # without a beginning-of-sequence token the first text of a prompt gets a space that no other text gets
    (tokenizer_dir / "tokenizer_config.json").write_text("{}")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": card_messages(["Hello", "Hi"])}])
    with pytest.raises(UserError, match=r"model\.tokenizer: with template `openchat_3\.5`"):
        prepare(make_job(tmp_path / "prepared", [source(path)], tokenizer_dir), num_workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed", "rows.jsonl"]


# ---- what the exported template refuses ----


@every_template
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": None}],
    ],
    ids=["unknown_role", "system_in_the_middle", "parts", "no_content"],
)
def test_exported_template_refuses_what_training_never_saw(
    messages: list[dict[str, Any]], template_name: str, prompter: PrompterFactory
) -> None:
    with pytest.raises(jinja2.exceptions.TemplateError):
        prompter(template_name).exported.apply_chat_template(messages, return_dict=False)


@every_template
def test_exported_template_leaves_out_an_empty_system_message(template_name: str, prompter: PrompterFactory) -> None:
    made = prompter(template_name)
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
    assert made.exported.apply_chat_template(messages, condition="C", return_dict=False) == made.prompt(
        [("user", "Hi")], condition="C"
    )


@every_template
def test_missing_control_tokens_are_added_behind_the_vocabulary(template_name: str, prompter: PrompterFactory) -> None:
    made = prompter(template_name)
    template = TEMPLATES[template_name]
    assert made.spec.added_control_tokens == tuple(template.control_tokens)
    vocab_size = made.spec.vocab_size
    added = [made.whole.token_to_id(token) for token in template.control_tokens]
    assert added == list(range(vocab_size - len(added), vocab_size))
    assert made.exported.eos_token == template.end_of_turn
