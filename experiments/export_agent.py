"""Export the agent of a run, or a published one, as an ONNX file, compared with it on frames of its own play.

python experiments/export_agent.py experiments/results/agents/pong__ppo__rl_s__s0 --output pong.onnx --quantize fc

`python experiments/watch.py pong.onnx` plays it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from experiments.cli.starting import leave_on_interrupt

    leave_on_interrupt()

import numpy as np
import tyro

from agents.play.evaluate import Player, evaluate, own_randomness
from agents.runs.config import SEED
from agents.runs.loading import TrainedRun, load_run
from experiments.cli.command import interrupts, parse, user_errors
from mnv4_rl.checks import Interval, check_positive, check_range
from mnv4_rl.export import OnnxAgent, to_onnx
from mnv4_rl.export.agreement import new_file
from mnv4_rl.performance import THREADS, tune

N_ENVS = 6


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the agent of a run folder as an ONNX file, once it acts as the agent does."""

    run: tyro.conf.Positional[Path]
    """Folder that a training command wrote, one of its checkpoints, or one of a published agent."""
    output: Path = Path("agent.onnx")
    """A new file."""
    quantize: Literal["fc"] | None = None
    """fc: the fully connected layer in int8, a third of the size."""
    frames: int = 1_000
    """Agent timesteps of its own play to compare on."""
    games: int = 0
    """Whole games that agent and file each play with equal seeds; 0 for none."""
    seed: int = 0
    """Seed of games and actions."""
    threads: int = 1
    """CPU threads."""


def frames_of_play(run: TrainedRun, n_frames: int, seed: int) -> np.ndarray:
    """Observations that the agent meets, (n_frames, channels, H, W) uint8."""
    env = run.make_env(n_envs=N_ENVS, seed=seed)
    seen: list[np.ndarray] = []
    try:
        with own_randomness(run.model, seed):
            observations: Any = env.reset()
            while len(seen) * N_ENVS < n_frames:
                seen.append(np.array(observations))  # the environment may fill the same memory again
                observations, _, _, _ = env.step(run.model.predict(observations)[0])
    finally:
        env.close()
    return np.concatenate(seen)[:n_frames]


def whole_games(run: TrainedRun, config: ExportConfig) -> str:
    """Scores of agent and file, as a line each."""
    players: dict[str, Player] = {"agent": run.model, "file": OnnxAgent(config.output)}
    lines = []
    for name, model in players.items():
        env = replace(run, model=model).make_env(n_envs=min(N_ENVS, config.games), seed=config.seed)
        try:
            evaluation = evaluate(model, env, config.games, seed=config.seed)
        finally:
            env.close()
        lines.append(f"{name:<12s} {evaluation}")
    return "\n".join(lines)


@interrupts()
def main(args: list[str] | None = None) -> None:
    """Load, export, compare, and say how well the file agrees."""
    config = parse(ExportConfig, args)
    with user_errors():
        check_positive(frames=config.frames)
        check_range("games", config.games, Interval(0))
        check_range("seed", config.seed, SEED)
        check_range("threads", config.threads, THREADS)
        new_file(config.output, ".onnx")
        tune(config.threads)
        run = load_run(config.run, device="cpu")
        if isinstance(run.model, OnnxAgent):
            raise ValueError(f"{config.run} is exported already; name a run folder or a published agent.")
        frames = frames_of_play(run, config.frames, config.seed)
        notes = {"game": run.game, "mode": run.games.mode, "encoder": run.encoder}
        print(
            f"written      {to_onnx(run.model, config.output, config.quantize, frames=frames, notes=notes)}", flush=True
        )
    if config.games:
        print(whole_games(run, config))


if __name__ == "__main__":
    main()
