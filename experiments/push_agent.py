"""Push a published agent to the model hub, card and pictures included, for `mnv4_rl.load_agent("user/name")`.

python experiments/push_agent.py experiments/results/agents/pong__ppo__rl_s__s0 user/pong-ppo-rl_s

Log in once before: `hf auth login`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from experiments.cli.command import parse, user_errors
from mnv4_rl.hub import push_to_hub


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Push a published agent to a repository of yours, which is made if needed."""

    folder: tyro.conf.Positional[Path]
    """Folder that experiments/publish_agent.py wrote."""
    repository: tyro.conf.Positional[str]
    """user/name."""
    private: bool = False
    """Make a new repository private."""


def main(args: list[str] | None = None) -> None:
    """Check, push, and say where it is."""
    config = parse(PushConfig, args)
    with user_errors():
        print(f"pushed       {push_to_hub(config.folder, config.repository, private=config.private)}")


if __name__ == "__main__":
    main()
