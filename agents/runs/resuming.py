"""The settings of the run in a folder, from its config.yml, and what may change when it goes on."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from agents.runs.config import RunConfig
from agents.runs.folder import read_config

Config = TypeVar("Config", bound=RunConfig)

# What may change between two sessions of a run: how long and where it trains, not what is learned.
CHANGEABLE = (
    "total_timesteps",
    "device",
    "threads",
    "compile",
    "evaluation_games",
    "checkpoint_every",
    "keep_checkpoints",
)


def recorded_config(config_class: type[Config], folder: Path) -> Config:
    """The settings of the run in a folder, with ``resume`` set to it.

    Raises:
        ValueError: If the folder holds no run, or one of another command.
    """
    settings = read_config(folder)
    algo = settings.get("algo")
    if "algo" not in get_type_hints(config_class):
        settings.pop("algo", None)
    for name in ("family", "tuning"):
        settings.pop(name, None)
    try:
        return replace(_typed(config_class, settings), resume=folder)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds a run of {algo}, which is not of this command: {error}.") from error


def check_changes(recorded: RunConfig, config: RunConfig) -> None:
    """Refuse settings that would make another run of it, or one that has ended.

    Raises:
        ValueError: Naming the setting and what it was.
    """
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


def _typed(hint: Any, value: Any) -> Any:
    """YAML's value as the type of a dataclass's field."""
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        if unknown := value.keys() - hints.keys():
            raise TypeError(f"unknown settings {', '.join(sorted(unknown))}")
        return hint(**{name: _typed(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    return Path(value) if isinstance(value, str) and Path in (hint, *get_args(hint)) else value
