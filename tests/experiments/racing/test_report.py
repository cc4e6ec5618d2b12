"""Reports of races written by hand, whose every number can be counted."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest

from experiments import report
from experiments.cli.command import parse
from experiments.cli.results import RESULTS
from experiments.racing import figures
from experiments.racing import table as racing_table
from experiments.racing.curves import Curve
from experiments.racing.estimates import bootstrap, interquartile_mean
from experiments.racing.matrix import (
    common_grid,
    cost_to_reach,
    cost_to_reach_iqm,
    final_normalised,
    first_reached,
    full_matrix,
    in_whole_runs,
    mean_clock,
    normalised,
    relative_speed,
)
from experiments.racing.reporting import ReportConfig, estimate, game_curve, iqm_curve, read_matrix
from experiments.racing.results import RaceRun, write_race
from experiments.racing.table import command_line, seeds_note, table

# Pong's reference scores are -20.7 and 14.6, Breakout's 1.7 and 30.5.
HUMAN = {"pong": 14.6, "breakout": 30.5, "qbert": 13455.0}
RANDOM = {"pong": -20.7, "breakout": 1.7, "qbert": 163.9}


def run_of(encoder, seed, final, game="pong", cpu_a_step=0.01, n_points=11, total=1000):
    """A straight line from random play to ``final``, on the human-normalised scale."""
    timesteps = np.linspace(0, total, n_points)
    scores = RANDOM[game] + np.linspace(0, final, n_points) * (HUMAN[game] - RANDOM[game])
    columns = (timesteps, 0.02 * timesteps, cpu_a_step * timesteps, scores)
    return RaceRun(game, encoder, seed, np.stack(columns, axis=1))


def two_encoders():
    """rl_s ends twice as high as nature, at half the CPU time a timestep; seeds differ a little."""
    return [
        run
        for game in ("pong", "breakout")
        for seed in (0, 1, 2)
        for run in (
            run_of("nature", seed, 0.4 + seed / 100, game),
            run_of("rl_s", seed, 0.8 + seed / 100, game, cpu_a_step=0.005),
        )
    ]


@pytest.fixture
def config(tmp_path):
    write_race(tmp_path / "race_r.csv", two_encoders(), ["commit: abc"])
    return ReportConfig(races=(tmp_path / "race_r.csv",), name="r", n_points=5, n_resamples=200, results_dir=tmp_path)


def flags(config):
    places = ["--races", *map(str, config.races), "--name", "r", "--results-dir", str(config.results_dir / "out")]
    return [*places, "--n-points", "5", "--n-resamples", "200"]


def test_command_writes_figures_and_the_table_counted_by_hand(config, capsys):
    report.main(flags(config))
    out, printed = config.results_dir / "out", capsys.readouterr().out
    for name in ("r_games.png", "r_scores.png", "r_iqm.png", "r_improvement.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG" and name in printed
    header, _, nature, rl_s = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (out / "r.md").read_text().splitlines()
        if line.startswith("|")
    ]
    nature, rl_s = dict(zip(header, nature, strict=True)), dict(zip(header, rl_s, strict=True))
    # 0.80 to 0.82 of the way from -20.7 to 14.6.
    assert rl_s["pong"] == "7.9 (7.5 to 8.2)"
    # Six runs, one dropped at either end: the mean of 0.80, 0.81, 0.81, 0.82 and of 0.40, 0.41, 0.41, 0.42.
    assert rl_s["IQM"].startswith("0.81 [0.8") and nature["IQM"].startswith("0.41 [0.4")
    assert rl_s["IQM above nature"].startswith("0.40 [0.") and nature["IQM above nature"] == ""
    assert rl_s["P(beats nature)"] == "1.00 [1.00, 1.00]" and nature["P(beats nature)"] == ""
    assert tuple(row["timesteps per CPU time"] for row in (nature, rl_s)) == ("1.00x", "2.00x")
    # Half way up at half the price.
    assert rl_s["pong: CPU time needed"] == rl_s["IQM: CPU time needed"] == "0.25x"
    assert nature["pong: CPU time needed"] == nature["IQM: CPU time needed"] == "1.00x"


def test_a_reference_that_stopped_rising_did_not_need_its_whole_run(config):
    """Both by the same rule: who is compared with a flat curve is no sooner than it by being under 1."""
    points = np.array([[t, t, t, min(t, 10)] for t in range(41)], dtype=float)
    runs = [RaceRun("pong", encoder, 0, points) for encoder in ("nature", "rl_s")]
    nature, rl_s = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table(full_matrix(runs, "nature"), config).splitlines()[2:4]
    )
    assert nature[-1] == rl_s[-1] == "0.25x"


def test_few_seeds_are_told_to_make_narrow_intervals(config):
    assert "which so few seeds make too narrow" in table(full_matrix(two_encoders(), "nature"), config)
    assert "too narrow" not in seeds_note(1, 2000) + seeds_note(5, 2000)


def test_the_same_races_give_the_same_table(config):
    races = full_matrix(two_encoders(), "nature")
    assert table(races, config) == table(races, config)


def test_iqm_curve_is_the_line_the_runs_are_on(config):
    races = full_matrix(two_encoders(), "nature")
    timesteps, iqm = iqm_curve(races, "rl_s", config)
    grid = mean_clock(races.all_of("rl_s"), "cpu_seconds", timesteps)
    assert grid.tolist() == [0, 1.25, 2.5, 3.75, 5]
    assert iqm.point == pytest.approx(np.linspace(0, 0.81, 5))
    assert (iqm.low <= iqm.point + 1e-12).all() and (iqm.point <= iqm.high + 1e-12).all()


def test_a_games_curve_is_the_mean_over_its_seeds_inside_its_interval(config):
    races = full_matrix(two_encoders(), "nature")
    seconds, mean = game_curve(races, "rl_s", "pong", "wall_seconds", config)
    assert seconds.tolist() == [0, 5, 10, 15, 20]
    assert normalised("pong", mean.point) == pytest.approx(np.linspace(0, 0.81, 5))
    assert normalised("pong", mean.low[-1]) == pytest.approx(0.80, abs=0.004)
    assert normalised("pong", mean.high[-1]) == pytest.approx(0.82, abs=0.004)


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        (None, "No test: qbert with seeds 100 ran before"),
        ("abc123", "qbert with seeds 100, encoders and settings frozen"),
    ],
)
def test_a_table_of_test_games_says_when_the_encoders_were_frozen(frozen, said, config, monkeypatch):
    monkeypatch.setattr(racing_table, "FROZEN_COMMIT", frozen)
    runs = [run_of(encoder, 100, 0.5, game) for encoder in ("nature", "rl_s") for game in ("pong", "qbert")]
    text = table(full_matrix(runs, "nature"), config)
    assert said in text and (frozen or "No test") in text
    assert "frozen" not in table(full_matrix([run for run in runs if run.game == "pong"], "nature"), config)


def test_published_scores_stand_beside_runs_of_their_length(config):
    long = [run_of(encoder, 0, 0.5, game, total=1_000_448) for encoder in ("nature", "rl_s") for game in HUMAN]
    text = table(full_matrix(long, "nature"), config)
    assert "| NatureCNN as published by rl-trained-agents | -12.0 | 25.7 |" in text
    assert "One seed: there are no intervals" in text
    short = table(full_matrix(two_encoders(), "nature"), config)
    assert "as published by" not in short and "One seed" not in short


def test_one_seed_is_told_without_ranges_and_intervals(config):
    races = full_matrix([run for run in two_encoders() if run.seed == 0], "nature")
    row = next(line for line in table(races, config).splitlines() if line.startswith("| rl_s"))
    assert row.startswith("| rl_s | 7.5 | 24.7 | 0.80 | 0.40 | 1.00 | 2.00x |") and "[" not in row
    assert "One seed" in table(races, config)


def test_matrix_has_a_row_a_seed_and_a_column_a_game():
    races = full_matrix(two_encoders(), "nature")
    scores = final_normalised(races, "nature")
    assert scores == pytest.approx(np.array([[0.40, 0.40], [0.41, 0.41], [0.42, 0.42]]))
    assert races.encoders == ("nature", "rl_s") and races.games == ("pong", "breakout") and races.seeds == (0, 1, 2)


def test_part_of_the_races_is_reported_when_the_rest_has_not_run(config):
    runs = [run for run in two_encoders() if run.game == "pong" or run.seed == 0]
    write_race(config.races[0], [*runs, run_of("rl_m", 0, 0.9)], [])
    with pytest.raises(ValueError, match="runs are missing"):
        read_matrix(config)
    pong = read_matrix(replace(config, games=("pong",), encoders=("nature", "rl_s")))
    assert (pong.encoders, pong.games, pong.seeds) == (("nature", "rl_s"), ("pong",), (0, 1, 2))
    assert read_matrix(replace(config, games=("Pong-v5",), encoders=("nature",))).games == ("pong",)
    first = read_matrix(replace(config, seeds=(0,), encoders=("nature", "rl_s")))
    assert (first.games, first.seeds) == (("pong", "breakout"), (0,))


def test_runs_of_any_length_are_reported_as_they_stood_at_a_timestep(config):
    runs = [run_of("nature", 0, 0.4, total=500), run_of("rl_s", 0, 0.8)]
    write_race(config.races[0], runs, [])
    races = read_matrix(replace(config, timesteps=250))
    assert [run.clock("timesteps")[-1] for run in races.runs.values()] == [250, 250]
    assert [final_normalised(races, encoder).item() for encoder in races.encoders] == pytest.approx([0.2, 0.2])
    assert races.runs["rl_s", "pong", 0].clock("cpu_seconds").tolist() == [0, 1, 2, 2.5]  # a point is put in
    with pytest.raises(
        ValueError, match=r"nature on pong with seed 0 has .* to 500, got --timesteps 501; take one between"
    ):
        read_matrix(replace(config, timesteps=501))
    assert "--timesteps 250" in table(races, replace(config, timesteps=250))


def test_a_choice_that_did_not_run_lists_those_that_did(config):
    with pytest.raises(ValueError, match=r"--games has enduro, which did not run .* allowed: pong, breakout\."):
        read_matrix(replace(config, games=("pong", "enduro")))
    with pytest.raises(ValueError, match=r"--seeds has 7, .* allowed: 0, 1, 2\."):
        read_matrix(replace(config, seeds=(7,)))


def test_a_report_says_the_command_that_makes_it(config):
    chosen = replace(config, games=("pong",), seeds=(0, 1))
    flags = shlex.split(command_line(chosen))[2:]
    assert "--games pong --seeds 0 1" in command_line(chosen) and parse(ReportConfig, flags) == chosen


def test_costs_are_counted_on_the_clock_that_is_asked_for(config):
    races = full_matrix(two_encoders(), "nature")
    lines = table(races, replace(config, clock="timesteps")).splitlines()
    header, _, _, rl_s = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4])
    assert dict(zip(header, rl_s, strict=True))["pong: timesteps needed"] in ("0.50x", "0.51x")
    assert not any("CPU" in name for name in header)


def test_the_reference_comes_first():
    assert full_matrix(two_encoders(), "rl_s").encoders == ("rl_s", "nature")


def test_missing_seeds_are_an_error_that_names_them():
    runs = [run for run in two_encoders() if (run.encoder, run.game, run.seed) != ("rl_s", "breakout", 2)]
    with pytest.raises(ValueError, match=r"1 of 12 runs are missing: rl_s on breakout with seed 2\. Run"):
        full_matrix(runs, "nature")


def test_runs_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"nature on pong has 500 .* rl_s on pong has 1,000; --timesteps 500"):
        full_matrix([run_of("nature", 0, 0.4, total=500), run_of("rl_s", 0, 0.8)], "nature")


def test_unknown_reference_lists_the_known():
    with pytest.raises(ValueError, match="'impala' is not in the races; they have nature, rl_s"):
        full_matrix(two_encoders(), "impala")


def test_curves_are_never_extrapolated():
    late = RaceRun("pong", "a", 0, np.array([[5.0, 1, 1, 0], [20, 2, 2, 1]]))
    early = RaceRun("pong", "a", 1, np.array([[0.0, 1, 1, 0], [10, 2, 2, 1]]))
    assert common_grid([late, early], 3).tolist() == [5, 7.5, 10]
    after = RaceRun("pong", "a", 2, np.array([[11.0, 1, 1, 0], [12, 2, 2, 1]]))
    with pytest.raises(ValueError, match="ends at 10 timesteps, before another has its first score at 11"):
        common_grid([early, after], 3)


def test_cost_to_reach_is_none_for_an_encoder_that_never_gets_there():
    of_rl_s, of_nature = (
        in_whole_runs(full_matrix(two_encoders(), ref), "cpu_seconds", ref) for ref in ("rl_s", "nature")
    )
    assert cost_to_reach(of_rl_s, "nature", "pong", "cpu_seconds", "rl_s") is None
    assert cost_to_reach_iqm(of_rl_s, "nature", "cpu_seconds", "rl_s") is None
    assert cost_to_reach(of_nature, "rl_s", "pong", "cpu_seconds", "nature") == pytest.approx(0.25, abs=0.01)


def slowed(run, factor):
    """The same run on a slower machine, or beside other work."""
    return run.rescaled("cpu_seconds", factor)


def test_seeds_may_have_run_on_machines_of_different_speed(config):
    slow = [slowed(run, 7) if run.seed == 1 else run for run in two_encoders()]
    for runs in (two_encoders(), slow):
        races = in_whole_runs(full_matrix(runs, "nature"), "cpu_seconds", "nature")
        assert cost_to_reach(races, "rl_s", "pong", "cpu_seconds", "nature") == pytest.approx(0.25, abs=0.01)
        assert cost_to_reach_iqm(races, "rl_s", "cpu_seconds", "nature") == pytest.approx(0.25, abs=0.01)
        assert relative_speed(races, "rl_s", "cpu_seconds") == pytest.approx(2)
        shares, mean = game_curve(races, "rl_s", "pong", "cpu_seconds", config)
        assert shares == pytest.approx(np.linspace(0, 0.5, 5))
        assert normalised("pong", mean.point) == pytest.approx(np.linspace(0, 0.81, 5))


def test_a_run_that_ends_early_on_the_clock_cuts_no_curve_short():
    """One run of rl_s at a seventh of the price: the others reach the goal long after it has ended."""
    fast = [slowed(run, 1 / 7) if (run.encoder, run.seed) == ("rl_s", 0) else run for run in two_encoders()]
    races = in_whole_runs(full_matrix(fast, "nature"), "cpu_seconds", "nature")
    mean_price = (1 / 7 + 1 + 1) / 3
    assert cost_to_reach(races, "rl_s", "pong", "cpu_seconds", "nature") == pytest.approx(0.25 * mean_price, abs=0.01)
    assert cost_to_reach_iqm(races, "rl_s", "cpu_seconds", "nature") == pytest.approx(0.25 * mean_price, abs=0.01)


def test_a_game_without_reference_scores_is_refused():
    assert normalised("pong", np.array([[-20.7, 14.6]])) == pytest.approx(np.array([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="no reference scores for adventure"):
        normalised("adventure", np.array(1.0))


def test_a_lucky_beginning_is_not_a_score_that_was_reached():
    """One game of 9 before any other, and a straight line to 10 that is at 5 half way."""
    clock, scores = np.linspace(0, 1, 101), np.linspace(0, 10, 101)
    assert first_reached(clock, scores, 5.0) == pytest.approx(0.5)
    scores[2] = 9.0
    assert first_reached(clock, scores, 5.0) == pytest.approx(0.5)
    assert first_reached(clock, scores, 11.0) is None
    assert first_reached(clock, scores, 10.0) == pytest.approx(1.0)  # at its very end


def test_procgen_is_reported_on_the_scale_of_its_paper(config, monkeypatch):
    """StarPilot's easy levels: 2.5 is 0 and 64 is 1."""
    runs = [replace(run, game="procgen/starpilot") for run in two_encoders() if run.game == "pong"]
    runs = [replace(run, points=run.points * 0 + [[0, 0, 0, 33.25]] + run.points * [[1, 1, 1, 0]]) for run in runs]
    races = full_matrix(runs, "nature")
    assert final_normalised(races, "rl_s").tolist() == [[0.5]] * 3
    text = table(races, config)
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    figures.draw_iqm(races, config, config.results_dir)
    for told in (text, drawn[0].get_supylabel()):
        assert "Procgen's paper" in told and "human" not in told


