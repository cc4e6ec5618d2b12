"""Specs as plain data and back, for files of agents and weights. Only the dataclasses of specs.py are ever created."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from mnv4_rl.models import specs
from mnv4_rl.models.specs import NetworkSpec, StartSpec, TimmSpec
from mnv4_rl.schemas import Schema, refusals, schema_of

MAX_NUMBER, MAX_BLOCKS = 2**16, 1_000  # no network comes near such a size, count or factor
_CLASSES: dict[str, type] = {
    name: value
    for name, value in vars(specs).items()
    if isinstance(value, type) and is_dataclass(value) and value.__module__ == specs.__name__
}


def spec_to_dict(spec: NetworkSpec | TimmSpec) -> dict[str, Any]:
    """A spec as dicts, lists, numbers and strings; every dict names its class under ``"class"``."""
    return _encode(spec)


def encoder_from_dict(data: object) -> NetworkSpec | TimmSpec:
    """The spec of an encoder that :func:`spec_to_dict` took apart; raises as :func:`spec_from_dict`."""
    spec = _decode(data)
    return spec if isinstance(spec, TimmSpec) else _checked(spec, data)


def spec_from_dict(data: object) -> NetworkSpec:
    """The spec of a network that :func:`spec_to_dict` took apart.

    Args:
        data: As JSON gives it.

    Raises:
        ValueError: If the data is not such a spec: an unknown class, a missing, unknown or wrongly typed field, a
            number out of all proportion, a refused value.
    """
    return _checked(_decode(data), data)


def _checked(spec: object, data: object) -> NetworkSpec:
    if not isinstance(spec, NetworkSpec):
        raise ValueError(f"Not the spec of a network: {str(data)[:100]!r}.")
    if (n_blocks := sum(map(len, spec.stages))) > MAX_BLOCKS:
        raise ValueError(f"A network has at most {MAX_BLOCKS:,} blocks, got {n_blocks:,}.")
    return spec


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        items = {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **items}
    if isinstance(value, np.generic):
        return value.item()
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    match value:
        case list():
            return tuple(_decode(item) for item in value)
        case dict():
            items = {key: _decode(item) for key, item in value.items()}
            return _create(items.pop("class", None), items)
        case int() | float() if not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise ValueError(f"Numbers in the spec of a network lie within {MAX_NUMBER:,}, got {value!r}.")
    return value


def _create(name: object, items: dict[str, Any]) -> Any:
    if not isinstance(name, str) or name not in _CLASSES:
        raise ValueError(f"Not the spec of a network: {str(name)[:100]!r} is none of {', '.join(_CLASSES)}.")
    if name == "NetworkSpec" and "start" not in items:
        items["start"] = _start_of_loose_fields(items)
    try:
        row = _schema(name).model_validate(items)
    except ValidationError as error:
        raise ValueError(f"Not the spec of a network: {name}.{refusals(error)}.") from error
    return _CLASSES[name](**{field: getattr(row, field) for field in items})


def _start_of_loose_fields(items: dict[str, Any]) -> StartSpec | None:
    """The start of a spec in a file of version 0.1.0, which has its fields beside the others, norms or not."""
    loose = {key.name: items.pop(key.name) for key in fields(StartSpec) if key.name in items}
    return _create("StartSpec", loose) if items.get("norm") == "none" else None


@cache
def _schema(name: str) -> type[Schema]:
    return schema_of(_CLASSES[name], complete=True)  # a default may change, a saved network may not
