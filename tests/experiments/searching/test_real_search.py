"""The search with real timing and real runs."""

import pytest

from experiments import search
from experiments.cli.results import read_csv
from experiments.searching import costs, scoring, studying
from experiments.searching.config import SearchConfig
from experiments.searching.space import RL_S_CHOICES, SPACE, spec_of
from experiments.study import cloning
from experiments.study.cloning import as_rewards_teach, published_agent, record
from tests.needs import needs_envpool


def test_cost_is_a_share_of_natures():
    ours = SearchConfig(batch=16, rounds=3, min_seconds=0.01)
    large = spec_of({**RL_S_CHOICES, "stem": "conv3", "width": "32", "expansion": "wide", "first_residual": "fused"})
    small, big = costs.relative_cost(spec_of(RL_S_CHOICES), ours), costs.relative_cost(large, ours)
    assert 0 < small < big


def test_every_option_is_timed_as_a_neighbour_of_rl_s(monkeypatch, tmp_path):
    few = {"width": SPACE["width"], "norm": SPACE["norm"]}
    monkeypatch.setattr(costs, "SPACE", few)
    table = costs.write_costs(SearchConfig(batch=2, rounds=1, min_seconds=0), tmp_path)
    rows = read_csv(tmp_path / "search_costs_procgen.csv")
    assert [(row["choice"], row["option"]) for row in rows] == [(c, o) for c in few for o in few[c]]
    assert all(float(row["cost"]) > 0 for row in rows) and table.count("\n") == len(rows) + 1
    assert costs.neighbours()["width", "16"] == costs.neighbours()["norm", "none"] == spec_of(RL_S_CHOICES)


def test_a_search_by_copies_scores_what_clones_learn(monkeypatch, tmp_path):
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
