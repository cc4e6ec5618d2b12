"""What a race is: its flags, its matrix of runs, encoder x game x seed, and what it refuses before anything trains."""

from __future__ import annotations

import csv
import itertools
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.encoders import policy_kwargs
from agents.ppo import PRESETS, PPOHyperparameters, check_rollout
from agents.runs.checkpoints import newest_checkpoint, timesteps_of
from agents.runs.config import N_ENVS, SEED, TIMESTEPS, PPOConfig, ProcgenPPOConfig, check_device
from agents.runs.folder import exported_timesteps, read_config
from agents.runs.resuming import recorded_config
from experiments.cli.results import RESULTS, ROOT, check_cells, check_file_name
from experiments.engines.config import EngineConfig
from experiments.racing.results import read_races, run_name
from mnv4_rl.checks import Interval, check_range, check_ranges
from mnv4_rl.games import family_of, resolve_game
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.performance import THREADS

CONFIGS = {"atari": PPOConfig, "procgen": ProcgenPPOConfig}  # of one run, by the kind of games
_RANGES = {
    "total_timesteps": TIMESTEPS,
    "n_envs": N_ENVS,
    "threads": THREADS,
    "points": Interval(1),
    "checkpoint_every": Interval(0),
}
ROUNDING = 1e-5  # a CSV keeps six digits
_TRAINERS = {family: ROOT / "experiments" / f"{config.command}.py" for family, config in CONFIGS.items()}


@dataclass(frozen=True, kw_only=True)
class RaceConfig(EngineConfig):
    """Train every encoder on every game with every seed, and collect the curves in one CSV."""

    name: str
    """Name of the race: its folder under race_dir, and its CSV in results_dir."""
    encoders: tuple[str, ...] = ("nature", DEFAULT_VARIANT)
    """Encoders: nature, impala, impoola, or names of mnv4_rl.list_models()."""
    games: tuple[str, ...] = ("pong",)
    """ALE's games, by any common spelling, or Procgen's, such as procgen/starpilot."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights, actions and games."""
    total_timesteps: int = 1_000_000
    """Agent timesteps of each run."""
    n_envs: int = 8
    """Games played side by side in each run; on Procgen 64 by default."""
    threads: int = 1
    """CPU threads of each run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    checkpoint_every: int = 50_000
    """Agent timesteps of a run between two checkpoints, which a run that was killed goes on from."""
    points: int = 200
    """Rows kept of each curve, evenly spaced."""
    race_dir: Path = Path("runs/races")
    """Folder for the run folders."""
    results_dir: Path = RESULTS
    """Folder for the CSV."""
    ppo: PPOHyperparameters = field(default_factory=PPOHyperparameters)
    """PPO's settings, the same for all runs; on Procgen those of its paper by default."""

    @property
    def path(self) -> Path:
        """Folder of this race's runs."""
        return self.race_dir.expanduser().absolute() / self.name

    @property
    def csv(self) -> Path:
        """Where the curves go."""
        return self.results_dir.expanduser() / f"race_{self.name}.csv"


