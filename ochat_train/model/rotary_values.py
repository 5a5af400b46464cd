"""Whether `transformers` takes the rotary settings of a config.json as they are written.

`transformers` 5 keeps them in `rope_parameters`; version 4, and many model cards, name `rope_theta`, `rope_scaling` and
others at the top level. Where a file has both, version 5 takes some from here and some from there, silently: a
`rope_scaling` replaces `rope_parameters` as a whole, with its base frequency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipeline.errors import UserError

NEW, SCALING = "rope_parameters", "rope_scaling"
# Older names at the top level, and what `rope_parameters` calls them.
_OLD_NAMES = {
    "rope_theta": "rope_theta",
    "rope_local_base_freq": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}
_KINDS = {"su": "longrope", "mrope": "default"}  # older names of kinds of scaling
_NUMBERS = (
    "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings", "low_freq_factor",
    "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
)  # fmt: skip


class _Written(NamedTuple):
    """A value of a config.json. key: where it is. name: what `rope_parameters` calls it."""

    key: str
    name: str
    value: Any


def check_rotary_values(values: Mapping[str, Any], config: Any, place: str) -> None:
    """Raise UserError for rotary settings of a config.json that `transformers` does not take as they are written: those
    that are no numbers, that another spelling contradicts, or that the family's code leaves out.

    values: what config.json holds. config: what `transformers` made of it. place: the base, as the recipe names it.
    """
    for part, read, lead in _parts(values, config):
        taken = _entries(getattr(read, NEW, None))
        _refuse_texts(taken, lead, place)
        new, old = list(_new(part, lead)), list(_old(part, lead))
        for found in (*new, *old) if taken else ():
            there = [entry[found.name] for entry in taken if found.name in entry]
            if not there and found in old:
                continue  # what this family does not use
            if not any(_plain(value) == _plain(found.value) for value in there):
                raise _not_taken(found, there, place, is_twice=bool(new and old))


def _not_taken(found: _Written, taken: Sequence[Any], place: str, *, is_twice: bool) -> UserError:
    used = f"takes {' and '.join(map(str, dict.fromkeys(taken)))}" if taken else "leaves it out"
    problem = f"its config.json says `{found.key}: {found.value}`, and `transformers` {used}"
    if not is_twice:
        return UserError(
            place, problem, f"write it in its `{NEW}` as transformers 5 names it (`rope_type`, not `type`)"
        )
    return UserError(
        place,
        f"{problem}: rotary settings are named twice, in `{NEW}` and under older names",
        f"keep one spelling in its config.json, or write the same values in both (`{SCALING}` needs all of them)",
    )


def _parts(values: Mapping[str, Any], config: Any, lead: str = "") -> Iterator[tuple[Mapping[str, Any], Any, str]]:
    """A configuration and those inside it: as written, as read, and what its keys begin with."""
    yield values, config, lead
    for name in getattr(config, "sub_configs", None) or {}:
        part, read = values.get(name), getattr(config, name, None)
        if isinstance(part, Mapping) and read is not None:
            yield from _parts(part, read, f"{lead}{name}.")


def _entries(parameters: Any) -> list[Mapping[str, Any]]:
    """Rotary settings, of each kind of layer where kinds differ."""
    if not isinstance(parameters, Mapping):
        return []
    inner = [value for value in parameters.values() if isinstance(value, Mapping)]
    return inner or ([parameters] if parameters else [])


def _new(part: Mapping[str, Any], lead: str) -> Iterator[_Written]:
    for entry in _entries(part.get(NEW)):
        yield from _items(entry, f"{lead}{NEW}")


def _old(part: Mapping[str, Any], lead: str) -> Iterator[_Written]:
    for key, name in _OLD_NAMES.items():
        if part.get(key) is not None:
            yield _Written(f"{lead}{key}", name, part[key])
    scaling = part.get(SCALING)
    if isinstance(scaling, Mapping):
        yield from _items(scaling, f"{lead}{SCALING}")


def _items(entry: Mapping[str, Any], key: str) -> Iterator[_Written]:
    for name, value in entry.items():
        if value is not None and not isinstance(value, Mapping):
            yield _Written(f"{key}.{name}", "rope_type" if name == "type" else name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _KINDS.get(value, value)
    return list(value) if isinstance(value, (list, tuple)) else value


def _refuse_texts(taken: Sequence[Mapping[str, Any]], lead: str, place: str) -> None:
    for entry in taken:
        for name in _NUMBERS:
            if isinstance(entry.get(name), str):
                problem = f"its config.json says `{lead}{name}: {entry[name]!r}`, a text instead of a number"
                raise UserError(place, problem, "write it without quotes in its config.json")
