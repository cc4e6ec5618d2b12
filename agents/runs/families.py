"""Kinds of games a run can be of. Another kind is another row, and a config class that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnv4_rl.atari import AtariVecEnv, make_atari_env
from mnv4_rl.atari.games import resolve_game

MAX_EVALUATION_ENVS = 10
EVALUATION_SEED = 10_000  # is added to a run's seed


@dataclass(frozen=True)
class Family:
    """What a run needs to know of its games. Both environments report whole games in ``info["episode"]``.

    Attributes:
        resolve_game: Any spelling of a game -> its one name; ValueError where there is none.
        make_env: The run's config and the file for one CSV row a game -> the environments to train in.
        make_evaluation_env: The run's config -> the environments to evaluate in.
    """

    resolve_game: Callable[[str], str]
    make_env: Callable[[Any, Path], Any]
    make_evaluation_env: Callable[[Any], Any]


def _atari_env(config: Any, monitor: Path) -> AtariVecEnv:
    return make_atari_env(
        config.game, config.n_envs, config.seed, num_threads=config.threads or 0, monitor_path=monitor
    )


def _atari_evaluation_env(config: Any) -> AtariVecEnv:
    n_envs = min(config.evaluation_games, MAX_EVALUATION_ENVS)
    return make_atari_env(config.game, n_envs, config.seed + EVALUATION_SEED)


FAMILIES: dict[str, Family] = {"atari": Family(resolve_game, _atari_env, _atari_evaluation_env)}