@dataclass(frozen=True)
class Run:
    """One cell of the matrix.

    Attributes:
        folder: Its run folder.
        settings: Flags of its trainer as the run's config.yml holds them, hyperparameters under "ppo".
        trainer: The script that trains it: experiments/atari_ppo.py, procgen_ppo.py, or one with the same flags.
    """

    folder: Path
    settings: dict[str, Any]
    trainer: Path = _TRAINERS["atari"]

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder.with_suffix(".log")

    def command(self) -> list[str]:
        """The command line that trains this run, or goes on with what its folder holds."""
        if (self.folder / "config.yml").is_file():
            return [sys.executable, str(self.trainer), "--resume", str(self.folder)]
        flat = {key: value for key, value in self.settings.items() if key != "ppo"}
        flat |= {f"ppo.{key}": value for key, value in self.settings["ppo"].items()}
        flags = [word for key, value in flat.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return [sys.executable, str(self.trainer), "--run-dir", str(self.folder), *flags]

    def config(self) -> PPOConfig:
        """What :func:`agents.runs.train_run` trains for this run, or goes on with."""
        kind = CONFIGS[family_of(self.settings["game"])]
        if (self.folder / "config.yml").is_file():
            return recorded_config(kind, self.folder)
        return kind(**{**self.settings, "ppo": PPOHyperparameters(**self.settings["ppo"])}, run_dir=self.folder)

    def timesteps(self) -> int:
        """Agent timesteps logged so far; 0 before the first."""
        progress = self.folder / "progress.csv"
        if not progress.is_file():
            return 0
        with progress.open(newline="", encoding="utf-8") as file:
            logged = [row.get("time/total_timesteps") or "" for row in csv.DictReader(file)]
        return max((int(value) for value in logged if value.isdigit()), default=0)  # a row may be half written

    def finished(self) -> bool:
        """Whether all timesteps are logged and their result saved; a run that was stopped saves, but earlier ones."""
        total = self.settings["total_timesteps"]
        if self.timesteps() < total:
            return False
        checkpoint = newest_checkpoint(self.folder)
        saved = exported_timesteps(self.folder), None if checkpoint is None else timesteps_of(checkpoint)
        return any(timesteps is not None and timesteps >= total for timesteps in saved)


def family_defaults(config: Any) -> Any:
    """A config whose ``n_envs`` and ``ppo`` are the defaults, with those of its ``games``' kind instead."""
    if not config.games or family_of(config.games[0]) == "atari":
        return config
    return replace(config, n_envs=64, ppo=PRESETS["procgen"])


def plan(config: RaceConfig, trainer: Path | None = None) -> list[Run]:
    """Every run of the matrix, encoders innermost: those side by side share game, seed and the machine's load."""
    check_config(config)
    trainer = trainer or _TRAINERS[family_of(config.games[0])]
    shared = {
        "total_timesteps": config.total_timesteps,
        "n_envs": config.n_envs,
        "threads": config.threads,
        "device": config.device,
        "checkpoint_every": config.checkpoint_every,
        "evaluation_games": 0,  # the curve is the result; a final evaluation would only take time
        "ppo": asdict(config.ppo),
    }
    runs = []
    for name, seed, encoder in itertools.product(config.games, config.seeds, config.encoders):
        game = resolve_game(name)
        folder = config.path / run_name(game, encoder, seed)
        runs.append(Run(folder, {"game": game, "encoder": encoder, "seed": seed, **shared}, trainer))
    for run in runs:
        check_settings(run)
    check_csv(config)
    return runs


def check_config(config: RaceConfig) -> None:
    """Refuse a matrix that cannot be run.

    Raises:
        ValueError: Naming the flag, what came and what is allowed.
    """
    config.check_engine()
    check_ranges(config, _RANGES)
    for seed in config.seeds:
        check_range("seeds", seed, SEED)
    check_rollout(config.ppo, config.n_envs)
    check_device(config.device)
    games = [resolve_game(game) for game in config.games]
    if len({family_of(game) for game in games}) > 1:
        raise ValueError(f"A race is on Atari or on Procgen, got {', '.join(games)}; start one for each.")
    for encoder in config.encoders:
        policy_kwargs(encoder)
    check_cells(encoders=config.encoders, games=games, seeds=config.seeds)
    check_file_name(config.name)


def check_settings(run: Run) -> None:
    """Refuse to mix runs of other settings into a race.

    Raises:
        ValueError: If the run's folder holds one, with the first difference.
    """
    if not (run.folder / "config.yml").is_file():
        return
    found = read_config(run.folder)
    for key, value in run.settings.items():
        if found.get(key) != value:
            raise ValueError(
                f"{run.folder} holds a run with {key}={found.get(key)!r}, this race has {value!r}; "
                "give the race another --name, or delete the folder."
            )


def check_csv(config: RaceConfig) -> None:
    """Refuse to add runs to a CSV of another length, or to a file that is no race.

    Other settings are not compared: the CSV names each run's command.

    Raises:
        ValueError: With what the file holds.
    """
    if not config.csv.is_file():
        return
    for run in read_races([config.csv]):
        logged = run.clock("timesteps")[-1]
        longest = config.total_timesteps + config.n_envs * config.ppo.n_steps  # whole rollouts
        if not (1 - ROUNDING) * config.total_timesteps <= logged <= (1 + ROUNDING) * longest:
            raise ValueError(
                f"{config.csv} holds {run.name} with {logged:,.0f} timesteps, this race has "
                f"{config.total_timesteps:,}; give the race another --name, or move the file away."
            )
