"""A source of a recipe: which files, how their rows are laid out, and which class they have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from data_pipeline.formats.fields import ROLES_OF_RECIPES, Fields
from data_pipeline.formats.preference import ANSWERS
from data_pipeline.formats.row_format import RowFormat
from data_pipeline.formats.table import FORMATS
from data_pipeline.path_keys import PathText
from data_pipeline.section import Section, step_setting
from data_pipeline.text_rules import quoted

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]

# Fields whose keys are all in a row, and all in a message.
_OF_A_ROW = (
    *("messages", "prompt", "input", "history", "chosen", "rejected", "answers"),
    *("system", "tools", "row_weight"),
)
_OF_A_MESSAGE = ("role", "content", "weight", "masked")
HUB_PREFIX = "hf://"  # of a source's path: a dataset on the Hub


def _key(description: str) -> Any:
    """A setting that names a key of a row or of a message."""
    return step_setting(None, min_length=1, description=description)


class FieldSettings(Section):
    """Names of keys, where rows use other ones than the format. What is left out is as the format says."""

    messages: str | None = _key("the list of messages")
    role: str | None = _key("in a message: who speaks")
    content: str | None = _key("in a message: its text")
    roles: dict[str, Literal[ROLES_OF_RECIPES]] = step_setting(  # type: ignore[valid-type]
        default_factory=dict, description="further names of roles, such as `{customer: user, agent: assistant}`"
    )
    prompt: str | None = _key("the prompt")
    input: str | None = _key("text that follows the prompt after a blank line")
    answer: str | None = _key("the answer; in `ranked` rows, the text in each of the answers")
    history: str | None = _key("earlier `[prompt, answer]` pairs")
    chosen: str | None = _key("the better answer")
    rejected: str | None = _key("the worse answer")
    answers: str | None = _key("the list of answers")
    system: str | None = _key("the system text")
    id: str | None = _key("the id")
    tools: str | None = _key("the functions that the assistant may call")
    weight: str | None = _key("in a message: how much is learned from it, a number, or true or false")
    masked: str | None = _key("in a message: true if nothing is learned from it")
    row_weight: str | None = _key("a number that multiplies the weights of all answers of a row")


class SourceSettings(Section):
    """Where raw conversations come from, and which class they have."""

    path: PathText = step_setting(
        description="a file of JSON lines, JSON, CSV, TSV, Parquet or Arrow (also packed), a folder or glob of them, a "
        "folder made by `datasets.save_to_disk`, or `hf://ORG/NAME` for a dataset on the Hub"
    )
    format: Format = step_setting(
        description="layout of the rows; `auto` finds it, and `openchat_tokenized` is what OpenChat's own "
        "`generate_dataset` writes"
    )
    class_name: str | None = step_setting(None, alias="class", description="the class of every row of this source")
    class_field: str | None = step_setting(
        None,
        description="instead of `class`: the field of a row that names its class (dots for nested fields, "
        "`meta.quality`)",
    )
    answer_classes: dict[Literal[ANSWERS], str] | None = step_setting(  # type: ignore[valid-type]
        None,
        min_length=1,
        description="instead of `class`, for rows with a chosen and a rejected answer: the class of each, "
        "`{chosen: good, rejected: bad}`",
    )
    reward_field: str | None = step_setting(
        None,
        description="the field of a row that holds the reward of its conversation, a number (dots for nested fields, "
        "`meta.score`); the class then has no `reward` or `weight`",
    )
    split: str | None = step_setting(
        None, description="split of a Hub dataset, or of a folder whose files are named after their splits"
    )
    subset: str | None = step_setting(
        None, min_length=1, description="subset (configuration) of a Hub dataset, or of a folder that holds one"
    )
    revision: str | None = step_setting(None, min_length=1, description="branch, tag or commit of a Hub dataset")
    fields: FieldSettings | None = step_setting(None, description="names of keys that differ from those of the format")
    think_tags: bool = step_setting(
        False,
        description="`<think>...</think>` at the beginning of an answer is its reasoning, and not text like any other",
    )

    @property
    def is_on_hub(self) -> bool:
        """Whether it is a dataset on the Hub."""
        return self.path.startswith(HUB_PREFIX)

    @property
    def row_format(self) -> RowFormat:
        """The record of its format."""
        return FORMATS[self.format]

    @property
    def row_fields(self) -> Fields:
        """The keys to read: those of the format, changed by `fields`."""
        usual = self.row_format.fields
        if self.fields is None:
            return usual
        return replace(usual, **self.fields.model_dump(exclude_defaults=True))

    @property
    def has_class(self) -> bool:
        """Whether the recipe says where the class of a row comes from."""
        return any(given is not None for given in (self.class_name, self.class_field, self.answer_classes))

    @property
    def is_tokenized(self) -> bool:
        """Whether the rows hold tokens and their weights instead of text."""
        return self.row_format.holds_tokens

    @model_validator(mode="after")
    def _class_is_known(self) -> SourceSettings:
        if self.class_name is not None and self.class_field is not None:
            raise ValueError("give one of `class` and `class_field`, not both")
        if self.reward_field is not None and self.class_name is None and self.class_field is None:
            raise ValueError("`reward_field` needs `class` or `class_field`")
        self._check_answers_and_fields()
        if self.is_tokenized and (self.class_field is not None or self.reward_field is not None):
            raise ValueError("tokenized rows have no `class_field` and no `reward_field`; they hold their weights")
        if self.is_tokenized and (self.split is not None or self.subset is not None or self.is_on_hub):
            raise ValueError("tokenized rows are read from Parquet files; download them and name the files")
        if self.split is not None and not self.is_on_hub and set("[+") & set(self.split):
            raise ValueError(f"split {quoted(self.split)}: parts and sums of splits are for datasets on the Hub")
        if self.revision is not None and not self.is_on_hub:
            raise ValueError(f"`revision` is for datasets on the Hub (`{HUB_PREFIX}ORG/NAME`), and `path` names files")
        if self.is_tokenized and self.think_tags:
            raise ValueError("tokenized rows have no text that `think_tags` could be found in; remove it")
        return self

    def _check_answers_and_fields(self) -> None:
        if self.answer_classes is not None:
            if self.class_name is not None or self.class_field is not None:
                raise ValueError("give one of `class`, `class_field` and `answer_classes`")
            if not (self.row_format.has_pairs or self.format == "auto"):
                raise ValueError("`answer_classes` is for rows with two answers, `format: preference`")
        elif self.row_format.has_pairs:
            raise ValueError("rows of two answers need `answer_classes: {chosen: CLASS, rejected: CLASS}`")
        if self.fields is None:
            return
        if self.is_tokenized:
            raise ValueError("tokenized rows have no `fields`")
        if self.format == "openchat" and self.fields.roles:
            raise ValueError("`openchat` rows have no other roles than user and assistant; remove `fields.roles`")
        self._check_names_differ(self.fields)

    def _check_names_differ(self, given: FieldSettings) -> None:
        """Two fields of one key: the text would be read twice, as two things. An id may be any text."""
        of_a_row = _OF_A_ROW if self.row_fields.answers else (*_OF_A_ROW, "answer")
        for names in (of_a_row, _OF_A_MESSAGE):
            used = {name: key for name in names if (key := getattr(self.row_fields, name)) is not None}
            for name, key in used.items():
                other = next(other for other, its_key in used.items() if its_key == key)
                if other != name and {name, other} & given.model_fields_set:
                    raise ValueError(f"`fields.{name}` and `fields.{other}` name the same key, `{key}`; keep one")
