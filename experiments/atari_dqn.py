"""Train DQN (or QR-DQN) on an Atari game from pixels.

python experiments/atari_dqn.py --game breakout --total-timesteps 1000000 --encoder rl_s --seed 0
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents.dqn import DQNHyperparameters, build_dqn
from experiments.cli.atari import AtariConfig, run_atari
from experiments.cli.resuming import parse_run


@dataclass(frozen=True, kw_only=True)
class DQNConfig(AtariConfig):
    """Train DQN on an Atari game from pixels; the run folder gets curves for TensorBoard, the model and its scores."""

    algo: Literal["dqn", "qrdqn"] = "dqn"
    """dqn, or qrdqn from sb3-contrib."""
    checkpoint_replay: bool = False
    """Put the replay buffer into checkpoints, compressed; without it a resumed run first fills a new one."""
    dqn: DQNHyperparameters = field(default_factory=DQNHyperparameters)
    """DQN's settings; rl-zoo's Atari values by default."""

    def check(self) -> None:
        """As :meth:`AtariConfig.check`, DQN's settings too, and that there are updates at all."""
        super().check()
        self.dqn.check()
        if self.dqn.learning_starts >= self.total_timesteps:
            raise ValueError(
                f"dqn.learning_starts={self.dqn.learning_starts:,} leaves no update in total_timesteps="
                f"{self.total_timesteps:,}; lower --dqn.learning-starts, or train longer."
            )


def main(args: list[str] | None = None) -> None:
    """Parse flags and train."""
    config = parse_run(DQNConfig, args)
    build = partial(
        build_dqn,
        encoder=config.encoder,
        algo=config.algo,
        hyperparameters=config.dqn,
        seed=config.seed,
        device=config.device,
    )
    run_atari(config, config.algo, build, config.checkpoint_replay)


if __name__ == "__main__":
    main()
