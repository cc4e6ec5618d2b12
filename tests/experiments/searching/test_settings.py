"""The space of PPO's settings, and its search on runs that are made up from their settings."""

import math
import shlex
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ppo import PRESETS, PPOHyperparameters, check_rollout
from agents.runs.config import PPOConfig, ProcgenPPOConfig
from experiments import search
from experiments.cli.command import parse
from experiments.searching import scoring, studying
from experiments.searching.config import SearchConfig
from experiments.searching.settings import SETTINGS, name_of, relative_updates, settings_of
from experiments.searching.studying import run_search

POINTS = st.fixed_dictionaries({name: st.sampled_from(list(options)) for name, options in SETTINGS.items()})


@given(POINTS, st.sampled_from(list(PRESETS.values())))
def test_every_point_is_settings_that_ppo_takes(picked, base):
    n_envs, ppo = settings_of(picked, base, 1000)
    check_rollout(ppo, n_envs)
    assert n_envs * ppo.n_steps == int(picked["rollout"]) == ppo.batch_size * int(picked["minibatches"])
    assert ppo.schedule_timesteps == (1000 if picked["schedule"] == "falling" else None)
    assert (ppo.vf_coef, ppo.max_grad_norm) == (base.vf_coef, base.max_grad_norm)
    assert relative_updates(ppo, base) == int(picked["n_epochs"]) / base.n_epochs


@given(POINTS, POINTS)
def test_points_have_names_of_their_own(one, other):
    assert (name_of(one) == name_of(dict(reversed(other.items())))) == (one == other)


def test_search_trains_one_encoder_with_every_candidates_settings(monkeypatch, tmp_path, capsys):
    runs = []

    def train(config, quiet):
        runs.append(config)
        return SimpleNamespace(finished=True, score=-10 - abs(math.log10(config.ppo.learning_rate / 5e-4)))

    monkeypatch.setattr(scoring, "train_run", train)
    monkeypatch.setattr(studying, "relative_cost", lambda *_: pytest.fail("settings cost no other pass"))
    flags = (
        f"--what settings --encoder nature --games pong --total-timesteps 900 --n-candidates 8 --search-dir {tmp_path} "
        "--seed 7 --device cpu --threads 1"
    )
    search.main(flags.split())
    out = capsys.readouterr().out

    assert {run.encoder for run in runs} == {"nature"} and {run.game for run in runs} == {"pong"}
    # The score of the last training games is the result; games beside it would only take time.
    assert {(run.seed, run.device, run.threads, run.evaluation_games) for run in runs} == {(7, "cpu", 1, 0)}
    study = studying.open_study(parse(SearchConfig, flags.split(), SearchConfig()))
    trained = {name_of(t.params): t for t in study.trials if t.intermediate_values}
    assert {run.run_dir.name for run in runs} == {f"pong__{name}" for name in trained}
    for run in runs:
        picked = trained[run.run_dir.name.removeprefix("pong__")].params
        assert (run.n_envs, run.ppo) == settings_of(picked, PPOHyperparameters(), 900)
    over = [t for t in study.trials if t.params["n_epochs"] == "6"]
    assert all(t.state == optuna.trial.TrialState.PRUNED and not t.intermediate_values for t in over)

    line = next(line for line in out.splitlines() if line.startswith("--n-envs"))
    best = max(trained.values(), key=lambda t: (max(t.intermediate_values), max(t.intermediate_values.values())))
    pasted = parse(PPOConfig, shlex.split(line), PPOConfig())
    assert (pasted.n_envs, pasted.ppo) == settings_of(best.params, PPOHyperparameters(), 900)


@pytest.mark.parametrize(("game", "trained"), [("pong", PPOConfig), ("procgen/leaper", ProcgenPPOConfig)])
def test_the_best_ones_flags_name_whatever_the_search_was_given(game, trained):
    picked = {name: next(iter(options)) for name, options in SETTINGS.items()}
    given = SearchConfig(what="settings", encoder="nature", games=(game,),
                         ppo=PPOHyperparameters(vf_coef=0.3, max_grad_norm=2, n_epochs=2))  # fmt: skip
    pasted = parse(trained, shlex.split(search.flags_of(picked, given)))
    assert (pasted.n_envs, pasted.ppo) == settings_of(picked, given.ppo, given.total_timesteps)
    assert pasted.encoder == "nature"


def test_settings_of_an_encoder_that_does_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no encoder called 'natur'"):
        run_search(SearchConfig(what="settings", encoder="natur", games=("pong",), search_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []
