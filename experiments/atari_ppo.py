"""Train PPO on an Atari game from pixels.

python experiments/atari_ppo.py --game pong --total-timesteps 1000000 --encoder rl_s --seed 0
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.ppo import PPOHyperparameters, build_ppo, check_rollout
from experiments.cli.atari import AtariConfig, run_atari
from experiments.cli.resuming import parse_run


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AtariConfig):
    """Train PPO on an Atari game from pixels; the run folder gets curves for TensorBoard, the model and its scores."""

    ppo: PPOHyperparameters = field(default_factory=PPOHyperparameters)
    """PPO's settings; rl-zoo's Atari values by default."""

    def check(self) -> None:
        """As :meth:`AtariConfig.check`, PPO's settings too."""
        super().check()
        check_rollout(self.ppo, self.n_envs)


def main(args: list[str] | None = None) -> None:
    """Parse flags and train."""
    config = parse_run(PPOConfig, args)
    build = partial(
        build_ppo,
        encoder=config.encoder,
        total_timesteps=config.total_timesteps,
        hyperparameters=config.ppo,
        seed=config.seed,
        device=config.device,
    )
    run_atari(config, "ppo", build)


if __name__ == "__main__":
    main()
