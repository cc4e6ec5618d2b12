"""What a file may say: one description of its fields, one reader, one kind of error.

A kind of file is a :class:`Schema` with typed and bounded fields; :func:`parse_json` turns a file's bytes into it or
refuses them whole. Nothing is converted: ``"8"``, ``8.0`` and ``true`` are no whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import is_dataclass
from inspect import signature
from textwrap import shorten
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from mnv4_rl.safe_files import DamagedError

_SHOWN_FIELDS, _SHOWN_CHARACTERS = 3, 60

_OUR_OWN = "Value error, "  # how pydantic begins the message of a ValueError

Kind = TypeVar("Kind")


class Schema(BaseModel):
    """Base of every kind of file and of the tables in it: strict types, no unknown names, no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def parse_json(kind: type[Kind], content: bytes | str, source: object) -> Kind:
    """JSON as an object of its schema.

    Depth and the length of numbers are bounded by the parser, the content's length by whoever read it.

    Args:
        kind: A :class:`Schema`, or any type that pydantic knows, ``dict[str, int]`` for one.
        content: What the file holds.
        source: What the message calls the file.

    Raises:
        DamagedError: Naming the file, the first few fields, what is allowed and what came.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise DamagedError(f"{source}: {refusals(error)}.") from error


def refusals(error: ValidationError) -> str:
    """The first few fields that were refused, each with what is allowed and what came."""
    found = error.errors(include_url=False)
    lines = [_refusal(".".join(map(str, row["loc"])), row["msg"], row["input"]) for row in found[:_SHOWN_FIELDS]]
    return "; ".join([*lines, *([f"and {more} more"] if (more := len(found) - _SHOWN_FIELDS) > 0 else [])])


def _refusal(place: str, message: str, came: object) -> str:
    place = f"{place}: " if place else ""
    if message.startswith(_OUR_OWN):  # says what came
        return place + message.removeprefix(_OUR_OWN).rstrip(".")
    return f"{place}{message}, got {shorten(repr(came)[: 4 * _SHOWN_CHARACTERS], _SHOWN_CHARACTERS)}"


def schema_of(made: Callable[..., Any], skipped: Collection[str] = (), complete: bool = False) -> type[Schema]:
    """The schema of the arguments that a dataclass or a constructor takes by name, typed as they are there.

    Args:
        made: A dataclass, or a class with annotated arguments.
        skipped: Arguments that are no part of it.
        complete: Every argument must be there, those with a default too.
    """
    hints = get_type_hints(made if is_dataclass(made) else made.__init__)
    taken = {
        name: (hints[name], ... if complete or argument.default is argument.empty else argument.default)
        for name, argument in signature(made).parameters.items()
        if name not in skipped and argument.kind in (argument.KEYWORD_ONLY, argument.POSITIONAL_OR_KEYWORD)
    }
    return create_model(getattr(made, "__name__", "Arguments"), __base__=Schema, **taken)  # type: ignore[call-overload]
