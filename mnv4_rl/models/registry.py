"""The one list of names: :data:`SPECS`. Adding a variant is adding a row to the file of its family.

Sources:
    ``mobilenet_v4_*``: :mod:`mnv4_rl.models.mobilenet_v4`.
    ``mnv4_*``: the paper's five models, :mod:`mnv4_rl.models.paper`.
    ``rl_*``: :mod:`mnv4_rl.models.rl`.
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from mnv4_rl.checks import did_you_mean
from mnv4_rl.models.mobilenet_v4 import MOBILENET_V4_FAMILY
from mnv4_rl.models.paper import PAPER_FAMILY, TIMM_NAMES
from mnv4_rl.models.rl import RL_FAMILY
from mnv4_rl.models.specs import TIMM_PREFIX, NetworkSpec

DEFAULT_VARIANT = "rl_s2"  # where an encoder is asked for without a name: by the extractor, the agents and the commands

SPECS: dict[str, NetworkSpec] = {spec.name: spec for spec in MOBILENET_V4_FAMILY + PAPER_FAMILY + RL_FAMILY}

# timm's names differ from ours in one underscore and name other networks.
_TIMM_TO_PAPER = {timm: ours for ours, timm in TIMM_NAMES.items() if ours in SPECS}


def list_models(filter: str | None = None) -> list[str]:
    """Names that :func:`mnv4_rl.create_model` and the extractors accept, in table order.

    Args:
        filter: Only these: a family (``"mobilenet_v4"``, ``"paper"`` or ``"rl"``) or a pattern such as ``"mnv4_*"``.

    Raises:
        ValueError: If no model is in that family or fits the pattern; the message lists the families and names.
    """
    if filter is None:
        return list(SPECS)
    names = [name for name, spec in SPECS.items() if filter == spec.family or fnmatchcase(name, filter)]
    if not names:
        families = ", ".join(dict.fromkeys(spec.family for spec in SPECS.values()))
        raise ValueError(
            f"No model is called {filter!r}, fits that pattern or is in that family.{_close_names(filter)} "
            f"Families: {families}. Names: {', '.join(SPECS)}."
        )
    return names


def get_spec(name: str | NetworkSpec) -> NetworkSpec:
    """The row called ``name``; a spec of your own is returned as it is.

    Raises:
        TypeError: If ``name`` is neither a string nor a spec.
        ValueError: If no variant has that name; the message suggests what was probably meant.
    """
    if isinstance(name, NetworkSpec):
        return name
    if not isinstance(name, str):
        raise TypeError(f"A variant is named by a string such as 'rl_s', got {name!r}; one of {', '.join(SPECS)}.")
    if name not in SPECS:
        raise ValueError(_unknown_name_message(name))
    return SPECS[name]


def _unknown_name_message(name: str) -> str:
    message = f"There is no model called {name!r}."
    if name in _TIMM_TO_PAPER:
        ours = _TIMM_TO_PAPER[name]
        return (
            f"{message} {name!r} is timm's name for the paper's model, called {ours!r} here "
            f"(not 'mobilenet_v4_*', which are other networks). Known: {', '.join(SPECS)}."
        )
    if name.startswith(TIMM_PREFIX):
        return f"{message} timm's models are encoders alone: MNV4Extractor(space, variant={name!r})."
    return f"{message}{_close_names(name)} Known: {', '.join(SPECS)}."


def _close_names(name: str) -> str:
    """The hint at names like this one, empty where there are none."""
    return did_you_mean(difflib.get_close_matches(name.lower().replace("-", "_"), SPECS, n=3, cutoff=0.5))
