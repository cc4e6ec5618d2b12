"""Procgen, stepped by envpool, as a stable-baselines3 `VecEnv`.

What a learner gets, and what envpool does to get there:

1. An observation is one RGB image: (3, 64, 64) uint8 in 0..255. All environments: (n_envs, 3, 64, 64), contiguous.
   There is no frame stack.
2. Every episode is one level, drawn anew from the levels of `ProcgenOptions`; `info["level_seed"]` names it.
3. Rewards are the game's own, float32, neither clipped nor normalised; `VecNormalize(norm_obs=False)` around it does
   what the benchmark's paper did. `info["episode"]` has raw return `r` and length `l` of every finished episode.
4. After an episode's end, envpool spends one more step on the reset: that step ignores its action and returns the first
   observation of the next episode with reward 0. Nothing is to be learnt from it, so it is taken here, for the finished
   environments alone, before `step_wait` returns: as everywhere in SB3, the observation that comes with `done` is the
   first one of the next episode, and the last one of the old is `info["terminal_observation"]`.
5. `info["TimeLimit.truncated"]` is envpool's word: True where a game ended at its time limit (1,000 timesteps in most).
   `info["level_complete"]` comes with `done` and says whether the level was solved.
6. Seeds are fixed when envpool builds its environments, so a `reset` after `seed` builds them anew; one without carries
   on with the levels that would have come next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from mnv4_rl.checks import check_count, check_options
from mnv4_rl.episode_log import EpisodeLog
from mnv4_rl.native_env import SEED_LIMIT, NativeVecEnv
from mnv4_rl.procgen.games import normalised, resolve_game
from mnv4_rl.procgen.options import ProcgenOptions
from mnv4_rl.procgen.pool import make_pool

ACTIONS = (
    "LEFT+DOWN",
    "LEFT",
    "LEFT+UP",
    "DOWN",
    "NOOP",
    "UP",
    "RIGHT+DOWN",
    "RIGHT",
    "RIGHT+UP",
    *"DAWSQE",  # keys; what they do is the game's
)


def make_procgen_env(
    game: str,
    n_envs: int = 64,
    seed: int | None = 0,
    *,
    num_threads: int = 0,
    monitor_path: str | Path | None = None,
    **options: Any,
) -> ProcgenVecEnv:
    """Build `n_envs` copies of a Procgen game for stable-baselines3.

    Args:
        game: Any common spelling, see `mnv4_rl.procgen.games.resolve_game`.
        n_envs: Environments that step together.
        seed: Seed of the levels drawn; None for a random one.
        num_threads: Envpool's worker threads; 0 for one per environment, at most one per core.
        monitor_path: File for one CSV row per episode, see `mnv4_rl.episode_log.EpisodeLog`.
        **options: Fields of `mnv4_rl.procgen.ProcgenOptions` that differ from its defaults.

    Returns:
        A `ProcgenVecEnv`.

    Raises:
        TypeError: An option that does not exist, or has the wrong type.
        ValueError: An unknown game or mode, a value out of range, or a file that is no monitor file.
        ModuleNotFoundError: Envpool or its system libraries are missing; the message has the commands.
    """
    check_options(ProcgenOptions, options)
    return ProcgenVecEnv(
        game, n_envs, seed, ProcgenOptions(**options), num_threads=num_threads, monitor_path=monitor_path
    )


class ProcgenVecEnv(NativeVecEnv):
    """Envpool's Procgen behind SB3's contract; the module docstring numbers what it does.

    Every done carries a valid `terminal_observation` and `episode`. Returned arrays are new ones at every step.

    Args:
        game: Any common spelling of the game's name.
        n_envs: Environments that step together.
        seed: Seed of the levels drawn; None for a random one.
        options: Which levels.
        num_threads: Envpool's worker threads; 0 for one per environment, at most one per core.
        monitor_path: File for one CSV row per episode, or None.

    Attributes:
        game: Name of the game.
        options: The options in force.

    Raises:
        ValueError: An unknown game or mode, a number out of range, or a file that is no monitor file.
        ModuleNotFoundError: Envpool or its system libraries are missing.
    """

    scale = "normalised"
    frame_skip = 4  # played by people at 15 timesteps a second

    def __init__(
        self,
        game: str,
        n_envs: int,
        seed: int | None = 0,
        options: ProcgenOptions = ProcgenOptions(),  # noqa: B008  frozen
        *,
        num_threads: int = 0,
        monitor_path: str | Path | None = None,
    ) -> None:
        check_count("n_envs", n_envs, 1)
        check_count("num_threads", num_threads, 0)
        self.game = resolve_game(game)
        self.options = options
        self.render_mode = "rgb_array"
        self._num_threads = num_threads
        super().__init__(n_envs, spaces.Box(0, 255, (3, 64, 64), np.uint8), spaces.Discrete(len(ACTIONS)))
        self.seed(seed)
        self._pool: Any = self._build_pool()
        self._untouched = True
        self._log = EpisodeLog(n_envs, f"procgen/{self.game}", monitor_path)

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """What each of the 15 actions presses."""
        return ACTIONS

    def reset(self) -> np.ndarray:
        """Start a new episode in every environment.

        Returns:
            Observations, (n_envs, 3, 64, 64) uint8.
        """
        pool = self._open_pool()
        if self._pending:  # SB3: a step under way is cancelled
            pool.recv()
        if self._seeds[0] is not None and not self._untouched:
            pool = self._pool = self._build_pool()
        self._pending = self._untouched = False
        self._has_started = True
        observations, info = pool.reset()
        self._log.restart()
        self.reset_infos = [{"level_seed": level} for level in info["level_seed"].tolist()]
        self._reset_seeds()
        self._reset_options()
        return observations

    def close(self) -> None:
        """Stop envpool's threads and close the monitor file."""
        self._pool = None  # its destructor joins the worker threads
        self._pending = False
        self._log.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The screens: what the agent sees, (64, 64, 3) uint8 for each environment."""
        return list(self._open_pool().render(np.arange(self.num_envs)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next `reset`, see `NativeVecEnv.seed`: which levels come in which order."""
        self._untouched = False
        return super().seed(seed)

    def normalised(self, score: float) -> float | None:
        """A return on the scale of `mnv4_rl.procgen.games.normalised`."""
        return normalised(self.game, score, self.options.distribution_mode)

    def _build_pool(self) -> Any:
        seed = self._seeds[0]
        assert seed is not None
        seed %= SEED_LIMIT - self.num_envs  # envpool counts on from it
        return make_pool(self.game, self.num_envs, seed, self.options, self._num_threads)

    def _send(self, actions: np.ndarray) -> None:
        self._open_pool().send(actions)

    def _receive(self) -> VecEnvStepReturn:
        observations, rewards, terminated, truncated, info = self._open_pool().recv()
        self._log.add(rewards)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [
            {"level_seed": level, "TimeLimit.truncated": cut}
            for level, cut in zip(info["level_seed"].tolist(), truncated.tolist(), strict=True)
        ]
        finished = np.flatnonzero(dones)
        for index in finished.tolist():
            infos[index]["terminal_observation"] = observations[index].copy()
            infos[index]["episode"] = self._log.finish(index)
            infos[index]["level_complete"] = bool(info["prev_level_complete"][index])
        if finished.size:
            self._begin_episodes(finished, observations)
        return observations, rewards, dones, infos

    def _begin_episodes(self, finished: np.ndarray, observations: np.ndarray) -> None:
        """Take envpool's reset step where an episode ended, and put the first observations in place of the last."""
        pool = self._open_pool()
        first, _, _, _, info = pool.step(np.zeros(len(finished), np.int64), finished.astype(np.int32))
        observations[info["env_id"]] = first

    def _open_pool(self) -> Any:
        if self._pool is None:
            raise RuntimeError("The environment is closed. Build a new one with make_procgen_env().")
        return self._pool
