"""Classes: the only place that decides the weight of a message, and the condition of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data_pipeline.class_names import known_class
from data_pipeline.classes.rewards import RewardFacts
from data_pipeline.conversation import Conversation, PartWeights, TaggedConversation
from data_pipeline.errors import RowError
from data_pipeline.settings.data import DataSettings, class_specs, class_weights
from data_pipeline.text_rules import shown
from data_pipeline.weight import SMALLEST_WEIGHT

UNCONDITIONED = "unconditioned"  # class name of OpenChat rows whose condition is ""


@dataclass(frozen=True, kw_only=True)
class ConversationClass:
    """A row of the class table. `weight` is None for a class whose weights or rewards are in its rows."""

    name: str
    condition: str
    weight: float | None


ClassTable = Mapping[str, ConversationClass]


def class_table(data: DataSettings, rewards: RewardFacts) -> ClassTable:
    """The recipe's classes with their loss weights."""
    weights = class_weights(data, largest_reward=rewards.largest)
    return {
        name: ConversationClass(name=name, condition=spec.condition, weight=weights[name])
        for name, spec in class_specs(data).items()
    }


class Tagger:
    """Gives conversations their classes, conditions and weights."""

    def __init__(self, data: DataSettings, rewards: RewardFacts) -> None:
        self._data, self._rewards, self._classes = data, rewards, class_table(data, rewards)
        given = data.part_weights
        self._part_weights = None if given is None else PartWeights(**given.model_dump())

    def __call__(self, conversation: Conversation, *, class_name: str | None) -> TaggedConversation:
        """Tag one conversation; class_name: of its source. Raises RowError as `tag` does."""
        tagged = self._tagged(conversation, class_name)
        return tagged if self._part_weights is None else replace(tagged, part_weights=self._part_weights)

    def _tagged(self, conversation: Conversation, class_name: str | None) -> TaggedConversation:
        if self._data.classes_from is not None:
            assert conversation.score is not None, "RowReader reads it"
            return tag(conversation, class_name=self._rewards.quantile_class(conversation.score), classes=self._classes)
        name = self._class_of(conversation, class_name)
        if conversation.score is None or name is None or name not in self._classes:
            return tag(conversation, class_name=name, classes=self._classes)
        if self._classes[name].weight is not None:
            raise RowError(
                "ambiguous_reward",
                f"class {name} has its own weight, and the row a reward; use a source without `reward_field`",
            )
        weight = self._rewards.weight(conversation.score, class_name=name, data=self._data)
        return tag(conversation, class_name=name, classes=self._classes, own_weight=weight)

    def _class_of(self, conversation: Conversation, class_name: str | None) -> str | None:
        """The class of the source, or the one that the row's field names in whatever spelling."""
        value = conversation.class_value
        if class_name is not None or value is None:
            return class_name
        return known_class(value, self._classes)


def tag(
    conversation: Conversation, *, class_name: str | None, classes: ClassTable, own_weight: float | None = None
) -> TaggedConversation:
    """Give a conversation its class, condition and one weight per message.

    `class_name` is the source's class; without it the row's `class_field` counts, and without that the row's own
    condition and weights (OpenChat's format). In a class from the table an assistant message weighs the class weight
    (own_weight: that of this conversation instead) times the row's own weight for it (1 where the row has none), and
    any other message 0. Raises RowError for an unknown class, for a weighted message that is not the assistant's, and
    for an OpenChat message without a weight.
    """
    name = class_name if class_name is not None else conversation.class_value
    if name is None:
        return _tag_from_row(conversation)
    if name not in classes:
        raise RowError("unknown_class", f"class {shown(name)} is not in data.classes ({', '.join(classes)})")
    weight = classes[name].weight if own_weight is None else own_weight
    if weight is None:
        raise RowError(
            "missing_reward", f"class {name} takes its rewards from the rows, but this source has no `reward_field`"
        )
    weights = []
    for number, message in enumerate(conversation.messages):
        if message.role == "assistant":
            weights.append(weight * (1.0 if message.weight is None else message.weight))
        elif message.weight and message.role == "tool":
            raise RowError(
                "invalid_weight",
                f"message {number + 1}: the result of a tool is never trained on; leave out its weight",
            )
        elif message.weight:
            raise RowError(
                "invalid_weight", f"message {number + 1}: only assistant messages can have a weight in a class"
            )
        else:
            weights.append(0.0)
    _refuse_tiny(weights)
    return TaggedConversation(
        conversation=conversation,
        class_name=name,
        condition=classes[name].condition,
        message_weights=tuple(weights),
    )


def _refuse_tiny(weights: Sequence[float]) -> None:
    """Raise RowError for a weight that float32 would round to 0, or hold with few of its digits."""
    for number, weight in enumerate(weights, 1):
        if 0.0 < weight < SMALLEST_WEIGHT:
            raise RowError(
                "invalid_weight",
                f"message {number}: its weight, with those of its row and class, is {weight:g}; give 0 or at least "
                f"{SMALLEST_WEIGHT}",
            )


def _tag_from_row(conversation: Conversation) -> TaggedConversation:
    assert conversation.condition is not None, "RowReader reads it for sources without a class"
    weights = []
    for number, message in enumerate(conversation.messages):
        if message.weight is None and message.role == "assistant":
            raise RowError(
                "invalid_weight", f"items[{number}].weight is missing; give it, or give the source a `class`"
            )
        weights.append(message.weight or 0.0)
    _refuse_tiny(weights)
    return TaggedConversation(
        conversation=conversation,
        class_name=conversation.condition or UNCONDITIONED,
        condition=conversation.condition,
        message_weights=tuple(weights),
    )
