"""Made-up rows in the layouts of well-known public datasets, how a recipe reads them, and what must be supervised.

`python -m tests.support.public_layouts` prints the table of docs/own-data.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CLASS = {"class": "expert"}
PAIR = {"answer_classes": {"chosen": "expert", "rejected": "other"}}
ASK, SAY, MORE, REPLY = "What is 6 times 7?", "It is 42.", "And 6 times 8?", "That is 48."
BAD = "It is 41, I guess."


def turns(role: str, content: str, names: tuple[str, str] = ("user", "assistant"), **more: Any) -> list[dict[str, Any]]:
    """Two prompts with their answers; more: keys of each message."""
    said = [(names[0], ASK), (names[1], SAY), (names[0], MORE), (names[1], REPLY)]
    return [{role: name, content: text, **more} for name, text in said]


CHAT, SHARED = turns("role", "content"), turns("from", "value", ("human", "gpt"))


def in_parts(messages: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Messages whose text is a list of parts, with the nulls of Parquet."""
    extra = {"image": None, "mimeType": None}
    return [{"role": m["role"], "content": [{"type": "text", "text": m["content"], **extra}]} for m in messages]


def chat_answers(row: Mapping[str, Any]) -> list[list[str]]:
    """The supervised texts of a row of messages, by its keys alone."""
    key = next(name for name in ("messages", "conversations", "conversation") if name in row)
    answers = [said for said in row[key] if {"assistant", "gpt"} & {said.get("role"), said.get("from")}]
    return [[said.get("content") or said.get("value") for said in answers]]


def key_answer(key: str) -> Callable[[Mapping[str, Any]], list[list[str]]]:
    """The supervised text is the value of a key."""
    return lambda row: [[row[key]]]


@dataclass(frozen=True, kw_only=True)
class PublicLayout:
    """A dataset's layout. source: what a recipe says beside path and class. ignored: `data.ignore_fields`.

    supervised: by row, the supervised texts of each of its conversations. refused: what the error says instead.
    """

    name: str
    row: Any
    source: Mapping[str, Any] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    supervised: Callable[[Any], list[list[str]]] = chat_answers
    refused: str = ""

    @property
    def recipe(self) -> str:
        """What a recipe needs beside `format: auto` and a class, as YAML."""
        parts = [f"{key}: {_yaml(value)}" for key, value in self.source.items() if key not in ("class", "format")]
        parts += [f"ignore_fields: {_yaml(list(self.ignored))}"] if self.ignored else []
        return ", ".join(parts)


def _yaml(value: Any) -> str:
    return json.dumps(value).replace('"', "")


LMSYS = {"conversation_id": "c1", "model": "m-13b", "conversation": CHAT, "turn": 2, "language": "English"}
MODERATION = [{"categories": {"hate": False}, "category_scores": {"hate": 0.1}, "flagged": False}]
HELPSTEER = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 3)
FUNCTION = {"name": "product", "description": "Multiply two numbers.", "parameters": {"a": {"type": "int"}}}
COMPLETIONS = [
    {
        "annotations": {"helpfulness": {"Rating": "5", "Rationale": "It is right."}},
        "critique": "A good answer.",
        "custom_system_prompt": "Be brief.",
        "fine-grained_score": 4.5,
        "model": model,
        "overall_score": score,
        "principle": "helpfulness",
        "response": text,
    }
    for model, score, text in (("large", 8.5, SAY), ("small", 3.0, BAD))
]
HH = "\n\nHuman: {}\n\nAssistant: {}\n\nHuman: {}\n\nAssistant: {}"

