"""Keys of rows and messages that need not be read, and what a value must look like for its key to be read or named.

Whatever is not read and could be a part of the conversation is an error (`formats/unread.py`), so that nothing is left
out of the training silently. docs/prepared-data.md shows these lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Keys that describe a row or a message; nobody trains on their values. By kind, as the documentation shows them.
HARMLESS_KEYS: Mapping[str, str] = {
    "names": """
        id _id idx index raw_index uid uuid guid hash key sample_id row_id message_id msg_id turn_id turn_identifier
        prompt_id question_id conversation_id conversation_hash conv_id chat_id dialogue_id thread_id session_id
        parent_id tree_id message_tree_id user_id annotator_id hashed_ip fingerprint openai_fingerprint
        __index_level_0__ name title
    """,
    "where it is from": """
        source sources dataset dataset_name dataset_source data_source problem_source origin generator provider url urls
        link href avatarUrl license licence license_type author creator annotator domain subset split config
        annotation_type generation_method
    """,
    "models": """
        model models model_name model_id model_a model_b model_version engine finish_reason usage temperature top_p
        chosen_model rejected_model chosen-model rejected-model
    """,
    "time": "date time timestamp tstamp created created_at created_date create_time updated updated_at update_time",
    "language and topic": """
        language languages lang language_code langdetect locale country state region category categories subcategory
        topic topics subtopic subject type types task task_type task_name tag tags label labels keyword keywords
        difficulty level grade theme genre style field cluster problem_type question_type
    """,
    "scores": """
        score scores score_chosen score_rejected reward rewards rating ratings rank quality helpfulness correctness
        coherence complexity verbosity toxicity toxic redacted anony judge winner votes views likes confidence
        probability perplexity ppl fine-grained_score overall_score margin is_correct correct verified checked
        openai_moderation detoxify_moderation toxic_chat_tag moderation average_rating
    """,
    "counts": """
        turn turns num_turns n_turns round rounds length len num_tokens n_tokens token_count tokens_count num_chars
        char_count word_count num_messages count prompt_tokens completion_tokens
    """,
    "references that a checker compares with": "expected_answer ground_truth reference_answer gold_answer final_answer",
    "other facts": """
        header status deleted synthetic review_state review_count custom_instruction skip_prompt_formatting
        recipient channel end_turn
    """,
}
HARMLESS: frozenset[str] = frozenset(" ".join(HARMLESS_KEYS.values()).split())
# Keys that are harmless whatever they hold. The others are so only while they hold what their name says: a text may be
# an instruction, a list of objects the documents of a prompt, and a channel may say that a message is no answer.
_CONDITIONAL = frozenset(
    " ".join(HARMLESS_KEYS[kind] for kind in ("where it is from", "language and topic", "other facts")).split()
) | {"title"}
ALWAYS_HARMLESS: frozenset[str] = HARMLESS - _CONDITIONAL

# What a key is called that says how much is learned from something.
_MARK_NAME = re.compile(
    r"weight|loss|mask|(^|_)train|(^|_)learn|supervis|(^|_)(ignored?|skip(ped)?|excluded?|no_?grad)($|_)", re.I
)
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # in `isTrain`
_REASONING_NAME = re.compile(
    r"^(thoughts?|think|cot|chain_of_thought|rationale|scratchpad|reflection|analysis|(inner_|internal_)?monologue|"
    r"(thinking|reasoning|thought)_(content|text|trace|process|steps?))$",
    re.I,
)
_MEDIA_NAME = re.compile(r"(^|_)(images?|audios?|videos?|pixel_values|bboxe?s?)($|_)", re.I)
_CALL_NAME = re.compile(
    r"(^|_)(function|tool)_?calls?$|(^|_)calls$|^functions$|^arguments$|^(tool|action)_input$", re.I
)
_LONGEST_WORD = 40
_LONGEST_LABEL = 120
_NOT_LEARNED = -100  # the label that trainers leave out of the loss
_OTHER_CHANNEL = re.compile(r"analysis|commentary")  # of the harmony format; `final` is the answer
_FUNCTION = re.compile(r"functions?\..+|\w+\.\w+|python|browser|web|bio")  # a recipient that is not a person
_SHORTEST_OTHER_SCRIPT = 5  # characters of a script that may be written without spaces
_REFERENCE = re.compile(r"(https?://\S+|[0-9a-fA-F-]{32,}|\d{4}-\d\d-\d\d[T ][\d:.+Z-]+)")  # a link, a hash, a time


def is_media(name: str) -> bool:
    """Whether a key holds images, sounds or videos, by its name."""
    return _MEDIA_NAME.search(name) is not None


def is_harmless(name: str, value: Any) -> bool:
    """Whether a key describes a row or a message, and its value is such a description."""
    return name in HARMLESS and (name not in _CONDITIONAL or _is_description(name, value))


def _is_description(name: str, value: Any) -> bool:
    if isinstance(value, str):
        if name == "custom_instruction":
            return not _is_text(value)
        if name in ("channel", "recipient"):
            return (_OTHER_CHANNEL if name == "channel" else _FUNCTION).fullmatch(value) is None
        return not _is_text(value) or (len(value.strip()) <= _LONGEST_LABEL and "\n" not in value.strip())
    if isinstance(value, list | tuple):
        has_text = any(isinstance(e, Mapping) and any(map(_is_any_text, e.values())) for e in value)
        return not has_text and _NOT_LEARNED not in value
    if isinstance(value, Mapping):
        return not any(_is_mark(str(key), item) for key, item in value.items())
    return bool(value != _NOT_LEARNED)


def _is_mark(name: str, value: Any) -> bool:
    """Whether a key says how much is learned from something."""
    return _MARK_NAME.search(_HUMP.sub("_", name)) is not None or bool(value == _NOT_LEARNED)


def _is_any_text(value: Any) -> bool:
    return isinstance(value, str) and _is_text(value) and (len(value.strip()) > _LONGEST_WORD or len(value.split()) > 4)


def content_kind(name: str, value: Any) -> str | None:
    """What an unknown key seems to hold (`text`, `a list`, ...); None for a label, a number, or nothing.

    name: the key itself. A value that may be a part of a conversation, or say how much is learned from it, has a kind.
    """
    if value is None or value in ("", [], {}, ()):
        return None
    if is_media(name):
        return "an image, sound or video"
    if _is_mark(name, value):
        return "a mark for training"
    if _CALL_NAME.search(name) and isinstance(value, str | list | tuple | Mapping):
        return "a call"
    if name == "channel" and isinstance(value, str) and _OTHER_CHANNEL.fullmatch(value):
        return "the name of a part that is not an answer"
    if name == "recipient" and isinstance(value, str) and _FUNCTION.fullmatch(value):
        return "the name of a function"
    if isinstance(value, str):
        return "text" if _is_text(value) or _REASONING_NAME.search(name) else None
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    return None


def _is_text(value: str) -> bool:
    """Whether a text is more than one short word, a link, a hash or a time."""
    value = value.strip()
    if not value or _REFERENCE.fullmatch(value):
        return False
    if len(value) > _LONGEST_WORD or any(map(str.isspace, value)):
        return True
    return not value.isascii() and len(value) >= _SHORTEST_OTHER_SCRIPT
