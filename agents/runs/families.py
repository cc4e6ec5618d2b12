"""Kinds of games a run can be of. Another kind is another row, and a config class that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.play.evaluate import Player
from agents.play.protocols import make_protocol_env
from mnv4_rl.atari import AtariVecEnv, make_atari_env
from mnv4_rl.atari.games import resolve_game
from mnv4_rl.native_env import NativeVecEnv
from mnv4_rl.procgen import ProcgenOptions, ProcgenVecEnv, make_procgen_env
from mnv4_rl.procgen.games import resolve_game as resolve_procgen_game

MAX_EVALUATION_ENVS = 10
MAX_PROCGEN_EVALUATION_ENVS = 50
EVALUATION_SEED = 10_000  # is added to a run's seed


@dataclass(frozen=True)
class Games:
    """Games for a trained agent to play.

    Attributes:
        game: As :func:`mnv4_rl.games.resolve_game` names it.
        mode: Of Procgen's levels.
        protocol: Of Atari's games: a row of ``mnv4_rl.atari.options.PROTOCOLS``.
        n_envs: Games played side by side.
        seed: Of the first of them.
        screens: Whether ``get_images()`` shall give the screens.
    """

    game: str
    mode: str = "easy"
    protocol: str = "sb3"
    n_envs: int = 1
    seed: int = 0
    screens: bool = False


@dataclass(frozen=True)
class Family:
    """What a run needs to know of its games. Both environments report whole games in ``info["episode"]``.

    Attributes:
        resolve_game: Any spelling of a game -> its one name; ValueError where there is none.
        make_env: The run's config and the file for one CSV row a game -> the environments to train in.
        make_plain_env: What to play -> the environments, as they are trained in, no statistics kept.
        make_play_env: A trained agent and what to play -> the environments to play in.
        make_evaluation_env: The run's config -> the environments to evaluate in.
        make_other_evaluation_envs: The run's config -> name -> what makes the environments that the final agent is
            evaluated in too.
    """

    resolve_game: Callable[[str], str]
    make_env: Callable[[Any, Path], Any]
    make_plain_env: Callable[[Games], NativeVecEnv]
    make_play_env: Callable[[Player, Games], VecEnv]
    make_evaluation_env: Callable[[Any], Any]
    make_other_evaluation_envs: Callable[[Any], dict[str, Callable[[], Any]]] = lambda _config: {}


def _atari_env(config: Any, monitor: Path) -> AtariVecEnv:
    return make_atari_env(
        config.game, config.n_envs, config.seed, num_threads=config.threads or 0, monitor_path=monitor
    )


def _atari_plain_env(games: Games) -> AtariVecEnv:
    return make_atari_env(games.game, games.n_envs, games.seed)


def _atari_play_env(model: Player, games: Games) -> VecEnv:
    return make_protocol_env(model, games.game, games.protocol, games.n_envs, games.seed, screens=games.screens)


def _atari_evaluation_env(config: Any) -> AtariVecEnv:
    n_envs = min(config.evaluation_games, MAX_EVALUATION_ENVS)
    return make_atari_env(config.game, n_envs, config.seed + EVALUATION_SEED, num_threads=config.threads or 0)


def _procgen_game(name: str) -> str:
    return f"procgen/{resolve_procgen_game(name)}"


def _procgen_env(config: Any, monitor: Path) -> VecNormalize:
    env = make_procgen_env(
        config.game,
        config.n_envs,
        config.seed,
        num_threads=config.threads or 0,
        monitor_path=monitor,
        **asdict(config.levels),
    )
    return VecNormalize(env, norm_obs=False, gamma=config.ppo.gamma)


def _procgen_plain_env(games: Games) -> ProcgenVecEnv:
    return make_procgen_env(games.game, games.n_envs, games.seed, distribution_mode=games.mode)


def _procgen_play_env(_model: Player, games: Games) -> ProcgenVecEnv:
    if games.protocol != Games.protocol:
        raise ValueError(f"Protocols are of Atari's games, got protocol={games.protocol!r} for {games.game}; leave it.")
    return _procgen_plain_env(games)


def _procgen_evaluation_env(config: Any, levels: ProcgenOptions | None = None) -> ProcgenVecEnv:
    n_envs = min(config.evaluation_games, MAX_PROCGEN_EVALUATION_ENVS)
    options = asdict(levels or config.levels)
    return make_procgen_env(
        config.game, n_envs, config.seed + EVALUATION_SEED, num_threads=config.threads or 0, **options
    )


def _unseen_levels(config: Any) -> dict[str, Callable[[], ProcgenVecEnv]]:
    unseen = config.levels.unseen()
    return {} if unseen is None else {"unseen_levels": lambda: _procgen_evaluation_env(config, unseen)}


FAMILIES: dict[str, Family] = {
    "atari": Family(resolve_game, _atari_env, _atari_plain_env, _atari_play_env, _atari_evaluation_env),
    "procgen": Family(
        _procgen_game,
        _procgen_env,
        _procgen_plain_env,
        _procgen_play_env,
        _procgen_evaluation_env,
        _unseen_levels,
    ),
}
