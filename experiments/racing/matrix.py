"""The runs of races as a full matrix, encoder x game x seed, and what can be counted off it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.racing.estimates import interquartile_mean
from experiments.racing.results import RaceRun
from mnv4_rl.games import reference_scores


@dataclass(frozen=True)
class Races:
    """Runs as a full matrix.

    Attributes:
        encoders: In the order of the files, the reference first.
        games: In the order of the files.
        seeds: Ascending.
        runs: Every (encoder, game, seed).
    """

    encoders: tuple[str, ...]
    games: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: dict[tuple[str, str, int], RaceRun]

    def of(self, encoder: str, game: str) -> list[RaceRun]:
        """An encoder's runs on a game, a seed each."""
        return [self.runs[encoder, game, seed] for seed in self.seeds]

    def all_of(self, encoder: str) -> list[RaceRun]:
        """An encoder's runs on all games with all seeds."""
        return [run for run in self.runs.values() if run.encoder == encoder]

    def matrix(self, encoder: str, value: Callable[[RaceRun], float | np.ndarray]) -> np.ndarray:
        """A value of each run of an encoder, (n_seeds, n_games) or, for values (n_points,), with these in front."""
        rows = [[value(self.runs[encoder, game, seed]) for game in self.games] for seed in self.seeds]
        stacked = np.array(rows, dtype=np.float64)  # (n_seeds, n_games, ...)
        return stacked if stacked.ndim == 2 else np.moveaxis(stacked, -1, 0)


def full_matrix(runs: Sequence[RaceRun], reference: str) -> Races:
    """The runs, if none is missing and all are of one length.

    Raises:
        ValueError: Naming the missing runs, those that end elsewhere, or a reference that did not run.
    """
    found = {(run.encoder, run.game, run.seed): run for run in runs}
    encoders = tuple(dict.fromkeys(run.encoder for run in runs))
    games = tuple(dict.fromkeys(run.game for run in runs))
    if reference not in encoders:
        raise ValueError(f"The reference {reference!r} is not in the races; they have {', '.join(encoders)}.")
    encoders = tuple(sorted(encoders, key=lambda encoder: encoder != reference))
    seeds = tuple(sorted({run.seed for run in runs}))
    wanted = [(encoder, game, seed) for encoder in encoders for game in games for seed in seeds]
    missing = [f"{e} on {g} with seed {s}" for e, g, s in wanted if (e, g, s) not in found]
    if missing:
        raise ValueError(f"{len(missing)} of {len(wanted)} runs are missing: {'; '.join(missing)}. Run them first.")
    check_lengths(runs)
    return Races(encoders, games, seeds, found)


def check_lengths(runs: Sequence[RaceRun]) -> None:
    """Refuse to compare runs that were trained for different numbers of timesteps.

    Raises:
        ValueError: Naming the shortest and the longest.
    """
    by_length = sorted(runs, key=lambda run: run.clock("timesteps")[-1])
    (short, end), (long, far_end) = ((run, run.clock("timesteps")[-1]) for run in (by_length[0], by_length[-1]))
    if end != far_end:
        raise ValueError(
            f"Runs must be equally long: {short.encoder} on {short.game} has {end:,.0f} timesteps, "
            f"{long.encoder} on {long.game} has {far_end:,.0f}; --timesteps {end:.0f} reports all as they stood there."
        )


def normalised(game: str, scores: np.ndarray) -> np.ndarray:
    """Raw scores of a game on the field's scale for it, the same shape.

    Raises:
        ValueError: For a game without reference scores.
    """
    reference = reference_scores(game)
    if reference is None:
        raise ValueError(f"There are no reference scores for {game}; report the games that have them.")
    low, high = reference
    return (np.asarray(scores, dtype=np.float64) - low) / (high - low)


def common_grid(runs: Sequence[RaceRun], n_points: int) -> np.ndarray:
    """(n_points,) timesteps that lie inside every one of the runs, so that no curve is extrapolated.

    Raises:
        ValueError: If one run ends before another has its first score.
    """
    start = max(run.clock("timesteps")[0] for run in runs)
    end = min(run.clock("timesteps")[-1] for run in runs)
    if end < start:
        raise ValueError(f"One run ends at {end:,.0f} timesteps, before another has its first score at {start:,.0f}.")
    return np.linspace(start, end, n_points)


