"""Specs as plain data and back, for the metadata of weight files. Only the classes named here are ever created."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from mnv4_rl.models.specs import (
    ConvSpec,
    FusedIBSpec,
    GridHeadSpec,
    MobileMQASpec,
    NetworkSpec,
    PooledHeadSpec,
    SESpec,
    StemSpec,
    UIBSpec,
)

_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        ConvSpec,
        FusedIBSpec,
        GridHeadSpec,
        MobileMQASpec,
        NetworkSpec,
        PooledHeadSpec,
        SESpec,
        StemSpec,
        UIBSpec,
    )
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
    return _CLASSES[name](**items)
