"""What a setting may be, said in one place: every refusal names the setting, what came and what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args, get_type_hints


def check_positive(**values: int) -> None:
    """Refuse sizes that are not whole numbers, Python's or NumPy's, of at least 1.

    Raises:
        ValueError: Naming the first offending argument, what it was and what is allowed.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        TypeError: For what is no whole number.
        ValueError: For a smaller one.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}. Pass an int of at least {least}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}. Pass a larger number.")


@dataclass(frozen=True)
class Interval:
    """Numbers that a setting may have.

    Attributes:
        low: The lowest.
        high: The highest; infinite for any finite number.
        includes_low: Whether ``low`` itself is one of them.
        includes_high: Whether ``high`` itself is; infinity never is.
    """

    low: float
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.includes_low else value > self.low
        below = value <= self.high if self.includes_high else value < self.high
        return above and below and value != math.inf

    def __str__(self) -> str:
        closed = self.includes_high and self.high < math.inf
        return f"{'[' if self.includes_low else '('}{self.low:g}, {self.high:g}{']' if closed else ')'}"


def check_range(name: str, value: float, allowed: Interval) -> None:
    """Refuse what is no number of an interval; NaN and infinity lie outside every one.

    Raises:
        ValueError: Naming the setting, what it was and what is allowed.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or value not in allowed:
        raise ValueError(f"{name} must lie in {allowed}, got {value!r}.")


def check_ranges(settings: Any, ranges: Mapping[str, Interval]) -> None:
    """Refuse settings of which one lies outside its range, or is no whole number where its annotation is ``int``.

    Args:
        settings: A dataclass with a number under each name, or None where the annotation has it.
        ranges: Name -> allowed numbers.

    Raises:
        ValueError: Naming the first setting, what it was and what is allowed.
    """
    kinds = _kinds(settings.__class__)
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        if value is None and NoneType in kinds[name]:
            continue
        if float not in kinds[name] and not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number in {allowed}, got {value!r}.")
        check_range(name, value, allowed)


@cache
def _kinds(settings: type) -> dict[str, tuple[type, ...]]:
    """Name of a field -> the types that its annotation has."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(settings).items()}


def check_type(name: str, value: object, allowed: type | tuple[type, ...]) -> None:
    """Refuse a value of another type.

    Raises:
        TypeError: Naming what it is, what came and the types that are allowed.
    """
    if not isinstance(value, allowed):
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        names = ["None" if cls is NoneType else cls.__name__ for cls in kinds if cls.__module__ != "numpy"]
        raise TypeError(f"{name} must be a {' or '.join(names)}, got {value!r}.")


def check_kernel(name: str, kernel_size: int, *, allow_zero: bool = False) -> None:
    """Refuse kernels without a centre: only odd sizes keep ``ceil(size / stride)`` positions.

    Raises:
        ValueError: For even, negative or (unless ``allow_zero``) zero sizes.
    """
    if kernel_size == 0 and allow_zero:
        return
    if kernel_size < 1 or kernel_size % 2 == 0:
        zero = "0 (no such convolution) or " if allow_zero else ""
        raise ValueError(f"{name} must be {zero}an odd number such as 3 or 5, got {kernel_size!r}.")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a name that is not in a fixed set.

    Raises:
        ValueError: Listing the allowed names.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")


def did_you_mean(close: Sequence[str]) -> str:
    """The hint in a message about an unknown name, with a space before it; empty where nothing comes close."""
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def check_options(kind: type, given: Mapping[str, Any]) -> None:
    """Refuse names that are no fields of a dataclass.

    Raises:
        TypeError: Naming the first, the nearest to it and all that there are.
    """
    names = [field.name for field in fields(kind)]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise TypeError(f"Unknown option {name!r}.{did_you_mean(close)} The options are {', '.join(names)}.")


def check_heads(channels: int, num_heads: int) -> int:
    """Width of one head.

    Raises:
        ValueError: If the heads do not divide the channels; the message lists the counts that do.
    """
    check_positive(channels=channels, num_heads=num_heads)
    if channels % num_heads:
        allowed = ", ".join(str(n) for n in range(1, channels + 1) if channels % n == 0)
        raise ValueError(
            f"num_heads={num_heads} does not divide the {channels} channels into equal heads; allowed here: {allowed}."
        )
    return channels // num_heads