def test_faulty_races_leave_existing_files_alone(config, capsys):
    report.main(flags(config))
    out = config.results_dir / "out"
    before = {path: path.read_bytes() for path in out.iterdir()}
    write_race(config.races[0], [run for run in two_encoders() if run.seed or run.encoder == "nature"], [])
    with pytest.raises(SystemExit) as refused:
        report.main(flags(config))
    assert refused.value.code == 2
    assert "runs are missing" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_one_encoder_alone_is_reported_too(config):
    write_race(config.races[0], [run_of("nature", 0, 0.5)], [])
    report.main(flags(config))
    assert "| nature |" in (config.results_dir / "out" / "r.md").read_text()


@pytest.mark.parametrize("published", sorted(RESULTS.glob("race_*.md")), ids=lambda path: path.stem)
def test_published_reports_are_what_the_command_in_them_makes(published, monkeypatch):
    monkeypatch.chdir(RESULTS.parents[1])
    text = published.read_text("utf-8")
    command = re.search("Made by `python experiments/report.py (.*)`", text)[1]
    config = parse(ReportConfig, shlex.split(command))
    assert config.name == published.stem and table(read_matrix(config), config) == text


@pytest.fixture
def drawn(monkeypatch):
    found = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: found.append(figure))
    return found


def test_each_encoder_stands_beside_its_own_probability(config, drawn):
    worse = [run_of("rl_m", seed, 0.1, game) for game in ("pong", "breakout") for seed in range(3)]
    figures.draw_improvement(full_matrix([*two_encoders(), *worse], "nature"), config, config.results_dir)
    axis = drawn[0].axes[0]
    shown = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert dict(zip(labels, shown, strict=True)) == {"rl_s": 1, "rl_m": 0}


