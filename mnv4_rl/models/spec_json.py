"""Specs as plain data and back, for the metadata of weight files. Only the classes named here are ever created."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, get_args

from mnv4_rl.models.specs import BlockSpec, HeadSpec, NetworkSpec, StartSpec, StemSpec

_CLASSES: dict[str, type] = {
    cls.__name__: cls for cls in (NetworkSpec, StemSpec, StartSpec, *get_args(BlockSpec), *get_args(HeadSpec))
}


def spec_to_dict(spec: NetworkSpec) -> dict[str, Any]:
    """A spec as dicts, lists, numbers and strings; every dict names its class under ``"class"``."""
    return _encode(spec)


def spec_from_dict(data: dict[str, Any]) -> NetworkSpec:
    """The spec that :func:`spec_to_dict` took apart.

    Raises:
        ValueError: If the data is not such a spec: an unknown class, a missing or unknown field, a refused value.
    """
    try:
        spec = _decode(data)
    except TypeError as error:  # a dataclass given the wrong fields
        raise ValueError(f"Not the spec of a network: {error}.") from error
    if not isinstance(spec, NetworkSpec):
        raise ValueError(f"Not the spec of a network: {str(data)[:100]!r}.")
    return spec


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        items = {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **items}
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    items = {key: _decode(item) for key, item in value.items()}
    name = items.pop("class", None)
    if name not in _CLASSES:
        raise ValueError(f"Not the spec of a network: {name!r} is none of {', '.join(_CLASSES)}.")
    if name == "NetworkSpec" and "start" not in items:
        items["start"] = _start_of_loose_fields(items)
    return _CLASSES[name](**items)


def _start_of_loose_fields(items: dict[str, Any]) -> StartSpec | None:
    """The start of a spec in a file of version 0.1.0, which has its fields beside the others, norms or not."""
    loose = {key.name: items.pop(key.name) for key in fields(StartSpec) if key.name in items}
    return StartSpec(**loose) if items.get("norm") == "none" else None
