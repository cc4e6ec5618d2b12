"""Train PPO on a Procgen game from pixels.

python experiments/procgen_ppo.py --game starpilot --total-timesteps 2000000 --encoder rl_s2 --seed 0
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from experiments.cli.starting import leave_on_interrupt

    leave_on_interrupt()

from agents.runs.config import ProcgenPPOConfig
from experiments.cli.atari import run_command


def main(args: list[str] | None = None) -> None:
    """Parse flags and train."""
    run_command(ProcgenPPOConfig, args)


if __name__ == "__main__":
    main()
