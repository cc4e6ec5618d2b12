"""Train on an environment of one's own: a small game as RGB pictures, plain SB3 PPO, ``MNV4Extractor``.

    python experiments/custom_env.py                      # rl_s2, then SB3's NatureCNN, about a minute each
    python experiments/custom_env.py --encoder rl_s2      # one of them

:class:`CatchEnv` and :func:`build_agent` are what to paste into a project; the rest is flags and a table.
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the packages lie beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from experiments.cli.starting import leave_on_interrupt

    leave_on_interrupt()

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from agents.runs.output import courteous_output
from experiments.cli.command import interrupts, parse, user_errors
from experiments.cli.results import check_cells, typed
from mnv4_rl import MNV4Extractor, list_models
from mnv4_rl.checks import Interval, check_ranges
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.models.specs import NetworkSpec
from mnv4_rl.performance import THREADS, tune
from mnv4_rl.safe_files import write_csv

SIZE = 64  # side of the picture in pixels
CELL = 8  # side of a ball, and what a ball falls and the paddle moves in one step, in pixels
PADDLE_WIDTH = 16  # pixels
PADDLE_TOP = SIZE - CELL  # row of the paddle's upper edge
RED, GREEN, BLUE, WHITE = (220, 60, 50), (60, 200, 80), (70, 110, 230), (255, 255, 255)


class CatchEnv(gym.Env):
    """Catch the red ball with the paddle; a green and a blue ball fall beside it and count for nothing.

    Each round three balls start in different columns of the top row and fall straight down. The paddle can always
    reach the red one, so the best return is ``n_balls``; it takes the colour, the column and the control to get there.
    The shade of the background changes from round to round.

    Args:
        n_balls: Rounds in an episode, 6 steps each.
        render_mode: None or ``"rgb_array"``.

    Spaces:
        Observation (64, 64, 3) uint8 in [0, 255]; action 0 left, 1 stay, 2 right; reward 1 for a caught red ball,
        else 0.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  gymnasium's own convention
    n_columns = SIZE // CELL
    n_fall_steps = PADDLE_TOP // CELL - 1  # steps from the top row to the row above the paddle

    def __init__(self, n_balls: int = 10, render_mode: str | None = None) -> None:
        if n_balls < 1:
            raise ValueError(f"n_balls must be at least 1, got {n_balls}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}.")
        self.n_balls = n_balls
        self.balls_left = 0  # no episode is running
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode with the paddle in the middle."""
        super().reset(seed=seed)
        self.balls_left = self.n_balls
        self.paddle_x = (SIZE - PADDLE_WIDTH) // 2 // CELL * CELL  # left edge, in pixels
        self._new_round()
        return self._picture(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move the paddle, let the balls fall; a round ends above the paddle, an episode with the last round."""
        if not self.action_space.contains(action):
            raise ValueError(f"An action must be 0 (left), 1 (stay) or 2 (right), got {action!r}.")
        self._check_running("step")
        self.paddle_x = int(np.clip(self.paddle_x + (int(action) - 1) * CELL, 0, SIZE - PADDLE_WIDTH))
        self.ball_y += CELL
        reward = 0.0
        if self.ball_y == self.n_fall_steps * CELL:
            reward = float(self.is_caught())
            self.balls_left -= 1
            self._new_round()
        # Truncated, not terminated: the pictures do not show which round is the last.
        return self._picture(), reward, False, self.balls_left == 0, {}

    def is_caught(self) -> bool:
        """Whether the red ball overlaps the paddle's columns."""
        return -CELL < self.ball_x[0] - self.paddle_x < PADDLE_WIDTH

    def render(self) -> np.ndarray:
        """The picture, (64, 64, 3) uint8."""
        if not hasattr(self, "shade"):
            self._check_running("render")
        return self._picture()

    def _check_running(self, method: str) -> None:
        if not self.balls_left:
            raise ResetNeeded(f"Call reset() before {method}(): no episode is running.")

    def _picture(self) -> np.ndarray:
        picture = np.full((SIZE, SIZE, 3), self.shade, np.uint8)
        for x, colour in zip(self.ball_x, (RED, GREEN, BLUE), strict=True):
            picture[self.ball_y : self.ball_y + CELL, x : x + CELL] = colour
        picture[PADDLE_TOP:, self.paddle_x : self.paddle_x + PADDLE_WIDTH] = WHITE
        return picture

    def _new_round(self) -> None:
        columns = self.np_random.choice(self.n_columns, size=3, replace=False)
        self.ball_x = [int(column) * CELL for column in columns]  # left edges of red, green, blue, in pixels
        self.ball_y = 0
        self.shade = int(self.np_random.integers(0, 100))


def build_agent(env: VecEnv, encoder: str | NetworkSpec = DEFAULT_VARIANT, seed: int = 0) -> PPO:
    """SB3's PPO on pictures; everything but the encoder is the same for every encoder.

    Args:
        env: Environments with pictures for observations.
        encoder: ``"nature"`` for SB3's NatureCNN, any name of :func:`mnv4_rl.list_models`, or a row of your own.
        seed: Seed of weights, actions and environments.
    """
    # net_arch=[]: otherwise SB3 adds two tanh layers behind every encoder but its own.
    policy_kwargs: dict[str, Any] = dict(net_arch=[])
    if encoder != "nature":
        policy_kwargs.update(features_extractor_class=MNV4Extractor, features_extractor_kwargs=dict(variant=encoder))
    return PPO(
        "CnnPolicy", env, n_steps=128, batch_size=256, n_epochs=4, gamma=0.9, learning_rate=1e-3, ent_coef=0.01,
        stats_window_size=20, policy_kwargs=policy_kwargs, seed=seed, device="cpu",
    )  # fmt: skip


