"""Games of every kind by one name: Atari's rom ids, `pong`, and Procgen's games, `procgen/starpilot`."""

from __future__ import annotations

from mnv4_rl.atari import games as atari
from mnv4_rl.atari.scores import REFERENCE_SCORES
from mnv4_rl.procgen import games as procgen

_PROCGEN = "procgen/"


def family_of(name: str) -> str:
    """The kind of game a name is of: `procgen` where it begins with `procgen/`, else `atari`."""
    return "procgen" if name.strip().lower().startswith(_PROCGEN) else "atari"


def resolve_game(name: str) -> str:
    """The one name of a game, from any common spelling.

    Args:
        name: Such as `pong`, `ALE/Pong-v5`, `procgen/starpilot`, `procgen/StarPilot`.

    Returns:
        `pong`, `procgen/starpilot`.

    Raises:
        TypeError: `name` is not a string.
        ValueError: There is no such game.
    """
    if isinstance(name, str) and family_of(name) == "procgen":
        return _PROCGEN + procgen.resolve_game(name)
    return atari.resolve_game(name)


def reference_scores(game: str, mode: str = "easy") -> tuple[float, float] | None:
    """Raw scores that mean 0 and 1 on the field's scale for a game.

    Args:
        game: Any common spelling.
        mode: Of Procgen's levels.

    Returns:
        Random play and a human tester on Atari, the lowest and highest return in Procgen's paper there; None for a game
        or mode without such numbers.

    Raises:
        ValueError: There is no such game.
    """
    if family_of(game) == "procgen":
        return procgen.REFERENCE_RETURNS[procgen.resolve_game(game)].get(mode)
    return REFERENCE_SCORES.get(atari.resolve_game(game))
