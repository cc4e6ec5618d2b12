"""``--resume DIR``: the flags of the run in a folder, from its config.yml."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from agents.runs.folder import read_config
from experiments.cli.atari import AtariConfig
from experiments.cli.command import parse, user_errors

RunConfig = TypeVar("RunConfig", bound=AtariConfig)

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


def parse_run(config_class: type[RunConfig], args: list[str] | None = None) -> RunConfig:
    """Flags -> config; with ``--resume`` the recorded settings take the place of the defaults.

    Args:
        config_class: A command's flags.
        args: Flags, ``sys.argv`` by default.
    """
    config = parse(config_class, args)
    if config.resume is None:
        return config
    with user_errors():
        recorded = recorded_config(config_class, config.resume)
        config = parse(config_class, args, recorded)
        check_changes(recorded, config)
    return config


def recorded_config(config_class: type[RunConfig], folder: Path) -> RunConfig:
    """The settings of the run in a folder.

    Raises:
        ValueError: If the folder holds no run, or one of another command.
    """
    settings = read_config(folder)
    algo = settings.get("algo")
    if "algo" not in get_type_hints(config_class):
        settings.pop("algo", None)
    settings.pop("tuning", None)
    try:
        return replace(_typed(config_class, settings), resume=folder)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds a run of {algo}, which is not of this command: {error}.") from error


def check_changes(recorded: AtariConfig, config: AtariConfig) -> None:
    """Refuse flags that would make another run of it, or one that has ended.

    Raises:
        ValueError: Naming the flag and what it was.
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
