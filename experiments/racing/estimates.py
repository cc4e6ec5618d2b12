"""Statistics of score matrices: interquartile mean, probability of improvement, stratified-bootstrap intervals.

A score matrix has one row a seed and one column a game, (n_seeds, n_games). Point statistics also take leading axes,
(..., n_seeds, n_games) -> (...), so that a thousand resamples or a whole curve cost one call.

Source:
    Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice, arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from mnv4_rl.checks import check_positive

Statistic = Callable[..., np.ndarray]


class Estimate(NamedTuple):
    """A statistic of the scores, and the bounds of its confidence interval; each the shape of the statistic."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


def check_scores(scores: np.ndarray) -> np.ndarray:
    """The scores as float64, if there is one for every seed and game.

    Args:
        scores: (..., n_seeds, n_games).

    Raises:
        ValueError: If an axis is missing or empty, or a score is NaN or infinite: a mean over what is left would
            compare encoders on different seeds.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim < 2 or 0 in scores.shape:
        raise ValueError(f"Scores must be (n_seeds, n_games) with at least one of each, got shape {scores.shape}.")
    if not np.isfinite(scores).all():
        missing = [tuple(map(int, where)) for where in np.argwhere(~np.isfinite(scores))[:5]]
        raise ValueError(f"Scores are missing or not finite at (..., seed, game) {missing}; run those seeds first.")
    return scores


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all runs, seeds and games pooled.

    A quarter of the runs, rounded down, is dropped at either end; with fewer than four runs it is the plain mean.

    Args:
        scores: (..., n_seeds, n_games).

    Returns:
        (...) float64.
    """
    pooled = scores.reshape(*scores.shape[:-2], -1)  # (..., n_seeds * n_games)
    return np.asarray(stats.trim_mean(pooled, 0.25, axis=-1))


def iqm_difference(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """How far the interquartile mean is above the baseline's.

    Args:
        scores: (..., n_seeds, n_games).
        baseline: (..., n_baseline_seeds, n_games).

    Returns:
        (...) float64.
    """
    return interquartile_mean(scores) - interquartile_mean(baseline)


def mean_over_runs(scores: np.ndarray) -> np.ndarray:
    """Mean of all runs, seeds and games pooled: (..., n_seeds, n_games) -> (...) float64."""
    return scores.mean(axis=(-2, -1))


def probability_of_improvement(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Probability that a random run beats a random run of the baseline on a random game; ties count half.

    Args:
        scores: (..., n_seeds, n_games).
        baseline: (..., n_baseline_seeds, n_games), the same games in the same order.

    Returns:
        (...) float64 in [0, 1]: the mean over games of P(X > Y) + P(X = Y) / 2.

    Raises:
        ValueError: If the two do not have the same number of games.
    """
    if scores.shape[-1] != baseline.shape[-1]:
        raise ValueError(f"Both need the same games, got {scores.shape[-1]} and {baseline.shape[-1]} of them.")
    x, y = scores[..., :, None, :], baseline[..., None, :, :]
    wins = (x > y) + 0.5 * (x == y)  # (..., n_seeds, n_baseline_seeds, n_games)
    return wins.mean(axis=(-3, -2, -1))


def resample_seeds(scores: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw seeds with replacement, for each game apart: games are the strata and are never resampled.

    Args:
        scores: (..., n_seeds, n_games).
        n_resamples: Matrices to draw.
        rng: Source of every draw.

    Returns:
        (n_resamples, ..., n_seeds, n_games); leading axes, such as the points of a curve, keep their runs together.
    """
    n_seeds, n_games = scores.shape[-2:]
    seeds = rng.integers(n_seeds, size=(n_resamples, n_seeds, n_games))
    drawn = scores[..., seeds, np.arange(n_games)]  # (..., n_resamples, n_seeds, n_games)
    return np.moveaxis(drawn, -3, 0)


def bootstrap(
    statistic: Statistic, *scores: np.ndarray, n_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """A statistic with its stratified percentile-bootstrap interval.

    Args:
        statistic: Takes as many matrices as are given, as :func:`interquartile_mean` and
            :func:`probability_of_improvement` do.
        *scores: (..., n_seeds, n_games) each; every matrix is resampled by itself.
        n_resamples: Bootstrap matrices.
        confidence: Share of the resampled statistics inside the interval, in (0, 1).
        seed: Seed of the resampling: the same seed gives the same interval.

    Returns:
        Point and interval, each (...).

    Raises:
        ValueError: For missing scores, no resamples or a confidence outside (0, 1).
    """
    check_positive(n_resamples=n_resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}.")
    matrices = [check_scores(matrix) for matrix in scores]
    rng = np.random.default_rng(seed)
    resampled = statistic(*(resample_seeds(matrix, n_resamples, rng) for matrix in matrices))  # (n_resamples, ...)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Estimate(statistic(*matrices), low, high)
