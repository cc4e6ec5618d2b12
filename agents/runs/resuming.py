"""The settings of the run in a folder, from its config.yml, and what may change when it goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from agents.runs.config import DQNConfig, PPOConfig, ProcgenPPOConfig, RunConfig
from agents.runs.folder import read_config
from mnv4_rl.safe_files import DamagedError
from mnv4_rl.schemas import refusals

Config = TypeVar("Config", bound=RunConfig)

_CONFIGS = (PPOConfig, ProcgenPPOConfig, DQNConfig)  # of a command each

# What may change between two sessions of a run: how long and where it trains, not what is learned.
CHANGEABLE = (
    "total_timesteps",
    "device",
    "threads",
    "compile",
    "loop",
    "evaluation_games",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
)


def recorded_config(config_class: type[Config], folder: Path) -> Config:
    """The settings of the run in a folder, with ``resume`` set to it.

    Raises:
        ValueError: If the folder holds no run, one of another command, or settings that are none (DamagedError).
    """
    settings = read_config(folder)
    family, algo = settings.pop("family", "atari"), settings.get("algo")
    settings.pop("tuning", None)
    if family != config_class.family or algo not in config_class.algos:
        theirs = [kind.command for kind in _CONFIGS if kind.family == family and algo in kind.algos]
        other = f"; experiments/{theirs[0]}.py goes on with it" if theirs else ""
        raise ValueError(f"{folder} holds a run of {algo!r:.40} ({family!r:.40}), which is not of this command{other}.")
    if len(config_class.algos) == 1:
        del settings["algo"]  # no setting of such a class
    try:
        text = json.dumps(settings)
        config = TypeAdapter(config_class).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise DamagedError(f"{folder / 'config.yml'}: {refusals(error)}.") from error
    except TypeError as error:
        raise DamagedError(f"{folder / 'config.yml'} has values other than text and numbers: {error}.") from error
    return replace(config, resume=folder, run_dir=None)


def check_changes(recorded: RunConfig, config: RunConfig) -> None:
    """Refuse settings that would make another run of it, or one that has ended.

    Raises:
        ValueError: Naming the setting and what it was.
    """
    if config.run_dir is not None:
        raise ValueError(f"A resumed run stays in its folder, {config.resume}; leave --run-dir {config.run_dir} out.")
    before, now = asdict(recorded), asdict(config)
    for name in before.keys() - set(CHANGEABLE):
        if before[name] != now[name]:
            raise ValueError(
                f"{name} was {before[name]} in the run and cannot become {now[name]}; start a new run, or change only "
                f"{', '.join(CHANGEABLE)}."
            )
    if config.total_timesteps < recorded.total_timesteps:
        raise ValueError(
            f"total_timesteps was {recorded.total_timesteps} and can only grow, got {config.total_timesteps}."
        )
