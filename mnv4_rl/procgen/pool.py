"""Build envpool's Procgen, or say in one line what has to be installed."""

from __future__ import annotations

import importlib
import os
from typing import Any

from mnv4_rl.procgen.options import ProcgenOptions

INSTALL_LINE = 'python -m pip install -c constraints.txt -e ".[procgen]"'
SYSTEM_INSTALL_LINE = "apt-get install libqt5gui5 libqt5core5a"


def make_pool(game: str, n_envs: int, seed: int, options: ProcgenOptions, num_threads: int) -> Any:
    """Envpool's environment of one game, in its Gymnasium manner and in lock step.

    Args:
        game: A member of `mnv4_rl.procgen.games.list_games()`.
        n_envs: Environments that step together.
        seed: Seed of all of them; envpool gives each its own.
        options: Which levels.
        num_threads: Worker threads; 0 for one per environment, at most one per core.

    Raises:
        ModuleNotFoundError: Envpool or the Qt libraries it loads are missing; the message has the commands that install
            both.
        ValueError: The game has no such distribution mode.
    """
    envpool = _import_envpool()
    task = f"{game.capitalize()}{options.distribution_mode.capitalize()}-v0"
    if task not in (known := envpool.list_all_envs()):
        modes = [
            name.removeprefix(game.capitalize()).removesuffix("-v0").lower()
            for name in known
            if name.startswith(game.capitalize())
        ]
        raise ValueError(
            f"distribution_mode of {game} must be one of {', '.join(modes)}, got {options.distribution_mode!r}."
        )
    return envpool.make_gymnasium(
        task,
        num_envs=n_envs,
        num_threads=num_threads or min(n_envs, os.cpu_count() or 1),
        seed=seed,
        num_levels=options.num_levels,
        start_level=options.start_level,
        render_mode="rgb_array",
    )


def _import_envpool() -> Any:
    try:
        envpool = importlib.import_module("envpool")
        importlib.import_module("envpool.procgen").ProcgenEnvSpec  # noqa: B018  missing Qt libraries show here
        return envpool
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Procgen needs envpool and Qt 5: {INSTALL_LINE} and, on Debian or Ubuntu, {SYSTEM_INSTALL_LINE} ({error})."
        ) from error
