"""ALE's native vector environment as a stable-baselines3 `VecEnv`: Atari games at thousands of steps per second.

For a learner it means what SB3's `make_atari_env` followed by `VecFrameStack` means. From pixels to observation, and
back:

1. A game starts with 0 to `noop_max` - 1 frames of NOOP.
2. One agent timestep repeats its action for `frame_skip` emulator frames of (210, 160) palette indices (a few games
   are taller). With sticky actions, each frame repeats the action of the frame before with
   `repeat_action_probability`.
3. The last two frames each become grey, (210, 160) uint8, or RGB, (210, 160, 3) uint8 ...
4. ... and their pixelwise maximum is taken, which removes the flicker of sprites drawn on every second frame.
5. Area interpolation to `screen_size`: (84, 84) uint8.
6. The newest `frame_stack` images are stacked, oldest first, zeros before the first: (4, 84, 84) uint8 in 0..255. RGB
   images put their three channels side by side: (12, 84, 84). All environments: (n_envs, 4, 84, 84), contiguous.
7. The raw reward of a timestep is the sum over its frames, an integer; the learner gets its sign, float32, where
   `clip_reward`. `info["episode"]` has the raw score and the length in agent timesteps of a whole game at its end.
8. A lost life ends the return (`done`) where `terminal_on_life_loss`, never the game: the next observation continues
   it. A game ends when it is over, or after `max_episode_frames` frames of play. The step that ends it returns the
   first observation of the next game; the last one of the old game is `info["terminal_observation"]`.
9. Where the game's own action set has FIRE second (SB3's rule) and `fire_reset` is on, FIRE replaces the environment's
   action in the first timestep of a game and after a lost life, so that a policy which never learnt to serve is not
   stuck. (With sticky actions, one FIRE in 256 is lost: all its frames repeat the action before.)

Where this differs from SB3's wrappers:

- The frame stack carries on over a lost life; SB3 clears it. SB3 also plays three timesteps there (NOOP, FIRE, action
  2) that the learner never sees; here FIRE is one ordinary timestep, stored under the action it replaced. It comes
  without `terminal_on_life_loss` too, where SB3 leaves it out.
- SB3 takes the maximum of two RGB frames, then grey; ALE grey, then the maximum. Only moving coloured pixels differ.
- SB3 starts a game with 1 to 30 frames of NOOP, not 0 to 29, then plays FIRE and action 2 before the learner sees it.
- The very last frame of a game is not in its last observation, whose newest image is the maximum of earlier ones.
- `l` in `info["episode"]` and in the monitor file counts agent timesteps; SB3's Monitor counts emulator frames.
- `info["lives"]` at the end of a game is that of the next game.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from mnv4_rl.atari.games import gym_spec, minimal_actions, resolve_game
from mnv4_rl.atari.options import PROTOCOLS, AtariOptions, options_of
from mnv4_rl.atari.sb3_wrappers import wrappers_of
from mnv4_rl.atari.scores import human_normalised
from mnv4_rl.atari.screen import Screen, screen_size
from mnv4_rl.checks import check_count
from mnv4_rl.episode_log import EpisodeLog
from mnv4_rl.native_env import SEED_LIMIT, NativeVecEnv

FRAMES_PER_SECOND = 60  # of the emulator; the console's NTSC rate, rounded
_RENDER_MODES = ("rgb_array",)


def make_atari_env(
    game: str,
    n_envs: int = 8,
    seed: int | None = 0,
    *,
    protocol: str = "sb3",
    num_threads: int = 0,
    monitor_path: str | Path | None = None,
    render_mode: str | None = None,
    **options: Any,
) -> AtariVecEnv:
    """Build `n_envs` copies of an Atari game for stable-baselines3.

    Args:
        game: Any common spelling, see `mnv4_rl.atari.games.resolve_game`.
        n_envs: Environments that step together.
        seed: Seed of the first environment, the others get the numbers after it; None for a random one.
        protocol: A row of `mnv4_rl.atari.options.PROTOCOLS`: "sb3" or "machado".
        num_threads: ALE's worker threads; 0 for one per environment, at most one per core.
        monitor_path: File for one CSV row per whole game, see `mnv4_rl.episode_log.EpisodeLog`.
        render_mode: "rgb_array" for the console's screens from `render()` and `get_images()`, at about twice the time.
        **options: Fields of `mnv4_rl.atari.options.AtariOptions` that differ from the protocol's.

    Returns:
        An `AtariVecEnv`, ready for `PPO("CnnPolicy", env)`.

    Raises:
        TypeError: An option that does not exist, or has the wrong type.
        ValueError: An unknown game or protocol, a value out of range, or a file that is no monitor file.
    """
    return AtariVecEnv(
        game,
        n_envs,
        seed,
        options_of(protocol, options),
        num_threads=num_threads,
        monitor_path=monitor_path,
        render_mode=render_mode,
    )


class AtariVecEnv(NativeVecEnv):
    """ALE's vector environment behind SB3's contract; the module docstring numbers what happens to pixels and rewards.

    Every done carries a valid `terminal_observation`, and `TimeLimit.truncated` says whether it was the frame limit.
    Only the end of a game carries `episode`. Returned arrays are new ones at every step.

    Args:
        game: Any common spelling of the game's name.
        n_envs: Environments that step together.
        seed: Seed of the first environment, the others get the numbers after it; None for a random one.
        options: What to do with pixels, rewards, lives and actions.
        num_threads: ALE's worker threads; 0 for one per environment, at most one per core.
        monitor_path: File for one CSV row per whole game, or None.
        render_mode: None, or "rgb_array" for the console's screens from `render()` and `get_images()`: an emulator
            beside each one plays the same game.

    Attributes:
        game: Rom id.
        options: The options in force.
        metadata: gymnasium's, with the screens a second.

    Raises:
        ValueError: An unknown game, a number out of range, or a file that is no monitor file.
    """

    scale = "human_normalised"
    _questions = ("get_action_meanings", "get_attr", "has_attr", "normalised")

    def __init__(
        self,
        game: str,
        n_envs: int,
        seed: int | None = 0,
        options: AtariOptions = PROTOCOLS["sb3"],
        *,
        num_threads: int = 0,
        monitor_path: str | Path | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *_RENDER_MODES):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}.")
        check_count("n_envs", n_envs, 1)
        check_count("num_threads", num_threads, 0)
        self.game = resolve_game(game)
        self.options = options
        self.frame_skip = options.frame_skip
        self.render_mode = render_mode
        # SB3's rule for games that wait for FIRE, on the game's own actions: the full set has FIRE for every game.
        self._needs_fire = options.fire_reset and minimal_actions(self.game)[1:2] == ("FIRE",)
        self._ale: AtariVectorEnv | None = _ale_vector_env(self.game, n_envs, options, num_threads)
        self._action_meanings = tuple(action.name for action in self._ale.ale.get_action_set())
        channels = options.frame_stack * (1 if options.grayscale else 3)
        super().__init__(
            n_envs,
            spaces.Box(0, 255, (channels, *options.height_width), np.uint8),
            spaces.Discrete(len(self._action_meanings)),
        )
        fps = FRAMES_PER_SECOND / options.frame_skip
        self.metadata: dict[str, Any] = {"render_modes": list(_RENDER_MODES), "render_fps": fps}
        self.seed(seed)
        self._press_fire = np.zeros(n_envs, dtype=bool)
        self._lives = np.zeros(n_envs, dtype=np.int32)
        self._game_starts = np.zeros(n_envs, dtype=np.int64)  # emulator frame at which the running game began
        self._log = EpisodeLog(n_envs, self.game, monitor_path)
        self._num_threads = num_threads
        self._screen: Screen | None = None
        if render_mode:
            self.show_screens()

    @property
    def action_meanings(self) -> tuple[str, ...]:
        """What each action presses: `("NOOP", "FIRE", "RIGHT", "LEFT")` for Breakout."""
        return self._action_meanings

    def get_action_meanings(self) -> list[str]:
        """`action_meanings` as gymnasium's Atari environments have it."""
        return list(self._action_meanings)

    @property
    def spec(self) -> EnvSpec:
        """Gymnasium's spec of one such emulator: `ALE/Pong-v5` with the options in force."""
        return gym_spec(self.game, self.options)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether this has the effect of one of SB3's wrappers, see `mnv4_rl.atari.sb3_wrappers.wrappers_of`."""
        wrappers = wrappers_of(self.options, self._needs_fire)
        return [wrapper_class in wrappers for _ in self._get_indices(indices)]

    def reset(self) -> np.ndarray:
        """Start a new game in every environment.

        Returns:
            Observations, (n_envs, channels, height, width) uint8.
        """
        ale = self._open_ale()
        if self._pending:  # SB3: a step under way is cancelled
            ale.recv()
        self._pending = False
        self._has_started = True
        if self._screen is not None:
            self._screen.reset(self._seeds)
        # -1: carry on with the generator as it is
        seeds = [-1 if seed is None else seed % SEED_LIMIT for seed in self._seeds]
        observations, info = ale.reset(seed=np.array(seeds))
        self._lives = info["lives"]
        self._game_starts = info["frame_number"] - info["episode_frame_number"]
        self._press_fire[:] = self._needs_fire
        self._log.restart()
        self.reset_infos = [{"lives": lives} for lives in info["lives"].tolist()]
        self._reset_seeds()
        self._reset_options()
        return self._chw(observations)

    def normalised(self, score: float) -> float | None:
        """A raw score on the scale of `mnv4_rl.atari.scores.human_normalised`."""
        return human_normalised(self.game, score)

    def _send(self, actions: np.ndarray) -> None:
        self._open_ale().send(np.where(self._press_fire, 1, actions))
        if self._screen is not None:
            self._screen.send(actions)

    def _receive(self) -> VecEnvStepReturn:
        observations, raw_rewards, terminated, truncated, info = self._open_ale().recv()
        observations = self._chw(observations)
        self._log.add(raw_rewards)
        dones = terminated | truncated
        infos = [
            {"lives": lives, "TimeLimit.truncated": cut}
            for lives, cut in zip(info["lives"].tolist(), truncated.tolist(), strict=True)
        ]
        game_over = self._track_games(info)
        if dones.any():
            self._end_returns(dones, game_over, info.get("final_obs"), observations, infos)
        rewards = np.sign(raw_rewards) if self.options.clip_reward else raw_rewards
        step = observations, rewards.astype(np.float32), dones, infos
        if self._screen is not None:
            self._screen.receive(step)
        return step

    def close(self) -> None:
        """Stop ALE's threads and close the monitor file."""
        self._ale = None  # its destructor joins the worker threads
        if self._screen is not None:
            self._screen.close()
        self._pending = False
        self._log.close()

    def show_screens(self) -> None:
        """From the next `reset` on, `get_images()` has the console's screens, and a step takes about twice the time."""
        if self._screen is not None:
            return
        options = replace(self.options, grayscale=False, frame_stack=1, screen_size=screen_size(self.game))
        self._screen = Screen(AtariVecEnv(self.game, self.num_envs, options=options, num_threads=self._num_threads))
        self.render_mode = "rgb_array"
        if None in self._seeds:
            self.seed()  # the screen's games must start as these do

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The console's screens, (height, width, 3) uint8 RGB; the last of the old game where one just ended.

        Raises:
            NotImplementedError: Without `render_mode="rgb_array"`.
        """
        self._open_ale()
        if self._screen is None:
            raise NotImplementedError(
                "ALE's vector interface does not give the console's screen by itself. To watch a game, step "
                f"make_atari_env({self.game!r}, ..., render_mode='rgb_array'), which has it."
            )
        return self._screen.images()

    def render(self, mode: str | None = None) -> np.ndarray | None:
        """All screens side by side, (height, width, 3) uint8 RGB; see `get_images`."""
        if self._screen is None:
            self.get_images()  # says what to do
        return super().render(mode)

    def _track_games(self, info: dict[str, np.ndarray]) -> np.ndarray:
        """Note who must press FIRE next, and return whose game ended with this timestep, (n_envs,) bool."""
        # The emulator frame before a game's first moves if and only if a new game began. Neither the game's own frame
        # count nor its lives can tell: both are the new game's, and may be higher than the old one's.
        game_starts = info["frame_number"] - info["episode_frame_number"]
        game_over = game_starts != self._game_starts
        lives = info["lives"]
        if self._needs_fire:
            # At 0 lives a game is as good as over, and some report 0 for a while (SB3's rule).
            self._press_fire = ((lives < self._lives) & (lives > 0)) | game_over
        self._game_starts, self._lives = game_starts, lives
        return game_over

    def _end_returns(
        self,
        dones: np.ndarray,
        game_over: np.ndarray,
        final: np.ndarray | None,
        observations: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Fill in the infos of the environments whose return ended, by a lost life or with the game."""
        # ALE fills its final observations at a game's end only; for a lost life they are uninitialised memory.
        last = (
            observations if final is None else np.where(game_over[:, None, None, None], self._chw(final), observations)
        )
        for index in np.flatnonzero(dones).tolist():
            infos[index]["terminal_observation"] = last[index].copy()
            if game_over[index]:
                infos[index]["episode"] = self._log.finish(index)

    def _chw(self, observations: np.ndarray) -> np.ndarray:
        """(n, stack, H, W) stays; RGB (n, stack, H, W, 3) -> (n, 3 * stack, H, W)."""
        if self.options.grayscale:
            return observations
        return observations.transpose(0, 1, 4, 2, 3).reshape(-1, *self.observation_space.shape)  # type: ignore[misc]

    def _open_ale(self) -> AtariVectorEnv:
        if self._ale is None:
            raise RuntimeError("The environment is closed. Build a new one with make_atari_env().")
        return self._ale


def _ale_vector_env(game: str, n_envs: int, options: AtariOptions, num_threads: int) -> AtariVectorEnv:
    height, width = options.height_width
    return AtariVectorEnv(
        game,
        n_envs,
        num_threads=num_threads,
        max_num_frames_per_episode=options.max_episode_frames,
        repeat_action_probability=options.repeat_action_probability,
        full_action_space=options.full_action_space,
        autoreset_mode=AutoresetMode.SAME_STEP,  # the default drops an action at every game's end
        img_height=height,
        img_width=width,
        grayscale=options.grayscale,
        stack_num=options.frame_stack,
        frameskip=options.frame_skip,
        noop_max=options.noop_max,
        episodic_life=False,  # True would reset the game at every lost life
        life_loss_info=options.terminal_on_life_loss,
        reward_clipping=False,  # the raw score would be lost
        use_fire_reset=False,  # it is a single frame, which a sticky action swallows one time in four; see _track_games
    )
