from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN

from agents.dqn import DQNHyperparameters, build_dqn
from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs import loading
from agents.runs.checkpoints import write_checkpoint
from agents.runs.families import FAMILIES, Games
from agents.runs.loading import games_of, load_run
from experiments import watch
from mnv4_rl import agent_format
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari.options import PROTOCOLS
from tests.mnv4_rl.procgen.scripted_pool import ScriptedPool
from tests.run_folders import write_config


def test_a_loaded_agent_acts_as_the_saved_one(run_dir):
    run = load_run(run_dir, "cpu")
    assert (run.algo, run.game, run.encoder) == ("ppo", "pong", "rl_s")
    env = make_atari_env("pong", 1)
    settings = PPOHyperparameters(n_steps=16, batch_size=16)
    same = build_ppo(env, "rl_s", total_timesteps=16, hyperparameters=settings, seed=3, device="cpu")
    for parameter, expected in zip(run.model.policy.parameters(), same.policy.parameters(), strict=True):
        assert th.equal(parameter, expected)


def test_a_dqn_run_plays_with_the_random_actions_it_was_trained_to_end_with(tmp_path):
    env = make_atari_env("pong", 1)
    model = build_dqn(env, "nature", hyperparameters=DQNHyperparameters(buffer_size=64), device="cpu")
    model.save(tmp_path / "model.zip")
    write_config(tmp_path, algo="dqn", game="pong", encoder="nature", dqn={"exploration_final_eps": 0.05})
    run = load_run(tmp_path, "cpu")
    assert isinstance(run.model, DQN) and run.model.exploration_rate == 0.05
    observation = env.reset()
    assert np.array_equal(
        run.model.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


def test_a_run_without_a_final_agent_plays_from_its_newest_checkpoint(tmp_path):
    write_config(tmp_path, algo="dqn", game="pong", encoder="nature")
    env = make_atari_env("pong", 1)
    model = build_dqn(env, "nature", hyperparameters=DQNHyperparameters(buffer_size=64), device="cpu")
    state = {"counters": {"num_timesteps": 7}}
    write_checkpoint(model, tmp_path, state, agent_format.describe(model))
    run = load_run(tmp_path, "cpu")
    for parameter, expected in zip(run.model.policy.parameters(), model.policy.parameters(), strict=True):
        assert th.equal(parameter, expected)
    assert run.model.exploration_rate == 0.01


def test_one_checkpoint_of_a_run_is_the_agent_as_it_was_then(tmp_path, monkeypatch):
    write_config(tmp_path, algo="dqn", game="pong", encoder="nature", dqn={"exploration_final_eps": 0.05})
    models = []
    for timesteps in (7, 14):
        model = build_dqn(make_atari_env("pong", 1), "nature", hyperparameters=DQNHyperparameters(buffer_size=64))
        write_checkpoint(model, tmp_path, {"counters": {"num_timesteps": timesteps}}, agent_format.describe(model))
        models.append(model)
    monkeypatch.chdir(tmp_path / "checkpoints")
    run = load_run(Path("000000007"), "cpu")
    assert run.game == "pong" and run.model.exploration_rate == 0.05
    for loaded, earlier, newer in zip(*(m.policy.parameters() for m in (run.model, *models)), strict=True):
        assert th.equal(loaded.cpu(), earlier.cpu())
        assert earlier.ndim < 2 or not th.equal(earlier, newer)  # biases begin at zero


class Marker:
    """Runs code when unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_the_zip_is_executed(run_dir, tmp_path):
    planted = base64.b64encode(pickle.dumps(Marker(tmp_path / "data_ran"))).decode()
    with zipfile.ZipFile(run_dir / "model.zip") as clean, zipfile.ZipFile(tmp_path / "model.zip", "w") as bad:
        for name in clean.namelist():
            data = clean.read(name)
            if name == "data":
                data = json.dumps({"planted": {":type:": "x", ":serialized:": planted}}).encode()
            bad.writestr(name, data)
    write_config(tmp_path, algo="ppo", game="pong", encoder="rl_s")
    load_run(tmp_path, "cpu")
    with zipfile.ZipFile(tmp_path / "model.zip", "a") as bad:
        buffer = io.BytesIO()
        th.save({"x": Marker(tmp_path / "weights_ran")}, buffer)
        with pytest.warns(UserWarning, match="Duplicate name"):
            bad.writestr("policy.pth", buffer.getvalue())
    with pytest.raises(ValueError, match="cannot give its weights"):
        load_run(tmp_path, "cpu")
    assert not list(tmp_path.glob("*_ran"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"algo": "ppo", "game": "pong"}, "no encoder"),
        ({"algo": "os.system", "game": "pong", "encoder": "rl_s"}, "algo must be one of ppo, dqn, qrdqn"),
        ({"algo": "ppo", "game": "pongg", "encoder": "rl_s"}, "Unknown game 'pongg'"),
        ({"algo": "ppo", "game": "pong", "encoder": "rl_x"}, "no encoder called 'rl_x'"),
        ({"algo": "ppo", "game": "pong", "encoder": "nature"}, "cannot give its weights to this PPO"),
        ({"algo": "ppo", "game": "breakout", "encoder": "rl_s"}, "cannot give its weights to this PPO"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(run_dir, tmp_path, config, message):
    (tmp_path / "model.zip").write_bytes((run_dir / "model.zip").read_bytes())
    write_config(tmp_path, **config)
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path, "cpu")


def test_python_objects_in_a_config_are_refused(tmp_path):
    (tmp_path / "config.yml").write_text("algo: !!python/object/apply:os.getcwd []\n")
    (tmp_path / "model.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        load_run(tmp_path, "cpu")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_agent_plays_under_the_protocol_and_seed_it_is_told(protocol):
    model = SimpleNamespace(action_space=spaces.Discrete(6))
    env = FAMILIES["atari"].make_play_env(model, Games("pong", protocol=protocol, seed=7, n_envs=2))
    assert env.venv.options == PROTOCOLS[protocol] and env.venv._seeds == [7, 8]


def test_an_agent_of_hard_levels_stays_with_them(monkeypatch):
    hard = Games("procgen/starpilot", mode="hard")
    assert games_of({"family": "procgen", "game": "starpilot", "levels": {"distribution_mode": "hard"}}) == hard
    notes = {"algorithm": "PPO", "game": hard.game, "mode": "hard", "encoder": "rl_s2"}
    monkeypatch.setattr(loading, "OnnxAgent", lambda _: SimpleNamespace(notes=notes))
    assert load_run(Path("agent.onnx")).games == hard
    monkeypatch.setattr("mnv4_rl.procgen.env.make_pool", lambda *_: ScriptedPool([[1]]))
    assert FAMILIES["procgen"].make_play_env(None, hard).options.distribution_mode == "hard"
    assert watch.report([35.0, 35.0], hard)[1].split()[1] == "1.00"
