"""The study: every candidate is an encoder like any other, and the table says what was measured."""

import csv
import re
from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.envs import FakeImageEnv

from agents.encoders import ENCODERS, add_encoder, policy_kwargs
from agents.ppo import build_ppo
from agents.runs.config import PPOConfig
from experiments import encoder_study
from experiments.racing.results import RaceRun, write_race
from experiments.racing.running import Outcome
from experiments.study.candidates import BASE, CANDIDATES
from experiments.study.cloning import clone, record
from experiments.study.table import Measured, score_at
from mnv4_rl import MNV4Extractor
from mnv4_rl.agent_files import load_agent, save_agent
from mnv4_rl.atari import make_atari_env

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_differs_from_rl_s_and_gives_its_features(name):
    spec = CANDIDATES[name].spec
    assert spec.name == name
    assert spec not in [BASE, *(c.spec for other, c in CANDIDATES.items() if other != name)]
    with th.no_grad():
        features = MNV4Extractor(ATARI, variant=spec)(th.rand(2, 4, 84, 84))
    assert features.shape == (2, 512)
    assert features.std() > 0.1 * spec.head.gain


def test_a_candidate_trains_saves_and_loads_by_its_name(tmp_path):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)
    PPOConfig(encoder="rl_s-mqa").check()
    model = PPO("CnnPolicy", env, policy_kwargs=policy_kwargs("rl_s-mqa", 16), n_steps=8, batch_size=8, device="cpu")
    model.learn(8)
    save_agent(model, tmp_path / "agent")
    obs = np.stack([env.observation_space.sample() for _ in range(16)])
    loaded = load_agent(tmp_path / "agent")
    actions = [agent.predict(obs, deterministic=True)[0] for agent in (loaded, model)]
    np.testing.assert_array_equal(*actions)


def test_candidates_are_not_published_encoders():
    assert not set(CANDIDATES) & set(ENCODERS)


def test_a_name_is_given_once():
    add_encoder("rl_s-mqa", CANDIDATES["rl_s-mqa"].spec)  # the same row again changes nothing
    with pytest.raises(ValueError, match=r"already is an encoder called 'rl_s-mqa'; choose another"):
        add_encoder("rl_s-mqa", BASE)
    with pytest.raises(ValueError, match="already is an encoder called 'nature'"):
        add_encoder("nature", BASE)


def test_score_is_read_off_the_curve_and_only_as_far_as_it_goes():
    steps = np.array([0.0, 100_000, 300_000, 490_000])
    points = np.column_stack([steps, steps, steps, [-21, -20, -10, -5]])
    run = RaceRun("pong", "rl_s", 0, points)
    assert [score_at(run, t) for t in (200_000, 500_000, 510_000)] == ["-15.0", "-5.0", ""]


@pytest.fixture
def few(monkeypatch):
    """One candidate, one rollout."""
    monkeypatch.setattr(encoder_study, "ENCODERS", ("rl_s", "rl_s-gap"))
    monkeypatch.setattr(encoder_study, "CATCH_TIMESTEPS", (1024,))


def test_catch_trains_only_who_is_missing(few, tmp_path):
    path = tmp_path / "encoder_study_catch.csv"
    path.write_text("encoder,seed,return_1024\nrl_s,0,9.9\n")
    encoder_study.main(["--steps", "catch", "--results-dir", str(tmp_path)])
    rows = list(csv.DictReader(path.open()))
    assert [row["encoder"] for row in rows] == ["rl_s", "rl_s-gap"]
    assert rows[0]["return_1024"] == "9.9"
    assert 0 < float(rows[1]["return_1024"]) < 10


def test_clone_copies_only_for_who_is_missing(few, few_games, tmp_path, monkeypatch):
    path = tmp_path / "encoder_study_clone.csv"
    path.write_text("encoder,seed,pong_policy,pong_value,pong_agent\nrl_s,0,0.5,0.6,old\n")
    env = make_atari_env("pong", 1, 0)
    save_agent(
        build_ppo(env, "nature", total_timesteps=1000, device="cpu"), tmp_path / "pong__ppo__nature__s0" / "agent"
    )
    env.close()
    monkeypatch.setattr(encoder_study, "published_agent", lambda game: tmp_path / "pong__ppo__nature__s0" / "agent")
    monkeypatch.setattr(encoder_study, "CLONED", ("pong",))
    monkeypatch.setattr(encoder_study, "record", partial(record, timesteps=4))
    monkeypatch.setattr(encoder_study, "clone", partial(clone, updates=1))
    encoder_study.main(["--steps", "clone", "--promising", "rl_s", "rl_s-gap", "--results-dir", str(tmp_path)])
    kept, new = csv.DictReader(path.open())
    assert (kept["encoder"], kept["pong_policy"], kept["pong_agent"]) == ("rl_s", "0.5", "old")
    assert new["encoder"] == "rl_s-gap" and float(new["pong_policy"]) < 0.5
    assert new["pong_agent"] == "pong__ppo__nature__s0"


