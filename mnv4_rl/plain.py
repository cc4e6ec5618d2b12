"""NumPy's numbers, words and truth values as Python's own: what files, command lines and emulators take."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


def without_numpy(arguments: Any) -> Any:
    """Arguments, in lists and dicts too, with Python's own numbers for NumPy's, which are no plain data."""
    if isinstance(arguments, dict):
        return {key: without_numpy(value) for key, value in arguments.items()}
    if isinstance(arguments, list | tuple):
        return type(arguments)(without_numpy(value) for value in arguments)
    return arguments.item() if isinstance(arguments, np.generic) else arguments


def numbers_as_pythons(settings: Any) -> None:
    """Turn NumPy's numbers, words and truth values in a frozen dataclass's fields into Python's, in place."""
    for field in fields(settings):
        object.__setattr__(settings, field.name, without_numpy(getattr(settings, field.name)))
