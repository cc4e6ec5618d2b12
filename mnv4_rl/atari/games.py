"""Names of ALE's games: any common spelling -> the rom id that ale-py ships the game under.

A name picks the game alone. What the suffixes of gymnasium's environment ids stand for (sticky actions in `-v5`, no
frame skip in `NoFrameskip-v4`) is chosen by options, so `Pong-v5` and `PongNoFrameskip-v4` are the same game here.
"""

from __future__ import annotations

import copy
import difflib
import functools
import re

import ale_py
import gymnasium as gym
from ale_py import roms
from gymnasium.envs.registration import EnvSpec

from mnv4_rl.atari.options import AtariOptions
from mnv4_rl.checks import did_you_mean

_ENV_ID = re.compile(r"(ale/)?(?P<name>.+?)(?P<ram>-ram)?(noframeskip|deterministic)?(-v\d+)?")


@functools.cache
def list_games() -> tuple[str, ...]:
    """Rom ids of every game one player can play, sorted: `("adventure", ..., "zaxxon")`.

    ale-py ships a few games for two players only, which its single-player emulator refuses by ending the process; they
    are not registered with gymnasium, and so are not listed here.
    """
    gym.register_envs(ale_py)  # registers on import; this line says that the import is needed
    return tuple(sorted({spec.kwargs["game"] for spec in gym.registry.values() if spec.namespace == "ALE"}))


def resolve_game(name: str) -> str:
    """The rom id of a game, from any common spelling.

    Args:
        name: `pong`, `ms_pacman`, `MsPacman`, `Ms. Pac-Man`, `ALE/Pong-v5`, `PongNoFrameskip-v4` and the like.

    Returns:
        The rom id in snake_case, a member of `list_games()`.

    Raises:
        TypeError: `name` is not a string.
        ValueError: no such game (the message holds close matches), a two-player game, or a RAM environment.
    """
    if not isinstance(name, str):
        raise TypeError(f"A game is named by a string such as 'pong', got {name!r} of type {type(name).__name__}.")
    match = _ENV_ID.fullmatch(name.strip().lower())
    key = _letters(match["name"]) if match else ""
    if match and match["ram"]:
        raise ValueError(f"{name!r} observes the console's RAM, not pixels. Name the game alone, such as {key!r}.")
    games = {_letters(rom): rom for rom in list_games()}
    if key not in games:
        raise ValueError(_unknown_game(name, key, games))
    return games[key]


@functools.cache
def minimal_actions(rom_id: str) -> tuple[str, ...]:
    """Meanings of the actions a game uses, in ALE's order: `("NOOP", "FIRE", "RIGHT", "LEFT")` for `breakout`."""
    return tuple(action.name for action in emulator_of(rom_id).getMinimalActionSet())


def emulator_of(rom_id: str) -> ale_py.ALEInterface:
    """An emulator with a game in it."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # or every ROM greets on stderr
    emulator = ale_py.ALEInterface()
    emulator.loadROM(str(roms.get_rom_path(rom_id)))
    return emulator


def gym_spec(rom_id: str, options: AtariOptions) -> EnvSpec:
    """Gymnasium's spec of a game's emulator, `ALE/Pong-v5`, with the options that it knows."""
    list_games()  # registers them
    spec = next(spec for spec in gym.registry.values() if spec.namespace == "ALE" and spec.kwargs["game"] == rom_id)
    spec = copy.deepcopy(spec)
    spec.kwargs |= {
        "frameskip": options.frame_skip,
        "repeat_action_probability": options.repeat_action_probability,
        "full_action_space": options.full_action_space,
        "max_num_frames_per_episode": options.max_episode_frames,
    }
    return spec


def _letters(name: str) -> str:
    """Lower-case letters and digits only, so that `Ms. Pac-Man`, `MsPacman` and `ms_pacman` are one key."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _unknown_game(name: str, key: str, games: dict[str, str]) -> str:
    """What to tell someone whose game is not in the list."""
    if key in map(_letters, roms.get_all_rom_ids()):
        return f"{name!r} is a game for two players; ALE's single-player emulator cannot run it. See list_games()."
    close = [games[match] for match in difflib.get_close_matches(key, games, n=3)]
    return f"Unknown game {name!r}.{did_you_mean(close)} mnv4_rl.atari.games.list_games() lists all {len(games)}."