def test_who_ran_in_another_race_of_the_study_is_not_raced_again(tmp_path, monkeypatch):
    runs = [RaceRun("pong", "nature", 0, np.zeros((2, 4))), RaceRun("pong", "rl_s-gap", 1, np.zeros((2, 4)))]
    write_race(tmp_path / "race_atari.csv", runs, [])
    raced = []

    def run_race(race, trainer):
        raced.append(race)
        return Outcome(1, 1, [], interrupted=False)

    monkeypatch.setattr(encoder_study, "run_race", run_race)
    flags = ["--steps", "race", "--results-dir", str(tmp_path), "--promising", "nature"]
    encoder_study.main([*flags, "rl_s-gap"])
    assert raced[0].encoders == ("rl_s-gap",)
    encoder_study.main(flags)
    assert len(raced) == 1


def test_table_joins_costs_returns_and_scores(few, tmp_path, capsys):
    costs = ["# torch: 1", "model,task,parameters,macs,saved_bytes,ratio"]
    costs += [f"{m},{t},1000,2e6,3000,{r}" for m in ("rl_s", "rl_s-gap") for t, r in
              (("forward", 1.234), ("forward+backward", 2.345))]  # fmt: skip
    (tmp_path / "encoder_study_costs.csv").write_text("\n".join(costs) + "\n")
    (tmp_path / "encoder_study_catch.csv").write_text("encoder,seed,return_8192\nrl_s,0,9.9\n")
    (tmp_path / "encoder_study_clone.csv").write_text("encoder,seed,pong_policy\nrl_s-gap,0,0.12\n")
    points = np.array([[0, 0, 0, -21.0], [400_000, 0, 0, -13]])
    write_race(tmp_path / "race_encoder_study.csv", [RaceRun("pong", "rl_s-gap", 0, points)], ["made by hand"])
    encoder_study.main(["--results-dir", str(tmp_path)])
    lines = (tmp_path / "encoder_study.md").read_text().splitlines()
    assert "| rl_s |  | 1,000 | 2.0 | 3 | 2.35x | 1.23x | 9.9 |" + 10 * "  |" in lines
    gap = next(line for line in lines if line.startswith("| rl_s-gap"))
    assert gap.split(" | ")[1:14] == [
        "map averaged to one position", "1,000", "2.0", "3", "2.35x", "1.23x", "", "", "0.12", "", "", "-16.0", "",
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "encoder_study.csv").open()))
    assert [row["pong_250000"] for row in rows] == ["", "-16.0"]
    assert (tmp_path / "encoder_study_pong.png").read_bytes()[:4] == b"\x89PNG"
    assert "encoder_study.md" in capsys.readouterr().out


def test_a_games_picture_has_the_runs_of_the_studys_seed(few, tmp_path, monkeypatch):
    points = np.array([[0, 0, 0, -21.0], [400_000, 0, 0, -13]])
    runs = [RaceRun("pong", "rl_s-gap", seed, points) for seed in (0, 1)] + [RaceRun("enduro", "rl_s", 1, points)]
    drawn = {}
    monkeypatch.setattr(encoder_study, "read_measured", lambda _: Measured([], [], [], runs))
    monkeypatch.setattr(encoder_study, "draw_runs", lambda curves, path: drawn.update({path.name: len(curves)}))
    encoder_study.write_table(encoder_study.StudyConfig(results_dir=tmp_path, seed=1))
    assert drawn == {"encoder_study_pong.png": 1, "encoder_study_enduro.png": 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "-1"], r"seed must lie in \[0, .*got -1"),
        (["--steps", "race", "--promising", "rl_x"], r"no encoder called 'rl_x'"),
        (["--steps", "clone", "--promising", "rl_x"], r"no encoder called 'rl_x'"),
        (["--steps", "table"], r"encoder_study_costs.csv is not there; write it first with --steps time"),
    ],
)
def test_wrong_flags_are_told(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        encoder_study.main([*flags, "--race-dir", str(tmp_path / "races"), "--results-dir", str(tmp_path / "results")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