def test_runs_are_drawn_in_millions_and_minutes(drawn, tmp_path):
    row = {"timesteps": 3e6, "wall_seconds": 1.0, "cpu_seconds": 120.0, "raw_score_mean_100_games": 5.0}
    figures.draw_runs([Curve("pong__ppo__rl_s__s0", (), (row,))], tmp_path)
    assert [list(axis.lines[0].get_xdata()) for axis in drawn[0].axes] == [[3.0], [2.0]]


def test_intervals_are_resampled_as_the_flags_say(config):
    scores = np.random.default_rng(0).normal(size=(5, 4))
    asked = replace(config, n_resamples=50, bootstrap_seed=3)
    expected = bootstrap(interquartile_mean, scores, n_resamples=50, seed=3)
    assert estimate(asked, interquartile_mean, scores) == expected


def test_scores_are_drawn_against_each_clock_and_beside_what_was_published_by_then(drawn, tmp_path):
    runs = [run_of(encoder, 0, 0.5, total=300_000) for encoder in ("nature", "rl_s")]
    figures.draw_scores(full_matrix(runs, "nature"), tmp_path)
    axes = drawn[0].axes
    assert [axis.lines[0].get_xdata()[-1] for axis in axes] == [300_000, 6_000, 3_000]
    published = next(line for line in axes[0].lines if line.get_label() == "nature, published")
    assert list(published.get_xdata()) == [250_000]  # the next mark is at twice that


def test_curves_of_the_iqm_end_where_the_runs_do_on_each_clock(config, drawn):
    figures.draw_iqm(full_matrix(two_encoders(), "nature"), config, config.results_dir)
    ends = [{line.get_label(): line.get_xdata()[-1] for line in axis.lines} for axis in drawn[0].axes]
    same = {"nature": 1, "rl_s": 1}  # a whole run of nature
    assert ends == [{"nature": 1000, "rl_s": 1000}, pytest.approx(same), pytest.approx({"nature": 1, "rl_s": 0.5})]


def test_the_dotted_line_of_a_game_is_where_the_reference_ends(config, drawn):
    figures.draw_games(full_matrix(two_encoders(), "nature"), config, config.results_dir)
    dotted = {
        axis.get_title(): normalised(axis.get_title(), np.array(line.get_ydata()[0]))
        for axis in drawn[0].axes
        for line in axis.lines
        if line.get_linestyle() == ":"
    }
    assert dotted == pytest.approx({"pong": 0.41, "breakout": 0.41})
