"""The parts of a recipe that the data pipeline reads, and the strictness that all sections share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from data_pipeline.class_names import class_name_problem, class_spellings
from data_pipeline.formats.fields import ROLES_OF_RECIPES, Fields
from data_pipeline.formats.preference import ANSWERS
from data_pipeline.formats.row_format import RowFormat
from data_pipeline.formats.table import FORMATS
from data_pipeline.path_keys import PathText
from data_pipeline.section import Rule, Section, setting
from data_pipeline.text_rules import quoted, text_problem
from data_pipeline.weight import LARGEST_WEIGHT, SMALLEST_WEIGHT, reward_weight

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
PartWeight = Annotated[float, Field(ge=0.0, le=float(LARGEST_WEIGHT))]

HUB_PREFIX = "hf://"  # of a source's path: a dataset on the Hub


Baseline = Annotated[
    float | Literal["mean"] | None,
    WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "mean"}, {"type": "null"}]}),
    Rule("expected a number, or `mean`"),
]


class ClassSettings(Section):
    """A class of conversations: the condition that joins its role prefixes, and how much its tokens count."""

    condition: str = setting(
        description='text added to every role prefix, such as `GPT4 Correct`; `""` means plain `User:` and '
        "`Assistant:`",
        decides_steps=True,
        is_public=True,
    )
    reward: float | None = setting(
        None, description="reward r; the loss weight is exp((r - largest r) / beta)", decides_steps=True, is_public=True
    )
    weight: float | None = setting(
        None,
        ge=0.0,
        le=float(LARGEST_WEIGHT),
        description="the loss weight itself, instead of `reward`",
        decides_steps=True,
        is_public=True,
    )
    baseline: Baseline = setting(
        None,
        description="subtracted from the rewards in the rows of this class (`reward_field`): a number, or `mean` for "
        "the mean reward of its conversations",
        decides_steps=True,
        is_public=True,
    )

    @model_validator(mode="after")
    def _one_of_reward_and_weight(self) -> ClassSettings:
        if self.reward is not None and self.weight is not None:
            raise ValueError("give one of `reward` and `weight`, not both")
        if self.baseline is not None and (self.reward is not None or self.weight is not None):
            raise ValueError(
                "`baseline` is for classes whose rewards are in the rows, without `reward` or `weight` here"
            )
        if self.weight is not None and 0.0 < self.weight < SMALLEST_WEIGHT:
            raise ValueError(f"weight {self.weight} is too small; give 0 or at least {SMALLEST_WEIGHT}")
        if (problem := text_problem(self.condition)) is not None:
            raise ValueError(f"condition {problem}")
        return self


def _key(description: str) -> Any:
    """A setting that names a key of a row or of a message."""
    return setting(None, min_length=1, description=description, decides_steps=True, is_public=True)


class FieldSettings(Section):
    """Names of keys, where rows use other ones than the format. What is left out is as the format says."""

    messages: str | None = _key("the list of messages")
    role: str | None = _key("in a message: who speaks")
    content: str | None = _key("in a message: its text")
    roles: dict[str, Literal[ROLES_OF_RECIPES]] = setting(  # type: ignore[valid-type]
        default_factory=dict,
        description="further names of roles, such as `{customer: user, agent: assistant}`",
        decides_steps=True,
        is_public=True,
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

    path: PathText = setting(
        description="a file of JSON lines, JSON, CSV, TSV, Parquet or Arrow (also packed), a folder or glob of them, a "
        "folder made by `datasets.save_to_disk`, or `hf://ORG/NAME` for a dataset on the Hub",
        decides_steps=True,
        is_public=True,
    )
    format: Format = setting(
        description="layout of the rows; `auto` finds it, and `openchat_tokenized` is what OpenChat's own "
        "`generate_dataset` writes",
        decides_steps=True,
        is_public=True,
    )
    class_name: str | None = setting(
        None, alias="class", description="the class of every row of this source", decides_steps=True, is_public=True
    )
    class_field: str | None = setting(
        None,
        description="instead of `class`: the field of a row that names its class (dots for nested fields, "
        "`meta.quality`)",
        decides_steps=True,
        is_public=True,
    )
    answer_classes: dict[Literal[ANSWERS], str] | None = setting(  # type: ignore[valid-type]
        None,
        min_length=1,
        description="instead of `class`, for rows with a chosen and a rejected answer: the class of each, "
        "`{chosen: good, rejected: bad}`",
        decides_steps=True,
        is_public=True,
    )
    reward_field: str | None = setting(
        None,
        description="the field of a row that holds the reward of its conversation, a number (dots for nested fields, "
        "`meta.score`); the class then has no `reward` or `weight`",
        decides_steps=True,
        is_public=True,
    )
    split: str | None = setting(
        None,
        description="split of a Hub dataset, or of a folder whose files are named after their splits",
        decides_steps=True,
        is_public=True,
    )
    subset: str | None = setting(
        None,
        min_length=1,
        description="subset (configuration) of a Hub dataset, or of a folder that holds one",
        decides_steps=True,
        is_public=True,
    )
    revision: str | None = setting(
        None,
        min_length=1,
        description="branch, tag or commit of a Hub dataset",
        decides_steps=True,
        is_public=True,
    )
    fields: FieldSettings | None = setting(
        None, description="names of keys that differ from those of the format", decides_steps=True, is_public=True
    )
    think_tags: bool = setting(
        False,
        description="`<think>...</think>` at the beginning of an answer is its reasoning, and not text like any other",
        decides_steps=True,
        is_public=True,
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
        if self.fields.masked is not None and self.fields.masked == self.fields.weight:
            raise ValueError("`fields.weight` and `fields.masked` name the same key; keep one")


class ClassesFrom(Section):
    """Classes made from a score: quantiles with equally many conversations, from the lowest scores (`q1`) up."""

    field: str = setting(
        min_length=1,
        description="the field of a row that holds the score, a number (dots for nested fields, `meta.score`)",
        decides_steps=True,
        is_public=True,
    )
    quantiles: int = setting(ge=2, le=100, description="number of classes", decides_steps=True, is_public=True)
    conditions: list[str] = setting(
        description="condition of each class, from the lowest scores to the highest", decides_steps=True, is_public=True
    )
    rewards: list[float] | None = setting(
        None,
        description="reward of each class, from the lowest scores to the highest; default: evenly from 0 to 1",
        decides_steps=True,
        is_public=True,
    )

    @model_validator(mode="after")
    def _one_for_each_quantile(self) -> ClassesFrom:
        for name, values in (("conditions", self.conditions), ("rewards", self.rewards)):
            if values is not None and len(values) != self.quantiles:
                raise ValueError(
                    f"`{name}` has {len(values)} entries for {self.quantiles} quantiles; give one for each"
                )
        if len(set(self.conditions)) != len(self.conditions):
            raise ValueError("`conditions` holds the same text twice; give every class its own")
        for condition in self.conditions:
            if (problem := text_problem(condition)) is not None:
                raise ValueError(f"conditions: {quoted(condition)} {problem}")
        return self


def quantile_class(number: int) -> str:
    """Name of the class of quantile `number`, from 0."""
    return f"q{number + 1}"


class PartWeightSettings(Section):
    """How much the parts of an answer count, as factors of its weight. Results of tools are never trained on."""

    reasoning: PartWeight = setting(1.0, description="of the reasoning", decides_steps=True, is_public=True)
    answer: PartWeight = setting(1.0, description="of the text", decides_steps=True, is_public=True)
    tool_calls: PartWeight = setting(1.0, description="of the tool calls", decides_steps=True, is_public=True)


class DataSettings(Section):
    """Raw conversations, their classes, and how to treat rows that do not fit."""

    prepared_dir: PathText = setting(
        description="folder of the prepared dataset, written by `ochat prepare`",
        decides_steps=False,
        is_public=False,
    )
    classes: dict[str, ClassSettings] = setting(
        default_factory=dict,
        description="class name -> condition and reward; only OpenChat's own rows can do without",
        decides_steps=True,
        is_public=True,
    )
    classes_from: ClassesFrom | None = setting(
        None,
        description="instead of `classes`: classes made from a score in the rows",
        decides_steps=True,
        is_public=True,
    )
    beta: float | None = setting(
        None,
        gt=0.0,
        description="temperature of the rewards; required if there are rewards",
        decides_steps=True,
        is_public=True,
    )
    reward_clip: Annotated[list[float], Field(min_length=2, max_length=2)] | None = setting(
        None,
        description="[low, high]: rewards in the rows (`reward_field`) are clipped to this range",
        decides_steps=True,
        is_public=True,
    )
    condition_dropout: Ratio = setting(
        0.0,
        description="share of the training conversations that are prompted without their condition, so that the model "
        "can also be used without one; class and weight do not change",
        decides_steps=True,
        is_public=True,
    )
    sources: list[SourceSettings] = setting(
        min_length=1, description="what to read, in this order", decides_steps=True, is_public=True
    )
    validation_ratio: Ratio = setting(
        0.0,
        description="share of prompts held out for validation; conversations with the same system text and first "
        "prompt stay together",
        decides_steps=True,
        is_public=True,
    )
    validation_seed: int | None = setting(
        None,
        ge=0,
        lt=2**32,
        description="seed that selects the held-out prompts; default: `seed`",
        decides_steps=True,
        is_public=True,
    )
    ignore_fields: list[str] = setting(
        default_factory=list,
        description="fields of rows that hold text, lists or marks and are left out on purpose; dots for nested ones "
        "(`meta.notes`, `messages.comment`)",
        decides_steps=True,
        is_public=True,
    )
    only_classes: list[str] | None = setting(
        None,
        min_length=1,
        description="keep only conversations of these classes; the others are dropped and counted",
        decides_steps=True,
        is_public=True,
    )
    overlong: Literal["truncate", "drop", "error"] = setting(
        "truncate",
        description="what to do with a conversation longer than `model.max_length_tokens`: cut off its end, drop it, "
        "or stop",
        decides_steps=True,
        is_public=True,
    )
    bad_rows: Literal["error", "drop"] = setting(
        "error",
        description="what to do with rows that are not valid conversations: stop and list them, or drop and count them",
        decides_steps=True,
        is_public=True,
    )

    part_weights: PartWeightSettings | None = setting(
        None,
        description="factors for the parts of an answer, such as `{reasoning: 0.8}`; default: all of them 1",
        decides_steps=True,
        is_public=True,
    )

    @property
    def scored_by(self) -> str | None:
        """The field whose quantiles decide the classes, None where the recipe names the classes."""
        return self.classes_from.field if self.classes_from else None

    def _problems_of_rewards(self) -> list[str]:
        """Whether every class gets its weight in one way, and beta and clip are there where they are needed."""
        problems = []
        in_rows = any(source.reward_field is not None for source in self.sources)
        if self.beta is None and (
            in_rows or self.classes_from or any(c.reward is not None for c in self.classes.values())
        ):
            problems.append("`beta` is missing: rewards need it (OpenChat's weights 1.0 and 0.1 are beta 0.4342945)")
        if self.reward_clip is not None and not self.reward_clip[0] < self.reward_clip[1]:
            problems.append(f"reward_clip: {self.reward_clip} is not [low, high] with low < high")
        if self.reward_clip is not None and not in_rows:
            problems.append("reward_clip: no source has a `reward_field`")
        for name, spec in self.classes.items():
            fed = [s for s in self.sources if s.class_name == name or s.class_field is not None]
            fed += [s for s in self.sources if name in (s.answer_classes or {}).values()]
            fed += [s for s in self.sources if s.class_name is None and s.is_tokenized]
            in_row = [source.reward_field is not None or source.is_tokenized for source in fed]
            has_own = spec.reward is not None or spec.weight is not None
            if has_own and any(s.reward_field is not None and s.class_name == name for s in fed):
                problems.append(
                    f"classes.{name}: has its own `reward` or `weight`, and a source with `reward_field`; keep one"
                )
            if not has_own and not (in_row and all(in_row)):
                problems.append(
                    f"classes.{name}: give `reward` or `weight`, or a `reward_field` to each of its sources"
                )
        return problems

    def _problems_of_tokenized(self) -> list[str]:
        """What cannot be done with rows that hold tokens instead of text."""
        numbers = [number for number, source in enumerate(self.sources) if source.is_tokenized]
        if not numbers:
            return []
        problems = []
        if self.classes_from is not None:
            problems.append(
                f"sources.{numbers[0]}: tokenized rows have no score; `classes_from` cannot be used with them"
            )
        if self.condition_dropout:
            problems.append("condition_dropout: tokenized rows cannot be written without their condition; set it to 0")
        if self.part_weights is not None:
            problems.append("part_weights: tokenized rows hold their weights, of no parts; remove it")
        for number in numbers:
            if self.sources[number].class_name is not None or self.classes_from is not None:
                continue
            if not self.classes:
                problems.append(
                    f"sources.{number}: tokenized rows need `data.classes`: a row has the class of its condition"
                )
            conditions = [spec.condition for spec in self.classes.values()]
            twice = sorted({condition for condition in conditions if conditions.count(condition) > 1})
            if twice:
                problems.append(
                    f"sources.{number}: classes with the same condition ({', '.join(map(quoted, twice))}) cannot be "
                    "distinguished in tokenized rows; name one as `class` of the source"
                )
        return problems

    def _problems_of_quantiles(self) -> list[str]:
        if self.classes_from is None:
            return []
        problems = ["classes_from: makes the classes, instead of `classes`; remove one of them"] if self.classes else []
        return problems + [
            f"sources.{number}: `classes_from` decides class and reward; remove `class`, `class_field` and "
            "`reward_field`"
            for number, source in enumerate(self.sources)
            if source.has_class or source.reward_field is not None
        ]

    @model_validator(mode="after")
    def _classes_fit_sources(self) -> DataSettings:
        problems = [
            f"classes: the name {quoted(name)} {problem}"
            for name in self.classes
            if (problem := class_name_problem(name)) is not None
        ]
        problems += [*self._problems_of_rewards(), *self._problems_of_quantiles(), *self._problems_of_tokenized()]
        for number, source in enumerate(self.sources):
            if not source.has_class and not source.row_format.carries_class and self.classes_from is None:
                problems.append(
                    f"sources.{number}: give `class` or `class_field` (rows of format `{source.format}` name no class)"
                )
            for name in (source.answer_classes or {}).values():
                if name not in self.classes:
                    known = ", ".join(self.classes) or "none"
                    problems.append(f"sources.{number}.answer_classes: unknown class `{name}`; classes: {known}")
            if source.class_name is not None and source.class_name not in self.classes:
                known = ", ".join(self.classes) or "none"
                problems.append(f"sources.{number}.class: unknown class `{source.class_name}`; classes: {known}")
            twice = [
                (name, other) for name in self.classes for other in class_spellings(name)[1:] if other in self.classes
            ]
            if source.class_field is not None and twice:
                problems.append(
                    f"sources.{number}.class_field: a value of the rows may mean the class `{twice[0][0]}` or "
                    f"`{twice[0][1]}`; keep one of them"
                )
            needed = {"messages", "prompt", "answer", "chosen", "rejected", "answers"}
            for name in sorted({getattr(source.row_fields, key) for key in needed} & set(self.ignore_fields)):
                problems.append(f"ignore_fields: `{name}` holds the conversations of sources.{number}; remove it")
            if source.class_field is not None and not self.classes:
                problems.append(f"sources.{number}.class_field: needs `data.classes`, which is empty")
        problems += [
            f"only_classes: unknown class `{name}`; classes: {', '.join(self.classes) or 'none'}"
            for name in self.only_classes or ()
            if name not in class_specs(self)
        ]
        if not problems:
            weights = class_weights(self)
            problems += [
                f"classes.{name}: reward {spec.reward} with beta {self.beta} gives a weight below {SMALLEST_WEIGHT}; "
                "raise beta"
                for name, spec in class_specs(self).items()
                if spec.reward is not None and (weights[name] or 0.0) < SMALLEST_WEIGHT
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def class_specs(data: DataSettings) -> dict[str, ClassSettings]:
    """The classes, as the recipe gives them or as `classes_from` makes them."""
    rule = data.classes_from
    if rule is None:
        return dict(data.classes)
    rewards = rule.rewards or [number / (rule.quantiles - 1) for number in range(rule.quantiles)]
    pairs = enumerate(zip(rule.conditions, rewards, strict=True))
    return {quantile_class(number): ClassSettings(condition=text, reward=reward) for number, (text, reward) in pairs}


def class_weights(data: DataSettings, *, largest_reward: float | None = None) -> dict[str, float | None]:
    """Loss weight of each class: by its reward (weight.py), or `weight` as given.

    None for a class whose rewards are in its rows. largest_reward: r_max, where rows have rewards too.
    """
    specs = class_specs(data)
    rewards = [spec.reward for spec in specs.values() if spec.reward is not None]
    largest = max(rewards, default=0.0) if largest_reward is None else largest_reward
    weights = {}
    for name, spec in specs.items():
        weights[name] = spec.weight
        if spec.reward is not None:
            assert data.beta is not None, "checked by DataSettings"
            weights[name] = reward_weight(spec.reward, largest=largest, beta=data.beta)
    return weights