LAYOUTS = (
    PublicLayout(
        name="UltraChat",
        row={"id": "0", "data": [ASK, SAY, MORE, REPLY]},
        supervised=lambda row: [row["data"][1::2]],
    ),
    PublicLayout(name="UltraChat 200k", row={"prompt": ASK, "prompt_id": "a" * 64, "messages": CHAT}),
    PublicLayout(
        name="OASST2",
        row={"message_id": "m1", "parent_id": None, "role": "prompter", "text": ASK, "lang": "en"},
        refused="one message of a tree a row",
    ),
    PublicLayout(name="LMSYS-Chat-1M", row={**LMSYS, "openai_moderation": MODERATION, "redacted": False}),
    PublicLayout(
        name="WildChat",
        row={
            "conversation_hash": "f" * 32,
            "model": "m-4",
            "timestamp": "2024-04-09T00:02:53Z",
            "conversation": turns(
                "role",
                "content",
                country="Russia",
                hashed_ip="a" * 64,
                header={"accept-language": "en, de", "user-agent": "A browser"},
                language="English",
                redacted=False,
                state=None,
                timestamp=None,
                toxic=False,
                turn_identifier=1,
            ),
            "turn": 2,
            "language": "English",
            "openai_moderation": MODERATION,
            "detoxify_moderation": [{"toxicity": 0.1}],
            "toxic": False,
            "redacted": False,
            "state": "Sverdlovsk Oblast",
            "country": "Russia",
            "hashed_ip": "a" * 64,
            "header": {"user-agent": "A browser"},
        },
    ),
    PublicLayout(
        name="OpenHermes 2.5",
        row={
            "custom_instruction": None,
            "topic": None,
            "model_name": None,
            "model": None,
            "skip_prompt_formatting": False,
            "category": "orca",
            "conversations": SHARED,
            "views": None,
            "language": None,
            "id": None,
            "title": None,
            "idx": None,
            "hash": None,
            "avatarUrl": None,
            "system_prompt": None,
            "source": "airoboros2.2",
        },
    ),
    PublicLayout(
        name="SlimOrca",
        row={
            "conversations": [
                {"from": "system", "value": "Be brief.", "weight": None},
                {"from": "human", "value": ASK, "weight": 0.0},
                {"from": "gpt", "value": SAY, "weight": 1.0},
            ]
        },
    ),
    PublicLayout(
        name="OpenOrca",
        row={"id": "niv.1", "system_prompt": "Be brief.", "question": ASK, "response": SAY},
        supervised=key_answer("response"),
    ),
    PublicLayout(name="SmolTalk", row={"messages": CHAT, "source": "smol-magpie-ultra"}),
    PublicLayout(
        name="UltraFeedback",
        row={
            "source": "evol_instruct",
            "instruction": ASK,
            "models": ["large", "small"],
            "completions": COMPLETIONS,
            "correct_answers": ["42"],
            "incorrect_answers": ["41"],
        },
        source={**CLASS, "fields": {"system": "custom_system_prompt"}, "reward_field": "completions.overall_score"},
        ignored=("completions.annotations", "completions.critique", "correct_answers", "incorrect_answers"),
        supervised=lambda row: [[answer["response"]] for answer in row["completions"]],
    ),
    PublicLayout(
        name="UltraFeedback binarized",
        row={
            "prompt": ASK,
            "prompt_id": "a" * 64,
            "chosen": CHAT[:2],
            "rejected": [CHAT[0], {"role": "assistant", "content": BAD}],
            "messages": CHAT[:2],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        source=PAIR,
        supervised=lambda row: [[row["chosen"][-1]["content"]], [row["rejected"][-1]["content"]]],
    ),
    PublicLayout(
        name="xLAM function calling",
        row={
            "id": 0,
            "query": ASK,
            "answers": json.dumps([{"name": "product", "arguments": {"a": 6, "b": 7}}]),
            "tools": json.dumps([FUNCTION]),
        },
        refused="answers that are calls as JSON text",
    ),
    PublicLayout(
        name="Hermes function calling",
        row={
            "id": "h1",
            "conversations": [*SHARED[:2], {"from": "tool", "value": "42"}, SHARED[3]],
            "tools": json.dumps([{"type": "function", "function": FUNCTION}]),
            "category": "Math",
            "subcategory": "Products",
            "task": "Multiply numbers",
        },
        refused="has no place for",
    ),
    PublicLayout(
        name="OpenThoughts",
        row={
            "system": "Think first.",
            "conversations": [
                {"from": "user", "value": ASK},
                {"from": "assistant", "value": "<|begin_of_thought|> 6 times 7 <|end_of_thought|> 42"},
            ],
        },
        supervised=lambda row: [[row["conversations"][1]["value"]]],
    ),
    PublicLayout(name="Tulu 3", row={"id": "t_1", "messages": CHAT, "source": "ai2-adapt-dev/no_robots"}),
    PublicLayout(
        name="Aya",
        row={
            "inputs": ASK,
            "targets": SAY,
            "language": "English",
            "language_code": "eng",
            "annotation_type": "original-annotations",
            "user_id": "a" * 64,
        },
        supervised=key_answer("targets"),
    ),
    PublicLayout(
        name="Dolly",
        row={"instruction": "Multiply.", "context": "6 and 7", "response": SAY, "category": "closed_qa"},
        supervised=key_answer("response"),
    ),
    PublicLayout(
        name="HelpSteer2",
        row={"prompt": ASK, "response": SAY, **HELPSTEER},
        source={**CLASS, "reward_field": "helpfulness"},
        supervised=key_answer("response"),
    ),
    PublicLayout(
        name="MetaMathQA",
        row={"type": "MATH_Rephrased", "query": ASK, "original_question": "6 times 7, please?", "response": SAY},
        ignored=("original_question",),
        supervised=key_answer("response"),
    ),
    PublicLayout(
        name="Magicoder OSS-Instruct",
        row={
            "lang": "python",
            "raw_index": 5,
            "index": 6,
            "seed": "def product(a, b):\n    pass",
            "openai_fingerprint": "fp_1",
            "problem": ASK,
            "solution": SAY,
        },
        ignored=("seed",),
        supervised=key_answer("solution"),
    ),
    PublicLayout(name="GSM8K", row={"question": ASK, "answer": "6 * 7 = 42\n#### 42"}, supervised=key_answer("answer")),
    PublicLayout(
        name="Nectar",
        row={
            "prompt": f"\n\nHuman: {ASK}\n\nAssistant: ",
            "answers": [{"answer": SAY, "model": "large", "rank": 1.0}, {"answer": BAD, "model": "small", "rank": 2.0}],
            "turns": 1,
            "num_responses": 2,
            "source": ["sharegpt"],
            "good_natured": True,
        },
        source={"class_field": "answers.rank"},
        supervised=lambda row: [[answer["answer"]] for answer in row["answers"]],
    ),
    PublicLayout(
        name="Capybara",
        row={"source": "Airoboros", "conversation": [{"input": ASK, "output": SAY}, {"input": MORE, "output": REPLY}]},
        supervised=lambda row: [[pair["output"] for pair in row["conversation"]]],
    ),
    PublicLayout(name="no_robots", row={"prompt": ASK, "prompt_id": "a" * 64, "messages": CHAT, "category": "Open QA"}),
    PublicLayout(
        name="LIMA",
        row={"conversations": [ASK, SAY], "source": "stackexchange"},
        supervised=lambda row: [row["conversations"][1::2]],
    ),
    PublicLayout(
        name="Alpaca",
        row={"instruction": ASK, "input": "", "output": SAY, "text": f"### Instruction:\n{ASK}\n### Response:\n{SAY}"},
        ignored=("text",),
        supervised=key_answer("output"),
    ),
    PublicLayout(
        name="ShareGPT",
        row={"id": "QWJ_0", "conversations": [*SHARED[:3], {"from": "bing", "value": REPLY}]},
        supervised=lambda row: [[row["conversations"][1]["value"], row["conversations"][3]["value"]]],
    ),
    PublicLayout(
        name="Anthropic HH",
        row={"chosen": HH.format(ASK, SAY, MORE, REPLY), "rejected": HH.format(ASK, SAY, MORE, BAD)},
        source=PAIR,
        supervised=lambda row: [[SAY, REPLY], [SAY, BAD]],
    ),
    PublicLayout(
        name="OpenMathInstruct-2",
        row={"problem": ASK, "generated_solution": SAY, "expected_answer": "42", "problem_source": "augmented_math"},
        supervised=key_answer("generated_solution"),
    ),
    PublicLayout(
        name="NuminaMath-CoT", row={"source": "amc_aime", "problem": ASK, "solution": SAY, "messages": CHAT[:2]}
    ),
    PublicLayout(
        name="Infinity-Instruct",
        row={
            "id": 5,
            "conversations": SHARED,
            "label": {"ability_en": ["math ability"], "cate_ability_en": ["reasoning ability"]},
            "langdetect": "en",
            "source": "OpenHermes",
        },
    ),
    PublicLayout(
        name="Chatbot Arena",
        row={
            "question_id": "a" * 32,
            "model_a": "large",
            "model_b": "small",
            "winner": "model_b",
            "judge": "arena_user_1",
            "conversation_a": [CHAT[0], {"role": "assistant", "content": BAD}],
            "conversation_b": CHAT[:2],
            "turn": 1,
            "anony": True,
            "language": "English",
            "tstamp": 1.5,
            "openai_moderation": {"flagged": False},
            "toxic_chat_tag": {"x": {"flagged": False}},
        },
        source=PAIR,
        supervised=lambda row: [[row["conversation_a"][1]["content"]], [row["conversation_b"][1]["content"]]],
    ),
    PublicLayout(name="WizardLM Evol-Instruct V2", row={"idx": "w1", "conversations": SHARED}),
    PublicLayout(
        name="Arena human preference 140k",
        row={
            "id": "a" * 36,
            "model_a": "large",
            "model_b": "small",
            "winner": "both_bad",
            "evaluation_session_id": "b" * 36,
            "evaluation_order": 1,
            "conversation_a": in_parts(CHAT[:2]),
            "conversation_b": in_parts([CHAT[0], {"role": "assistant", "content": BAD}]),
            "conv_metadata": {"sum_user_tokens": 9, "bold_count_a": {"**": 0}},
            "category_tag": {"math_v0.1": {"math": True}},
            "language": "en",
            "is_code": False,
            "timestamp": "2025-06-05T09:01:13Z",
        },
        source={"answer_classes": {"chosen": "expert", "rejected": "other", "bothbad": "other"}},
        supervised=lambda row: [[SAY], [BAD]],
    ),
    PublicLayout(
        name="Llama-Nemotron post-training",
        row={
            "input": CHAT[:1],
            "output": SAY,
            "category": "math",
            "license": "cc-by-4.0",
            "reasoning": "off",
            "generator": "large",
            "used_in_training": "no",
            "version": "v1.1",
            "system_prompt": "",
        },
        ignored=("used_in_training",),
        supervised=key_answer("output"),
    ),
    PublicLayout(
        name="OpenR1-Math",
        row={
            "problem": ASK,
            "solution": "Six sevens are 42.",
            "answer": "42",
            "problem_type": "Number Theory",
            "question_type": "math-word-problem",
            "source": "olympiads",
            "uuid": "a" * 36,
            "is_reasoning_complete": [True, True],
            "generations": [SAY, BAD],
            "correctness_math_verify": [True, False],
            "correctness_llama": None,
            "finish_reasons": ["stop", "stop"],
            "correctness_count": 1,
            "messages": CHAT[:2],
        },
        ignored=("solution", "is_reasoning_complete", "generations", "correctness_math_verify", "finish_reasons"),
    ),
    PublicLayout(
        name="SmolTalk2",
        row={
            "messages": CHAT,
            "chat_template_kwargs": {
                "custom_instructions": "",
                "enable_thinking": False,
                "python_tools": [],
                "xml_tools": [],
            },
            "source": "smol-magpie-ultra",
        },
    ),
)


def table() -> str:
    """The table of docs/own-data.md."""
    lines = ["| rows as in | with `format: auto` and a class |", "| --- | --- |"]
    for layout in LAYOUTS:
        said = f"refused: {layout.refused}" if layout.refused else "read unchanged"
        if layout.recipe:
            said = f"read with `{layout.recipe}`"
        lines.append(f"| {layout.name} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
