"""What a candidate scores: by the reward of its runs, or by how much of a trained agent it copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from agents.ppo import PPOHyperparameters
from agents.runs import train_run
from agents.runs.config import PPOConfig
from agents.runs.logs import STEP, read_rows
from agents.runs.resuming import recorded_config
from experiments.racing.matrix import normalised
from experiments.racing.planning import CONFIGS
from experiments.searching.config import SearchConfig
from experiments.study.cloning import Lesson, as_rewards_teach, clone_to, published_agent, record
from mnv4_rl.games import family_of, reference_scores, resolve_game

SCORE = "rollout/ep_rew_mean"  # its column in progress.csv


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point of a space.

    Attributes:
        name: Its own among all points.
        cost: As ``SearchConfig.budget`` counts it.
        encoder: The encoder that trains.
        n_envs: Games played side by side.
        ppo: PPO's settings.
    """

    name: str
    cost: float
    encoder: str
    n_envs: int
    ppo: PPOHyperparameters


@dataclass(frozen=True)
class Scores:
    """What a candidate has at a rung.

    Attributes:
        by_game: Game -> its score there: raw reward, or the share of an agent that was copied.
        mean: Over the games, reward on the field's scale.
    """

    by_game: dict[str, float]
    mean: float


def by_reward(candidate: Candidate, config: SearchConfig) -> Iterator[Scores]:
    """Scores at each rung of PPO's runs, one a game."""
    for timesteps in config.marks:
        scores = {game: train_to(timesteps, candidate, game, config) for game in map(resolve_game, config.games)}
        yield Scores(scores, mean_normalised(scores))


def by_copies(candidate: Candidate, config: SearchConfig) -> Iterator[Scores]:
    """Shares of the games' published agents that were copied at each rung, of policy and value alike."""
    games = [resolve_game(game) for game in config.games]
    clones = [clone_to(candidate.encoder, _lesson(game, config.seed), config.seed, config.marks) for game in games]
    for learnt in zip(*clones, strict=True):
        scores = {game: (one.policy + one.value) / 2 for game, one in zip(games, learnt, strict=True)}
        yield Scores(scores, float(np.mean(list(scores.values()))))


SCORED: dict[str, Callable[[Candidate, SearchConfig], Iterator[Scores]]] = {"reward": by_reward, "copies": by_copies}


@cache
def _lesson(game: str, seed: int) -> Lesson:
    """An agent's play with labels as noisy as reward, the same for all candidates."""
    print(f"the agent of {game} plays for a minute or two, to be copied ...", flush=True)
    return as_rewards_teach(record(game, published_agent(game), seed), seed)


def train_to(timesteps: int, candidate: Candidate, game: str, config: SearchConfig) -> float:
    """A candidate's mean raw score of the last 100 games at a timestep, from where its run stands.

    A candidate that is tried again may have passed it: its log says what it had there.

    Raises:
        KeyboardInterrupt: If the run was asked to stop; it is saved.
    """
    folder = config.path / f"{game.replace('/', '_')}__{candidate.name}"
    passed = [row for row in read_rows(folder / "progress.csv") if int(row.get(STEP) or 0) >= timesteps]
    if passed:
        score = float(passed[0].get(SCORE) or math.nan)
    else:
        outcome = train_run(_run_to(timesteps, candidate, game, config, folder), quiet=True)
        if not outcome.finished:
            raise KeyboardInterrupt
        score = math.nan if outcome.score is None else outcome.score
    low, _ = reference_scores(game)  # type: ignore[misc]  # a search takes no game without
    return low if math.isnan(score) else score  # no game ended: as good as the lowest


def _run_to(timesteps: int, candidate: Candidate, game: str, config: SearchConfig, folder: Path) -> PPOConfig:
    """A candidate's run, a new one or the one in its folder, which never becomes shorter."""
    kind = CONFIGS[family_of(game)]
    if (folder / "config.yml").is_file():
        run = recorded_config(kind, folder)
        return replace(run, total_timesteps=max(run.total_timesteps, timesteps))
    return kind(
        game=game,
        encoder=candidate.encoder,
        seed=config.seed,
        n_envs=candidate.n_envs,
        threads=config.threads,
        device=config.device,
        total_timesteps=timesteps,
        evaluation_games=0,
        keep_checkpoints=1,
        run_dir=folder,
        ppo=candidate.ppo,
    )


def mean_normalised(scores: Mapping[str, float]) -> float:
    """Mean over games of raw scores on the field's scale."""
    return float(np.mean([normalised(game, np.array(score)) for game, score in scores.items()]))
