"""The models of a server, under the names that requests use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.prompt.base_template.template import BASE
from data_pipeline.text_rules import quoted
from ochat_train.export.layout import read_mark
from ochat_train.inference.served_model import ServedModel
from ochat_train.serving.errors import ApiError, bad_request

AT = "@"  # between a model and a condition in a name
_MOST_SHOWN = 20  # conditions in one message


@dataclass(frozen=True, kw_only=True)
class OfferedModel:
    """A model, or an adapter on it, as a server offers it.

    name: in requests. adapter: the engine's name of the adapter, None for the model itself. tokenizer: with the chat
    template. conditions: those trained, in the order of the classes; empty where the folder does not say. default:
    the condition of requests that name none, None for what the template does then. parses_arguments: whether its
    template gets the arguments of tool calls as objects (a base's own) and not as text.
    """

    name: str
    adapter: str | None = None
    tokenizer: Any
    conditions: tuple[str, ...]
    default: str | None
    parses_arguments: bool = False


def offered_model(served: ServedModel, *, adapter: str | None = None) -> OfferedModel:
    """An export as it is offered. "" is also a condition where conditions were left out of some rows in training."""
    mark = read_mark(served.folder)
    return OfferedModel(
        name=served.name,
        adapter=adapter,
        tokenizer=served.tokenizer,
        conditions=served.answerable_conditions,
        default=served.default_condition,
        parses_arguments=mark.get("template") == BASE,
    )


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a request is for. name: of the model as the answer shows it. condition: None for what the template does."""

    model: OfferedModel
    condition: str | None

    @property
    def label(self) -> str:
        """The condition in metrics: those trained, so that clients cannot make up others."""
        if self.condition is None:
            return "none"
        return self.condition if self.condition in self.model.conditions else "other"


class ModelTable:
    """All names: `NAME`, and `NAME@CONDITION` for each condition that the model was trained under.

    Clients that can only choose a model choose a condition this way. A condition that is empty gives `NAME@`.
    """

    def __init__(self, models: Sequence[OfferedModel], *, any_condition: bool) -> None:
        self.models, self._any = tuple(models), any_condition
        self._names: dict[str, Chosen] = {}
        for model in models:
            self._add(model.name, Chosen(model=model, condition=model.default))
            for condition in model.conditions:
                self._add(f"{model.name}{AT}{condition}", Chosen(model=model, condition=condition))

    def _add(self, name: str, chosen: Chosen) -> None:
        if name in self._names:
            raise UserError("--served-model-name", f"two models would have the name {quoted(name)}", "rename one")
        self._names[name] = chosen

    @property
    def names(self) -> dict[str, Chosen]:
        """Name -> what it means, in the order of `GET /v1/models`."""
        return self._names

    def choose(self, name: str | None, conditions: Sequence[str]) -> Chosen:
        """The model and the condition of a request. name: None for the first model. conditions: given beside the name.

        Raises ApiError: 404 for another model, 400 for a condition that was not trained or that differs from another.
        """
        named, in_name = self._split(name)
        model = named.model
        given = list(dict.fromkeys([*in_name, *conditions]))
        if len(given) > 1:
            text = f"the request names different conditions: {' and '.join(map(quoted, given))}"
            raise bad_request(text, param="condition")
        if not given:
            return named
        if not self._any and given[0] not in model.conditions:
            raise bad_request(self._unknown(model, given[0]), param="condition", code="unknown_condition")
        return Chosen(model=model, condition=given[0])

    def _split(self, name: str | None) -> tuple[Chosen, list[str]]:
        """What a name means alone, and the condition in it."""
        if name is None:
            return next(iter(self._names.values())), []
        for model in sorted(self.models, key=lambda m: len(m.name), reverse=True):
            if name == model.name:
                return self._names[name], []
            if name.startswith(model.name + AT):
                return self._names[model.name], [name.removeprefix(model.name + AT)]
        raise self.no_model(name)

    def no_model(self, name: str) -> ApiError:
        """The error for a name that no model has."""
        shown = ", ".join(quoted(model.name) for model in self.models)
        text = f"there is no model {quoted(name[:100])} here; models: {shown}"
        return ApiError(404, text, param="model", code="model_not_found")

    def _unknown(self, model: OfferedModel, condition: str) -> str:
        text = f"{quoted(model.name)} was not trained under the condition {quoted(condition[:100])}"
        if not model.conditions:
            return f"{text}; its folder does not say under which ones it was (`--any-condition` allows all)"
        shown = ", ".join(map(quoted, model.conditions[:_MOST_SHOWN]))
        more = f" and {len(model.conditions) - _MOST_SHOWN} more" if len(model.conditions) > _MOST_SHOWN else ""
        return f"{text}; trained: {shown}{more}"
