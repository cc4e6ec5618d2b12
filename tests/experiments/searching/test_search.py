"""The search on runs that are made up from their candidate's row."""

import contextlib
import re
import sqlite3
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from agents import encoders
from agents.runs.config import ProcgenPPOConfig
from agents.runs.lock import FolderInUseError
from experiments import search
from experiments.cli.results import read_csv
from experiments.searching import scoring, space, studying
from experiments.searching.config import SearchConfig
from experiments.searching.space import spec_of
from experiments.searching.studying import open_study, run_search
from experiments.searching.table import candidates_table, options_table, rows_of
from mnv4_rl.models import specs
from mnv4_rl.models.specs import NetworkSpec

COSTS = {12: 0.4, 16: 0.5, 24: 0.8, 32: 1.5}


@pytest.fixture(scope="module")
def made_up():
    """Scores that grow with timesteps and with small grids, costs that grow with width, and one seed: the runs made."""
    runs = []

    def train(config, quiet):
        assert quiet
        runs.append((config.game, config.encoder, config.total_timesteps, config.seed))
        spec = encoders.known_encoders()[config.encoder][1]["variant"]
        return SimpleNamespace(finished=True, score=config.total_timesteps / 100 / spec.head.grid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "train_run", train)
        patch.setattr(studying, "relative_cost", lambda spec, config: COSTS[spec.stem.out_channels])
        patch.setattr(optuna.samplers, "TPESampler", partial(optuna.samplers.TPESampler, seed=0))
        yield runs


def config(tmp_path, **changes):
    settings = {"n_candidates": 12, "total_timesteps": 900, "budget": 1.0, "search_dir": tmp_path}
    games = ("procgen/starpilot", "procgen/leaper")
    return SearchConfig(**{**settings, "games": games, "n_envs": 64} | changes)


@pytest.fixture(scope="module")
def study(made_up, tmp_path_factory):
    """A study of twelve candidates, and the runs that it made."""
    done = run_search(config(tmp_path_factory.mktemp("study")))
    runs = list(made_up)
    made_up.clear()
    return SimpleNamespace(trials=done.trials, best=done.best_trial, runs=runs)


def test_candidates_over_the_budget_never_train(study):
    refused = [trial for trial in study.trials if trial.user_attrs["cost"] > 1]
    assert len(study.trials) == 12 and refused
    trained = {encoder for _, encoder, *_ in study.runs}
    for trial in refused:
        assert trial.state == optuna.trial.TrialState.PRUNED and not trial.intermediate_values
        assert trial.user_attrs["candidate"] not in trained
    assert all(trial.params["width"] != "32" for trial in study.trials if trial.user_attrs["candidate"] in trained)


def test_rungs_end_those_that_fall_behind_and_score_all_games(study):
    marks = (100, 300, 900)
    assert {timesteps for _, _, timesteps, _ in study.runs} == set(marks)
    ended_early = [t for t in study.trials if 0 < len(t.intermediate_values) < 3]
    whole = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert ended_early and whole
    for trial in whole:
        assert tuple(trial.intermediate_values) == marks
        raw = 9 / int(trial.params["grid"])
        assert trial.value == pytest.approx(((raw - 2.5) / 61.5 + (raw - 3) / 7) / 2)
        assert trial.user_attrs["scores_900"] == {"procgen/starpilot": raw, "procgen/leaper": raw}
    best = max(t.intermediate_values[100] for t in study.trials if t.intermediate_values)
    assert study.best.intermediate_values[100] == best


def test_as_many_go_on_from_a_rung_as_the_flags_say(monkeypatch, tmp_path):
    asked, pruner = [], optuna.pruners.SuccessiveHalvingPruner
    monkeypatch.setattr(optuna.pruners, "SuccessiveHalvingPruner", lambda *args: asked.append(args) or pruner(*args))
    open_study(config(tmp_path, reduction=5, total_timesteps=1000))
    assert asked == [(40, 5)]  # rungs at 40, 200 and 1,000


def test_a_search_begins_with_the_rows_that_are_known(made_up, tmp_path):
    found = run_search(config(tmp_path, n_candidates=4, budget=2)).trials
    known = [spec_of(choices).name for choices in space.KNOWN_CHOICES.values()]
    assert [trial.user_attrs["candidate"] for trial in found[:3]] == known
    assert found[3].user_attrs["candidate"] not in known


