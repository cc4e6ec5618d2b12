"""Statistics on matrices small enough to do by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments.racing.estimates import (
    bootstrap,
    check_scores,
    interquartile_mean,
    iqm_difference,
    probability_of_improvement,
    resample_seeds,
)


def test_interquartile_mean_drops_a_quarter_at_either_end():
    scores = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 1000.0]])  # 8 runs: the middle four are 3, 4, 5, 6
    assert interquartile_mean(scores) == 4.5


def test_interquartile_mean_of_fewer_than_four_runs_is_the_mean():
    assert interquartile_mean(np.array([[1.0], [2.0], [9.0]])) == 4.0


def test_interquartile_mean_takes_every_leading_axis_at_once():
    scores = np.arange(2 * 3 * 4 * 2, dtype=float).reshape(2, 3, 4, 2)
    means = interquartile_mean(scores)
    assert means.shape == (2, 3)
    assert means[1, 2] == interquartile_mean(scores[1, 2])


def test_the_interval_of_a_difference_is_that_of_all_pairs_of_resamples_by_hand():
    """Two seeds each: means of 4, 5, 5, 6 and of 0, 1, 1, 2, so differences from 2 to 6, each end 1 time in 16."""
    scores, baseline = np.array([[4.0], [6.0]]), np.array([[0.0], [2.0]])
    difference = bootstrap(iqm_difference, scores, baseline, n_resamples=4000, confidence=0.95)
    assert (difference.point, difference.low, difference.high) == (4, 2, 6)


def test_probability_of_improvement_counts_pairs_game_by_game():
    scores = np.array([[1.0, 5.0], [3.0, 5.0]])
    baseline = np.array([[2.0, 5.0], [0.0, 9.0], [3.0, 1.0]])
    # Game 1, pairs (1 or 3) against (2, 0, 3): 1 > 0; 3 > 2, 3 > 0, and a tie. Game 2: ties 1 of 3, wins 1 of 3.
    expected = ((1 + 2 + 0.5) / 6 + (0.5 + 0 + 1) / 3) / 2
    assert probability_of_improvement(scores, baseline) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(x=arrays(float, (3, 2), elements=st.integers(0, 5)), y=arrays(float, (4, 2), elements=st.integers(0, 5)))
def test_either_is_better_with_probabilities_that_add_to_one(x, y):
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)
    assert probability_of_improvement(x, x) == pytest.approx(0.5)


def test_resampling_keeps_each_score_in_its_game():
    scores = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    drawn = resample_seeds(scores, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 3, 2)
    assert set(drawn[..., 0].flat) == {1, 2, 3} and set(drawn[..., 1].flat) == {10, 20, 30}
    # Stratified: the seeds of one game are drawn apart from those of the other.
    assert (drawn[..., 0] * 10 != drawn[..., 1]).any()


def test_resampling_a_curve_keeps_each_run_together():
    curve = np.stack([np.array([[1.0], [2.0]]), np.array([[10.0], [20.0]])])  # (n_points, n_seeds, n_games)
    drawn = resample_seeds(curve, 50, np.random.default_rng(0))
    assert drawn.shape == (50, 2, 2, 1)
    assert (drawn[:, 1] == 10 * drawn[:, 0]).all()


def test_interval_is_that_of_all_resamples_by_hand():
    """Two seeds of one game can only be drawn in four ways: the mean is 0, 1, 1 or 2."""
    scores = np.array([[0.0], [2.0]])
    means = sorted(np.mean(draw) for draw in itertools.product([0, 2], repeat=2))
    assert means == [0, 1, 1, 2]
    estimate = bootstrap(interquartile_mean, scores, n_resamples=4000, confidence=0.95)
    assert (estimate.point, estimate.low, estimate.high) == (1, 0, 2)
    # A quarter of the mass lies at either end, so the middle 40 % are all 1.
    narrow = bootstrap(interquartile_mean, scores, n_resamples=4000, confidence=0.4)
    assert (narrow.low, narrow.high) == (1, 1)


@settings(max_examples=25, deadline=None)
@given(scores=arrays(float, (5, 3), elements=st.floats(-100, 100)), seed=st.integers(0, 100))
def test_interval_contains_the_point_and_stays_within_the_scores(scores, seed):
    estimate = bootstrap(interquartile_mean, scores, n_resamples=300, seed=seed)
    slack = 1e-9
    assert estimate.low - slack <= estimate.point <= estimate.high + slack
    assert scores.min() - slack <= estimate.low and estimate.high <= scores.max() + slack


def test_the_seed_controls_the_resampling():
    scores = np.random.default_rng(1).normal(size=(5, 4))
    first, again, other = (bootstrap(interquartile_mean, scores, n_resamples=200, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.point == other.point and (first.low, first.high) != (other.low, other.high)


def test_global_random_state_does_not_matter():
    scores = np.random.default_rng(1).normal(size=(5, 4))
    np.random.seed(0)
    first = bootstrap(interquartile_mean, scores, n_resamples=50)
    assert first == bootstrap(interquartile_mean, scores, n_resamples=50)


def test_both_sides_of_a_comparison_are_resampled():
    x, y = np.array([[1.0], [3.0]]), np.array([[2.0]])
    estimate = bootstrap(probability_of_improvement, x, y, n_resamples=2000)
    assert (estimate.point, estimate.low, estimate.high) == (0.5, 0, 1)
    assert bootstrap(probability_of_improvement, y, x, n_resamples=2000).low == 0


def test_interval_of_identical_seeds_has_no_width():
    estimate = bootstrap(interquartile_mean, np.full((3, 2), 7.0), n_resamples=10)
    assert estimate == (7, 7, 7)


def test_missing_scores_are_an_error():
    with pytest.raises(ValueError, match=r"missing or not finite at .* \[\(1, 0\)\]; run those seeds"):
        bootstrap(interquartile_mean, np.array([[1.0, 2.0], [np.nan, 3.0]]))


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((0, 2)), np.zeros((2, 0))], ids=str)
def test_scores_that_are_no_matrix_are_refused(scores):
    with pytest.raises(ValueError, match="at least one of each, got shape"):
        check_scores(scores)


def test_other_mistakes_say_what_came():
    scores = np.ones((2, 2))
    with pytest.raises(ValueError, match="got 2 and 3"):
        probability_of_improvement(scores, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), got 95"):
        bootstrap(interquartile_mean, scores, confidence=95)
    with pytest.raises(ValueError, match="n_resamples must be a whole number of at least 1, got 0"):
        bootstrap(interquartile_mean, scores, n_resamples=0)


@pytest.mark.parametrize(
    ("n_seeds", "n_games", "of_one", "of_difference"),
    [(2, 5, (0.60, 0.80), (0.74, 0.88)), (3, 3, (0.78, 0.90), (0.80, 0.93)), (5, 5, (0.86, 0.97), (0.86, 0.97))],
)
def test_intervals_of_few_seeds_hold_the_truth_less_often_than_they_say(n_seeds, n_games, of_one, of_difference):
    """What docs/protocol.md says of them: normal scores around 0, how often a 95 % interval holds it."""
    rng, n_trials = np.random.default_rng(0), 400
    drawn = rng.standard_normal((n_trials, 2, n_seeds, n_games))
    alone = [bootstrap(interquartile_mean, one, n_resamples=400) for one, _ in drawn]
    pairs = [bootstrap(iqm_difference, *both, n_resamples=400) for both in drawn]
    for estimates, (least, most) in ((alone, of_one), (pairs, of_difference)):
        assert least < np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]) < most
