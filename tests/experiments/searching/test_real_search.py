"""The search with real timing and real runs."""

import time

import pytest

from agents.ppo import PPOHyperparameters
from agents.runs import train_run
from experiments import search
from experiments.cli.results import read_csv
from experiments.searching import costs, scoring, studying
from experiments.searching.config import SearchConfig
from experiments.searching.scoring import Candidate
from experiments.searching.space import RL_S_CHOICES, SPACE, spec_of
from experiments.study import cloning
from experiments.study.cloning import as_rewards_teach, published_agent, record
from mnv4_rl.games import reference_scores
from mnv4_rl.safe_files import write_csv
from tests.needs import needs_envpool

PONG_LOW = reference_scores("pong")[0]


def test_cost_is_a_share_of_natures():
    ours = SearchConfig(batch=16, rounds=3, min_seconds=0.01)
    large = spec_of({**RL_S_CHOICES, "stem": "conv3", "width": "32", "expansion": "wide", "first_residual": "fused"})
    small, big = costs.relative_cost(spec_of(RL_S_CHOICES), ours), costs.relative_cost(large, ours)
    assert 0 < small < big


@pytest.mark.parametrize(
    ("game", "shape"), [("pong", (2, 4, 84, 84)), ("procgen/starpilot", (2, 3, 64, 64))], ids=["atari", "procgen"]
)
def test_candidates_are_timed_on_images_of_their_games_and_in_cpu_seconds(game, shape, monkeypatch):
    """Others share the processor: wall seconds would be theirs too."""
    shapes, clocks = set(), set()
    monkeypatch.setattr(costs, "make_call", lambda _model, images, *_: shapes.add(tuple(images.shape)) or int)
    monkeypatch.setattr(costs, "calls_per_second", lambda _call, _seconds, clock: clocks.add(clock) or 1.0)
    ours = SearchConfig(games=(game,), device="cpu", batch=2, rounds=1)
    assert costs.relative_cost(spec_of(RL_S_CHOICES), ours) == 1
    assert shapes == {shape} and clocks == {time.process_time}


def test_every_option_is_timed_as_a_neighbour_of_rl_s(monkeypatch, tmp_path):
    few = {"width": SPACE["width"], "norm": SPACE["norm"]}
    monkeypatch.setattr(costs, "SPACE", few)
    table = costs.write_costs(SearchConfig(batch=2, rounds=1, min_seconds=0), tmp_path)
    rows = read_csv(tmp_path / "search_costs_procgen.csv")
    assert [(row["choice"], row["option"]) for row in rows] == [(c, o) for c in few for o in few[c]]
    assert all(float(row["cost"]) > 0 for row in rows) and table.count("\n") == len(rows) + 1
    assert costs.neighbours()["width", "16"] == costs.neighbours()["norm", "none"] == spec_of(RL_S_CHOICES)


def test_a_search_by_copies_scores_what_clones_learn(few_games, monkeypatch, tmp_path):
    """Two updates of two candidates, from the labels that Pong's published agent drew."""
    played = []
    monkeypatch.setattr(studying, "KNOWN_CHOICES", {"one": RL_S_CHOICES, "other": {**RL_S_CHOICES, "grid": "3"}})
    monkeypatch.setattr(scoring, "record", lambda game, *rest: played.append(game) or record(game, *rest, timesteps=60))
    scoring._lesson.cache_clear()
    ours = SearchConfig(by="copies", games=("pong",), updates=2, rungs=2, reduction=2, budget=1000, n_candidates=2,
                        batch=2, rounds=1, min_seconds=0, search_dir=tmp_path)  # fmt: skip
    study = studying.run_search(ours)
    lesson = as_rewards_teach(record("pong", published_agent("pong"), 0, 60), 0)
    for trial in study.trials:
        learnt = list(cloning.clone_to(trial.user_attrs["candidate"], lesson, 0, (1, 2)))
        expected = {mark: (one.policy + one.value) / 2 for mark, one in zip((1, 2), learnt, strict=True)}
        assert trial.intermediate_values
        assert trial.intermediate_values == pytest.approx(
            {mark: expected[mark] for mark in trial.intermediate_values}, abs=1e-5
        )
    assert len(study.trials) == 2 and played == ["pong"]
    scoring._lesson.cache_clear()


@pytest.fixture
def tiny(tmp_path):
    """A search in which everything is small: one candidate, two games, rungs at 64 and 128 timesteps."""
    ppo = PPOHyperparameters(n_steps=32, batch_size=64, n_epochs=1)
    return SearchConfig(games=("pong", "breakout"), n_envs=2, ppo=ppo, total_timesteps=128, rungs=2, reduction=2,
                        batch=2, rounds=1, min_seconds=0, budget=1000, device="cpu", n_candidates=1,
                        search_dir=tmp_path)  # fmt: skip


@needs_envpool
def test_a_run_that_passed_a_rung_says_what_it_had_there(tiny, monkeypatch):
    candidate = Candidate(name="one", cost=1, encoder="nature", n_envs=2, ppo=tiny.ppo)
    assert [scoring.train_to(mark, candidate, "pong", tiny) for mark in (64, 128)] == [PONG_LOW, PONG_LOW]
    monkeypatch.setattr(scoring, "train_run", lambda *_, **__: pytest.fail("both rungs are in its log"))
    log = tiny.path / "pong__one" / "progress.csv"
    table = read_csv(log)
    write_csv(log, [{**row, "rollout/ep_rew_mean": score} for row, score in zip(table, ("-3.5", "4"), strict=True)])
    assert [scoring.train_to(mark, candidate, "pong", tiny) for mark in (64, 60, 65, 128)] == [-3.5, -3.5, 4, 4]


@needs_envpool
def test_a_candidate_stopped_in_its_second_game_goes_on(tiny, monkeypatch):
    """Ctrl-C came when the run of the first game had reached the rung already."""
    monkeypatch.setattr(studying, "KNOWN_CHOICES", {"one": RL_S_CHOICES})
    trained = []

    def stopped(run, quiet):
        trained.append((run.game, run.total_timesteps))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_run(run, quiet=quiet)

    monkeypatch.setattr(scoring, "train_run", stopped)
    with pytest.raises(KeyboardInterrupt):
        studying.run_search(tiny)
    ended = [trial for trial in studying.run_search(tiny).trials if trial.state in studying._ended()]
    assert [sorted(trial.intermediate_values) for trial in ended] == [[64, 128]]
    assert trained == [("pong", 64), ("breakout", 64), ("breakout", 64), ("pong", 128), ("breakout", 128)]


@needs_envpool
@pytest.mark.slow
def test_a_real_search_trains_measures_and_goes_on(tmp_path, capsys):
    tiny = "--n-envs 4 --ppo.n-steps 32 --ppo.batch-size 64 --ppo.n-epochs 1 --total-timesteps 256 --rungs 2"
    flags = [*tiny.split(), *"--reduction 2 --batch 8 --rounds 1 --min-seconds 0 --budget 1000 --device cpu".split()]
    flags += ["--games", "procgen/starpilot", "--search-dir", str(tmp_path)]
    search.main([*flags, "--n-candidates", "1"])
    search.main([*flags, "--n-candidates", "2"])
    folders = list((tmp_path / "encoders").glob("procgen_starpilot__search_*"))
    assert len(folders) == 2 and all((folder / "model.zip").is_file() for folder in folders)
    assert "NetworkSpec(" in capsys.readouterr().out