def test_an_interrupted_candidate_is_tried_again(made_up, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring, "train_run", interrupted)
        run_search(config(tmp_path, n_candidates=1))
    ended = [trial for trial in run_search(config(tmp_path, n_candidates=3)).trials if trial.state in studying._ended()]
    assert {trial.user_attrs["candidate"] for trial in ended} == {
        spec_of(row).name for row in space.KNOWN_CHOICES.values()
    }


def test_a_study_goes_on_where_it_was_and_tries_nothing_twice(made_up, monkeypatch, tmp_path):
    monkeypatch.setattr(studying, "KNOWN_CHOICES", {})
    made_up.clear()
    run_search(config(tmp_path, n_candidates=2, budget=2))
    goes_on = run_search(config(tmp_path, n_candidates=4, budget=2))  # its sampler proposes the same two again
    assert len(goes_on.trials) == 4 and len({trial.user_attrs["candidate"] for trial in goes_on.trials}) == 2
    assert made_up and len(made_up) == len(set(made_up))
    before = len(made_up)
    rows = rows_of(goes_on, config(tmp_path))
    assert len(rows) == 2 and all(row["score_900"] for row in rows[:1])
    run_search(config(tmp_path, n_candidates=4, budget=2))
    assert len(made_up) == before


def test_a_candidate_of_a_dead_process_is_tried_again(made_up, tmp_path, monkeypatch):
    """A process that was killed leaves a trial that is running for ever."""
    monkeypatch.setattr(studying, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(studying, "KNOWN_CHOICES", {})
    ours = config(tmp_path, n_candidates=1)
    study = open_study(ours)
    dead = study.ask()
    studying.pick(lambda name, options: dead.suggest_categorical(name, options))
    study._storage.record_heartbeat(dead._trial_id)
    with sqlite3.connect(ours.path / "study.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    run_search(ours)
    study = open_study(ours)
    assert study.trials[0].state == optuna.trial.TrialState.FAIL
    assert study.trials[1].params == study.trials[0].params


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"games": ("procgen/jumper",)}, "kept for the test"),
        ({"games": ("qbert",), "n_envs": 8}, "kept for the test"),
        ({"seed": 100}, "kept for the test"),
        ({"games": ("pong", "procgen/leaper")}, "of one kind"),
        ({"games": ("tetris",)}, "no reference scores"),
        ({"games": ()}, "got none"),
        ({"budget": 0.0}, "budget"),
        ({"total_timesteps": 8}, "rungs"),
        ({"reduction": 1}, "reduction"),
        ({"name": "a/b"}, "name"),
        ({"name": "tpyo", "n_candidates": 0}, "no study in .*tpyo to show"),
        ({"by": "copies", "what": "settings"}, "--by reward"),
        ({"by": "copies", "games": ("procgen/leaper",)}, "has no agent of procgen/leaper"),
        ({"by": "copies", "games": ("procgen/starpilot",), "updates": 8}, "updates=8 is too little for 3 rungs"),
        ({"jobs": 2}, "--engine ray"),
        ({"address": "auto"}, "--engine ray"),
    ],
)
def test_what_cannot_work_is_refused_before_a_study_is_made(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        run_search(config(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_another_studys_settings_are_refused(made_up, tmp_path):
    run_search(config(tmp_path, n_candidates=1))
    with pytest.raises(ValueError, match=r"budget=1\.0.*--name"):
        run_search(config(tmp_path, budget=0.5))
    assert open_study(config(tmp_path)).user_attrs["budget"] == 1.0


def test_a_study_older_than_copies_is_one_by_reward(made_up, tmp_path):
    run_search(config(tmp_path, n_candidates=1))
    with contextlib.closing(sqlite3.connect(config(tmp_path).path / "study.db")) as database, database:
        database.execute("delete from study_user_attributes where key in ('by', 'updates')")
    with pytest.raises(ValueError, match="by='reward', this one 'copies'"):
        open_study(config(tmp_path, by="copies", games=("procgen/starpilot",)))
    assert open_study(config(tmp_path)).user_attrs["by"] == "reward"


def test_copies_of_another_teacher_are_another_study(monkeypatch, tmp_path):
    copies = config(tmp_path, by="copies", games=("pong",))
    assert open_study(copies).user_attrs["teachers"] == ["pong__ppo__rl_s__s0"]
    assert open_study(copies).user_attrs["teachers"] == ["pong__ppo__rl_s__s0"]
    monkeypatch.setattr(studying, "published_agent", lambda game: Path("pong__ppo__rl_s2__s0/agent"))
    with pytest.raises(ValueError, match=r"rl_s__s0.*rl_s2__s0.*another --name"):
        open_study(copies)


def test_command_shows_every_candidate_and_the_best_row_as_code(made_up, tmp_path, capsys):
    flags = "--games procgen/starpilot --n-candidates 4 --total-timesteps 900 --search-dir".split()
    search.main([*flags, str(tmp_path)])
    out = capsys.readouterr().out
    assert len(re.findall(r"^\| (search_|rl_)", out, re.M)) == 4
    code = out[out.index("NetworkSpec(") : out.index("\nstudy")]
    row = eval(code, vars(specs))
    assert isinstance(row, NetworkSpec)
    study = open_study(SearchConfig(games=("procgen/starpilot",), search_dir=tmp_path, total_timesteps=900, n_envs=64,
                                    ppo=ProcgenPPOConfig().ppo))  # fmt: skip
    best = max(study.trials, key=lambda t: (max(t.intermediate_values, default=0), t.value or 0))
    assert row == spec_of(best.params)
    search.main([*flags, str(tmp_path), "--n-candidates", "0"])
    assert capsys.readouterr().out == out


def test_every_candidate_is_in_a_csv_from_which_the_tables_are_made(study, made_up, tmp_path, capsys):
    flags = "--games procgen/starpilot --n-candidates 5 --total-timesteps 900 --budget 2 --search-dir".split()
    search.main([*flags, str(tmp_path)])
    out = capsys.readouterr().out
    rows = read_csv(tmp_path / "encoders" / "candidates.csv")
    assert len(rows) == 5 and all(float(row["cost"]) > 0 for row in rows)
    assert {"rl_s", "rl_s2", "rl_m2"} < {row["candidate"] for row in rows}
    assert f"{candidates_table(rows)}\n\n{options_table(rows)}\n" in out
    for row in rows:
        picked = {name: row[name] for name in space.SPACE if row[name]}
        assert space.KNOWN_CHOICES.get(row["candidate"], picked) == picked
        assert row["candidate"] in (*space.KNOWN_CHOICES, spec_of(picked).name)


def test_options_are_compared_at_the_first_rung_that_all_came_to():
    def row(stem, first, last=""):
        return {"candidate": "c", "cost": "0.5", "score_3": first, "score_9": last, "stem": stem, "width": "16"}

    rows = [row("conv3", "0.4", "0.9"), row("conv3", "0.2"), row("patch4", "0.1", "0.3"), row("overlap8", "")]
    assert options_table(rows).splitlines()[2:] == [
        "| stem | patch4 | 1 | 0.100 | 0.300 |",
        "| stem | conv3 | 2 | 0.300 | 0.900 |",
    ]


def test_missing_optuna_is_one_line_with_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as refused:
        search.main(["--search-dir", str(tmp_path), "--n-candidates", "1"])
    assert refused.value.code == 2 and "requirements.txt" in capsys.readouterr().err


def test_missing_ray_is_one_line_with_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as refused:
        search.main(["--search-dir", str(tmp_path), "--engine", "ray"])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1 and '-e ".[tune]"' in error
    assert list(tmp_path.iterdir()) == []


def test_a_study_may_be_in_a_database(made_up, tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    run_search(config(tmp_path, n_candidates=1, storage=url))
    assert [trial.state.name for trial in open_study(config(tmp_path, storage=url)).trials][:1] == ["COMPLETE"]
    assert open_study(config(tmp_path)).trials == []


@pytest.mark.parametrize("url", ["", "nonsense", "nosuch://host/studies", "sqlite:////no/such/folder/x.db"])
def test_a_database_that_cannot_be_opened_is_one_line(url, made_up, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        search.main(["--search-dir", str(tmp_path), "--n-candidates", "1", "--storage", url])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1 and "--storage" in error


def test_a_candidate_that_another_process_tries_is_left_to_it(made_up, monkeypatch, tmp_path):
    def busy(*_):
        raise FolderInUseError("in use")

    monkeypatch.setattr(scoring, "train_to", busy)
    monkeypatch.setattr(studying, "relative_cost", lambda spec, config: 0.5)
    study = run_search(config(tmp_path, n_candidates=1))
    assert [trial.state.name for trial in study.trials if trial.state.is_finished()] == ["PRUNED"]
