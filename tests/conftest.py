"""What every test can rely on, and fixtures that several test files share."""

from __future__ import annotations

import signal

import pytest
import torch as th
from hypothesis import HealthCheck, settings

from agents.ppo import PPOHyperparameters, build_ppo
from mnv4_rl.atari import make_atari_env
from tests.run_folders import write_config

# A machine that is busy with other work is no fault of a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts():
    """A shell that starts the tests in the background ignores Ctrl-C, and what it starts would inherit that."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture
def few_games(monkeypatch):
    """Agents that are copied play four games at once, one of them for the test."""
    monkeypatch.setattr("experiments.study.cloning.N_ENVS", 4)
    monkeypatch.setattr("experiments.study.cloning.N_TEST_ENVS", 1)


@pytest.fixture(params=["cpu", *(["cuda"] if th.cuda.is_available() else [])])
def device(request):
    """Every kind of device there is."""
    return request.param


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """An untrained agent for Pong, saved as a training command does."""
    folder = tmp_path_factory.mktemp("run")
    env = make_atari_env("pong", 1)
    settings = PPOHyperparameters(n_steps=16, batch_size=16)
    model = build_ppo(env, "rl_s", total_timesteps=16, hyperparameters=settings, seed=3, device="cpu")
    model.save(folder / "model.zip")
    env.close()
    write_config(folder, algo="ppo", game="pong", encoder="rl_s")
    return folder
