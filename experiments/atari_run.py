"""What the Atari commands share: flags -> environment, model, run folder -> training -> where everything is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.callbacks import EnvTimer
from agents.encoders import policy_kwargs
from agents.run_folder import RunFolder
from agents.training import Outcome, train
from experiments.command import INTERRUPTED_CODE, user_errors
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari_games import resolve_game
from mnv4_rl.performance import Tuning, tune
from mnv4_rl.specs import check_positive

MAX_EVALUATION_ENVS = 10


@dataclass(frozen=True, kw_only=True)
class AtariConfig:
    """Flags of every Atari training command."""

    game: str = "pong"
    """Any of ALE's games, by any common spelling."""
    total_timesteps: int = 1_000_000
    """Agent timesteps (decisions) to train; each is 4 emulator frames."""
    encoder: str = "rl_s"
    """nature, or any name of mnv4_rl.list_models()."""
    seed: int = 0
    """Seed of weights, actions and games."""
    n_envs: int = 8
    """Games played side by side."""
    run_dir: Path | None = None
    """Folder for everything the run writes; a new one under runs/ by default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads of PyTorch and of the emulators; all cores by default."""
    evaluation_games: int = 30
    """Whole games played by the final model; 0 for none."""


Build = Callable[[VecEnv], BaseAlgorithm]


def run_atari(config: AtariConfig, algo: str, build: Build) -> None:
    """Train one agent as the flags say, and print where everything is.

    Args:
        config: The flags.
        algo: Name of the algorithm, for the folder's name.
        build: Makes the model for an environment.
    """
    with user_errors():
        check_config(config)
        tuning = tune(config.threads)
        run = RunFolder(config.run_dir or default_run_dir(config, algo))
        env = make_atari_env(
            config.game, config.n_envs, config.seed, num_threads=config.threads or 0, monitor_path=run.monitor
        )
        timer = EnvTimer(env)
        model = build(timer)
        run.describe({"algo": algo, **plain(asdict(config)), "tuning": asdict(tuning)})
    print(heading(config, algo, tuning, model, run))
    outcome = train(
        model,
        timer,
        run,
        config.total_timesteps,
        lambda: make_atari_env(config.game, min(config.evaluation_games, MAX_EVALUATION_ENVS), config.seed + 10_000),
        config.evaluation_games,
    )
    env.close()
    print(summary(outcome, run))
    if not outcome.finished:
        sys.exit(INTERRUPTED_CODE)


def check_config(config: AtariConfig) -> None:
    """Refuse flags that cannot work, before anything is written.

    Raises:
        ValueError: Naming the flag, what came and what is allowed.
    """
    resolve_game(config.game)
    policy_kwargs(config.encoder)
    check_positive(total_timesteps=config.total_timesteps, n_envs=config.n_envs)
    if config.evaluation_games < 0:
        raise ValueError(f"evaluation_games must be at least 0, got {config.evaluation_games}.")
    check_device(config.device)


def check_device(device: str) -> None:
    """Refuse a device this machine does not have.

    Raises:
        ValueError: For an unknown name, or CUDA where there is none.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}.")
    if kind == "cuda" and int(index or 0) >= th.cuda.device_count():
        raise ValueError(f"PyTorch sees {th.cuda.device_count()} CUDA devices here, got {device!r}; use auto or cpu.")


def default_run_dir(config: AtariConfig, algo: str) -> Path:
    """runs/<game>__<algo>__<encoder>__s<seed>__<date>_<time>."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return Path("runs") / f"{resolve_game(config.game)}__{algo}__{config.encoder}__s{config.seed}__{stamp}"


def plain(value: Any) -> Any:
    """Nested dataclass values as YAML can hold them: paths as strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def heading(config: AtariConfig, algo: str, tuning: Tuning, model: BaseAlgorithm, run: RunFolder) -> str:
    """What is about to happen, in three lines."""
    parameters = sum(p.numel() for p in model.policy.parameters())
    return (
        f"{algo} on {resolve_game(config.game)} with {config.encoder} ({parameters:,} parameters), "
        f"{config.total_timesteps:,} timesteps, {config.n_envs} games, {model.device}, {tuning}\n"
        f"run folder   {shown(run.path)}\n"
        f"curves       tensorboard --logdir {shown(run.path.parent)}"
    )


def summary(outcome: Outcome, run: RunFolder) -> str:
    """How it ended, and where the results are."""
    ended = "finished" if outcome.finished else "interrupted"
    score = "no game ended yet" if outcome.score is None else f"{outcome.score:.1f} (last 100 training games)"
    lines = [
        f"{ended} after {outcome.timesteps:,} timesteps, {outcome.steps_per_second:,.0f} steps/s",
        f"raw score    {score}",
    ]
    if outcome.evaluation:
        lines.append(f"evaluation   {outcome.evaluation}")
    lines += [
        f"model        {shown(run.model)}",
        f"run folder   {shown(run.path)}",
        f"curves       tensorboard --logdir {shown(run.path.parent)}",
    ]
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
