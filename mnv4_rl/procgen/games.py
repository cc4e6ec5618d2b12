"""Procgen's games: any common spelling of a name, and what a return is worth on the scale of its paper.

Source: Cobbe et al. 2020, "Leveraging Procedural Generation to Benchmark Reinforcement Learning" (arXiv:1912.01588),
appendix C: the returns that mean 0 and 1 on its normalised scale, by distribution mode.
"""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from mnv4_rl.checks import did_you_mean

_ENV_ID = re.compile(r"(procgen[:/_-])*(?P<name>.+?)(easy|hard|extreme|memory|exploration)?(-v\d+)?")


class ReferenceReturns(NamedTuple):
    """Returns of a whole episode that mean 0 and 1 on the normalised scale."""

    low: float
    high: float


# Game -> distribution mode -> returns.
REFERENCE_RETURNS: dict[str, dict[str, ReferenceReturns]] = {
    game: {"easy": ReferenceReturns(*easy), "hard": ReferenceReturns(*hard)}
    for game, easy, hard in (
        ("bigfish", (1.0, 40.0), (0.0, 40.0)),
        ("bossfight", (0.5, 13.0), (0.5, 13.0)),
        ("caveflyer", (3.5, 12.0), (2.0, 13.4)),
        ("chaser", (0.5, 13.0), (0.5, 14.2)),
        ("climber", (2.0, 12.6), (1.0, 12.6)),
        ("coinrun", (5.0, 10.0), (5.0, 10.0)),
        ("dodgeball", (1.5, 19.0), (1.5, 19.0)),
        ("fruitbot", (-1.5, 32.4), (-0.5, 27.2)),
        ("heist", (3.5, 10.0), (2.0, 10.0)),
        ("jumper", (3.0, 10.0), (1.0, 10.0)),
        ("leaper", (3.0, 10.0), (1.5, 10.0)),
        ("maze", (5.0, 10.0), (4.0, 10.0)),
        ("miner", (1.5, 13.0), (1.5, 20.0)),
        ("ninja", (3.5, 10.0), (2.0, 10.0)),
        ("plunder", (4.5, 30.0), (3.0, 30.0)),
        ("starpilot", (2.5, 64.0), (1.5, 35.0)),
    )
}


def list_games() -> tuple[str, ...]:
    """The games, sorted: `("bigfish", ..., "starpilot")`."""
    return tuple(REFERENCE_RETURNS)


def resolve_game(name: str) -> str:
    """The game's own name, from any common spelling.

    Args:
        name: `starpilot`, `StarPilot`, `procgen/starpilot`, `procgen:procgen-starpilot-v0`, `StarpilotEasy-v0` and the
            like. A name picks the game alone: the distribution mode is an option.

    Returns:
        A member of `list_games()`.

    Raises:
        TypeError: `name` is not a string.
        ValueError: No such game; the message holds close matches.
    """
    if not isinstance(name, str):
        raise TypeError(f"A game is named by a string such as 'starpilot', got {name!r} of type {type(name).__name__}.")
    match = _ENV_ID.fullmatch(name.strip().lower())
    key = re.sub(r"[^a-z0-9]", "", match["name"]) if match else ""
    if key not in REFERENCE_RETURNS:
        hint = did_you_mean(difflib.get_close_matches(key, REFERENCE_RETURNS, n=3))
        raise ValueError(f"Procgen has no game {name!r}.{hint} Its games are {', '.join(REFERENCE_RETURNS)}.")
    return key


def normalised(game: str, score: float, distribution_mode: str = "easy") -> float | None:
    """A return on the scale of the benchmark's paper.

    Args:
        game: Any common spelling, see `resolve_game`.
        score: Return of a whole episode, or a mean of them.
        distribution_mode: The levels it was reached on.

    Returns:
        (score - low) / (high - low), without bounds; None for a mode that the paper's table does not have.

    Raises:
        ValueError: Procgen has no such game.
    """
    reference = REFERENCE_RETURNS[resolve_game(game)].get(distribution_mode)
    return None if reference is None else (score - reference.low) / (reference.high - reference.low)