_RANGES = {
    "total_timesteps": Interval(1),
    "n_envs": Interval(1, 256),  # a Python object each
    "n_eval_episodes": Interval(1),
    "seed": Interval(0, 2 * 10**9),  # NumPy's seeds end at 2**32, and environments use the numbers above
    "threads": THREADS,
}


@dataclass(frozen=True)
class Config:
    """Train encoders one after the other on CatchEnv and compare them."""

    encoder: tuple[str, ...] = (DEFAULT_VARIANT, "nature")
    """Encoders by name, one run each: nature (SB3's NatureCNN) or a registered variant."""
    total_timesteps: int = 40_000
    """Environment steps of each run."""
    n_envs: int = 8
    """Environments stepped together, a count."""
    n_eval_episodes: int = 50
    """Episodes of the final evaluation with greedy actions, and of the random policy; 60 steps each."""
    seed: int = 0
    """Seed of weights, actions and environments, a whole number."""
    threads: int | None = None
    """Threads of PyTorch, a count; None leaves PyTorch's choice."""
    run_dir: Path = field(default_factory=lambda: Path("runs", "custom_env", time.strftime("%Y-%m-%d_%H-%M-%S")))
    """Folder for curves and TensorBoard events, one subfolder an encoder; a folder with files in it is refused."""

    def check(self) -> None:
        """Refuse settings that cannot work, before anything is written.

        Raises:
            ValueError: Naming the setting, what it was and what is allowed.
            OSError: If the run folder cannot be made.
        """
        known = ("nature", *list_models())
        unknown = [name for name in self.encoder if name not in known]
        if unknown or not self.encoder:
            raise ValueError(
                f"encoder must name at least one of {', '.join(known)}; got {', '.join(unknown) or 'none'}."
            )
        check_cells(encoder=self.encoder)  # each has a folder of its name
        check_ranges(self, _RANGES)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if any(self.run_dir.iterdir()):
            raise ValueError(f"{self.run_dir} already holds files; name another folder with --run-dir, or remove it.")


@dataclass(frozen=True)
class Result:
    """What one encoder reached.

    Attributes:
        encoder: Its name.
        mean_return: Mean return of the final evaluation, in balls caught an episode.
        train_seconds: Wall-clock time of training.
        near_optimal_seconds: Training time until 20 episodes in a row averaged 90 % of the optimum, None if never.
        timesteps_per_second: Environment steps trained on in a second.
    """

    encoder: str
    mean_return: float
    train_seconds: float
    near_optimal_seconds: float | None
    timesteps_per_second: float


def train(encoder: str, config: Config) -> Result:
    """Train one encoder; its curve is ``progress.csv`` in its run folder, beside the TensorBoard events."""
    folder = config.run_dir / encoder
    agent = build_agent(make_vec_env(CatchEnv, config.n_envs), encoder, config.seed)
    agent.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    start = time.perf_counter()
    agent.learn(config.total_timesteps, log_interval=1, progress_bar=True)
    seconds = time.perf_counter() - start
    agent.save(folder / "model.zip")
    eval_env = make_vec_env(CatchEnv, config.n_envs, seed=config.seed + 1000)
    mean_return, _ = evaluate_policy(agent, eval_env, config.n_eval_episodes)
    assert isinstance(mean_return, float)  # a list only when asked for one
    near_optimal = near_optimal_seconds(folder / "progress.csv", 0.9 * CatchEnv().n_balls)
    return Result(encoder, mean_return, seconds, near_optimal, agent.num_timesteps / seconds)


def near_optimal_seconds(curve: Path, threshold: float) -> float | None:
    """Seconds of training until the logged mean return reached ``threshold``, None if it never did."""
    with curve.open(newline="") as file:
        for row in csv.DictReader(file):
            if float(row.get("rollout/ep_rew_mean") or "nan") >= threshold:  # empty before the first episode's end
                return float(row["time/time_elapsed"])
    return None


def random_return(n_episodes: int, seed: int = 0) -> float:
    """Mean return of uniformly random actions: chance."""
    env = CatchEnv()
    env.action_space.seed(seed)
    total = 0.0
    for episode in range(n_episodes):
        env.reset(seed=seed + episode)
        done = False
        while not done:
            _, reward, _, done, _ = env.step(env.action_space.sample())
            total += reward
    return total / n_episodes


def table(results: list[Result], chance: float) -> str:
    """The results as text, chance and optimum in the first line."""
    lines = [
        f"Balls caught an episode: chance {chance:.1f}, optimum {CatchEnv().n_balls}.",
        f"{'encoder':<28}{'mean return':>12}{'90 % after':>12}{'training':>12}{'steps/s':>10}",
    ]
    for result in results:
        reached = "never" if result.near_optimal_seconds is None else f"{result.near_optimal_seconds:.0f} s"
        lines.append(
            f"{result.encoder:<28}{result.mean_return:>12.2f}{reached:>12}"
            f"{f'{result.train_seconds:.0f} s':>12}{result.timesteps_per_second:>10.0f}"
        )
    return "\n".join(lines)


@courteous_output()
@interrupts()
def main(args: list[str] | None = None) -> list[Result]:
    """Train each encoder in turn and print the table."""
    config = parse(Config, args)
    with user_errors():
        config.check()
    print(f"Settings of this process: {tune(config.threads)}")
    chance = random_return(config.n_eval_episodes, config.seed)
    results = [train(encoder, config) for encoder in config.encoder]
    print(f"\n{table(results, chance)}\n")
    write_csv(config.run_dir / "results.csv", [asdict(result) for result in results])
    print(f"Results: {config.run_dir}/results.csv    Curves: {config.run_dir}/ENCODER/progress.csv")
    print(f"Watch:   tensorboard --logdir {typed(config.run_dir)}")
    return results


if __name__ == "__main__":
    main()