def mean_clock(runs: Sequence[RaceRun], clock: str, timesteps: np.ndarray) -> np.ndarray:
    """What a clock shows at given timesteps, (n_points,), mean over the runs."""
    return np.mean([np.interp(timesteps, run.clock("timesteps"), run.clock(clock)) for run in runs], axis=0)


def scores_at(run: RaceRun, timesteps: np.ndarray) -> np.ndarray:
    """A run's raw scores at given timesteps, (n_points,)."""
    return np.interp(timesteps, run.clock("timesteps"), run.scores)


def final_scores(races: Races, encoder: str) -> np.ndarray:
    """(n_seeds, n_games) raw scores at the end of the runs."""
    return races.matrix(encoder, lambda run: float(run.scores[-1]))


def final_normalised(races: Races, encoder: str) -> np.ndarray:
    """(n_seeds, n_games) normalised scores at the end of the runs."""
    return races.matrix(encoder, lambda run: float(normalised(run.game, run.scores[-1])))


def in_whole_runs(races: Races, clock: str, reference: str) -> Races:
    """The same runs with a clock in whole runs of the reference: 1 is where its run of the same game and seed ends.

    Seeds may then have run on machines of different speed, if those of a seed shared one.
    """
    runs = {
        (encoder, game, seed): run.rescaled(clock, 1 / races.runs[reference, game, seed].clock(clock)[-1])
        for (encoder, game, seed), run in races.runs.items()
    }
    return replace(races, runs=runs)


def cost_to_reach(races: Races, encoder: str, game: str, clock: str, reference: str) -> float | None:
    """What an encoder needs to reach the reference's last score, both means over seeds.

    Args:
        races: The runs on the clock of :func:`in_whole_runs`.
        encoder: Whose cost.
        game: Its name.
        clock: A key of :data:`experiments.racing.results.CLOCKS`.
        reference: Whose score.

    Returns:
        A share of the reference's whole run: under 1 if it is cheaper, None if it does not get there. The reference
        itself has less than 1 where its score had stopped rising before the end.
    """
    shares, scores = mean_curve(races.of(encoder, game), clock)
    return first_reached(shares, scores, last_score(races, reference, game))


def cost_to_reach_iqm(races: Races, encoder: str, clock: str, reference: str) -> float | None:
    """The same for the interquartile mean of the normalised scores of all games and seeds."""
    shares, curves = normalised_curves(races, encoder, clock)
    _, references = normalised_curves(races, reference, clock)
    return first_reached(shares, interquartile_mean(curves), interquartile_mean(references)[-1])


def first_reached(clock: np.ndarray, scores: np.ndarray, goal: float) -> float | None:
    """The clock where a curve, (n_points,) both, first comes up to a score and keeps it for a twentieth of the points.

    A mean of the first few games, or one lucky game, is not the score of an agent. What is reached later than that
    before the end counts if it is kept up to the end. None if it never does so.
    """
    window = max(1, len(scores) // 20)
    held = [scores[start : start + window].min() >= goal for start in range(len(scores))]
    return float(clock[held.index(True)]) if any(held) else None


def last_score(races: Races, encoder: str, game: str) -> float:
    """An encoder's raw score at the end, mean over seeds."""
    return float(mean_curve(races.of(encoder, game), "timesteps")[1][-1])  # to the last bit where its curve ends


def relative_speed(races: Races, encoder: str, clock: str) -> float:
    """Timesteps a second over the reference's, mean over game and seed; races as :func:`in_whole_runs` gives them."""
    return float((1 / races.matrix(encoder, lambda run: float(run.clock(clock)[-1]))).mean())


def mean_curve(runs: Sequence[RaceRun], clock: str, n_points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """A clock and the mean raw score of the runs at the same timesteps, (n_points,) both."""
    grid = common_grid(runs, n_points)
    return mean_clock(runs, clock, grid), np.mean([scores_at(run, grid) for run in runs], axis=0)


def normalised_curves(races: Races, encoder: str, clock: str, n_points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """A clock and the normalised scores of all runs at the same timesteps.

    Returns:
        (n_points,), the mean over the runs, and (n_points, n_seeds, n_games).
    """
    runs = races.all_of(encoder)
    grid = common_grid(runs, n_points)
    curves = races.matrix(encoder, lambda run: normalised(run.game, scores_at(run, grid)))
    return mean_clock(runs, clock, grid), curves
