"""The flags of the search, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agents.encoders import policy_kwargs
from agents.ppo import PPOHyperparameters, check_rollout
from agents.runs.config import N_ENVS, SEED, TIMESTEPS, check_device
from experiments.cli.results import check_file_name
from experiments.engines.config import EngineConfig
from experiments.racing.protocol import check_tuning
from experiments.study.cloning import published_agent
from mnv4_rl.checks import Interval, check_positive, check_range, check_ranges
from mnv4_rl.games import family_of, reference_scores, resolve_game
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.performance import THREADS

IMAGES = {"atari": (4, 84, 84), "procgen": (3, 64, 64)}
_RANGES = {
    "budget": Interval(0, includes_low=False),
    "n_candidates": Interval(0),
    "total_timesteps": TIMESTEPS,
    "updates": Interval(1, 10**6),
    "n_envs": N_ENVS,
    "seed": SEED,
    "threads": THREADS,
    "min_seconds": Interval(0),
}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(EngineConfig):
    """Search for the encoder, or the settings, that learn most within a cost budget, on games of your choice."""

    name: str = "encoders"
    """Name of the study: its folder under search_dir."""
    what: Literal["encoder", "settings"] = "encoder"
    """What to search: an encoder for PPO's settings as given, or those settings for one encoder."""
    by: Literal["reward", "copies"] = "reward"
    """What scores: the reward of PPO's runs, or how much of each game's published agent an encoder copies, which takes
    a minute on the CPU where a run takes an hour (docs/search.md)."""
    encoder: str = DEFAULT_VARIANT
    """Whose settings are searched."""
    games: tuple[str, ...] = ("procgen/starpilot",)
    """Games to choose by, all of Atari or all of Procgen; those kept for tests are refused."""
    budget: float = 1.0
    """Most a candidate may cost: an encoder's forward and backward pass, NatureCNN's being 1; settings' passes over
    each timestep, those of the settings as given being 1."""
    n_candidates: int = 50
    """Candidates in the study, those of earlier calls and other processes included; 0 only shows it."""
    total_timesteps: int = 2_000_000
    """Agent timesteps of a candidate that is never stopped, on each game."""
    updates: int = 150
    """With --by copies: steps of Adam of a candidate that is never stopped, on each game."""
    rungs: int = 3
    """Times at which candidates are compared, the end included; 2 is enough for --by copies."""
    reduction: int = 3
    """One in so many goes on from a rung to the next, which is so many times as far."""
    seed: int = 0
    """Seed of every run."""
    n_envs: int = 8
    """Games played side by side in each run; on Procgen 64 by default. Of no meaning where settings are searched."""
    threads: int = 1
    """CPU threads of each run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch: int = 256
    """Images in the pass that is timed."""
    rounds: int = 5
    """Rounds of timing, of which the median counts."""
    min_seconds: float = 0.2
    """Seconds of passes in one round."""
    costs: bool = False
    """Search nothing: time rl_s with each option of the space in turn, and write a table of it."""
    search_dir: Path = Path("runs/search")
    """Folder for the study and its runs."""
    storage: str | None = None
    """Database of the study, such as postgresql://me@host/studies; a SQLite file in its folder by default."""
    ppo: PPOHyperparameters = field(default_factory=PPOHyperparameters)
    """PPO's settings; on Procgen those of its paper by default."""

    @property
    def path(self) -> Path:
        """Folder of the study."""
        return self.search_dir.expanduser().absolute() / self.name

    @property
    def marks(self) -> tuple[int, ...]:
        """Agent timesteps of the rungs, or steps of Adam, rising."""
        whole = self.updates if self.by == "copies" else self.total_timesteps
        return tuple(whole // self.reduction**rung for rung in reversed(range(self.rungs)))

    def check(self) -> None:
        """Refuse flags that cannot work, and games and seeds that are kept for tests.

        Raises:
            ValueError: Naming the flag, what came and what is allowed.
        """
        check_file_name(self.name)
        self.check_engine()
        if self.jobs and self.engine == "processes":
            raise ValueError(f"--jobs {self.jobs} needs --engine ray; without it, start this command several times.")
        check_ranges(self, _RANGES)
        check_positive(batch=self.batch, rounds=self.rounds, rungs=self.rungs)
        check_range("reduction", self.reduction, Interval(2))
        check_rollout(self.ppo, self.n_envs)
        check_device(self.device)
        policy_kwargs(self.encoder)
        games = [resolve_game(game) for game in self.games]
        if not games or len({family_of(game) for game in games}) > 1 or len(set(games)) != len(games):
            raise ValueError(f"games must be of one kind, none twice, got {', '.join(games) or 'none'}.")
        if unscaled := [game for game in games if reference_scores(game) is None]:
            raise ValueError(f"There are no reference scores for {', '.join(unscaled)}; leave it out.")
        check_tuning(games, [self.seed])
        if self.by == "copies":
            self._check_copies(games)
        if self.marks[0] < 1:
            whole = "updates" if self.by == "copies" else "total_timesteps"
            raise ValueError(f"{whole}={getattr(self, whole)} is too little for {self.rungs} rungs.")

    def _check_copies(self, games: list[str]) -> None:
        if self.what == "settings":
            raise ValueError("--by copies says nothing of PPO's settings; search them --by reward.")
        for game in games:
            published_agent(game)
