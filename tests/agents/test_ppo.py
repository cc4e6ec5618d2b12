import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.ppo import PRESETS, PPOHyperparameters, build_ppo, linear_schedule


def test_zoo_values_are_the_defaults():
    """DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml, atari."""
    h = PPOHyperparameters()
    assert (h.n_steps, h.n_epochs, h.batch_size, h.learning_rate, h.clip_range) == (128, 4, 256, 2.5e-4, 0.1)
    assert (h.ent_coef, h.vf_coef, h.gamma, h.gae_lambda, h.max_grad_norm) == (0.01, 0.5, 0.99, 0.95, 0.5)
    assert h.schedule_timesteps == 10_000_000


def test_procgens_values_are_those_of_its_paper_and_stay_as_they_are():
    """Cobbe et al. 2020, appendix C: 64 environments, 8 minibatches."""
    h = PRESETS["procgen"]
    assert (h.n_steps, h.n_epochs, 64 * h.n_steps // h.batch_size) == (256, 3, 8)
    assert (h.learning_rate, h.clip_range, h.ent_coef, h.vf_coef, h.max_grad_norm) == (5e-4, 0.2, 0.01, 0.5, 0.5)
    assert (h.gamma, h.gae_lambda) == (0.999, 0.95)
    rate = linear_schedule(h.learning_rate, h.schedule_timesteps, 1_000)
    assert rate(1.0) == rate(0.5) == rate(0.0) == 5e-4
    assert PRESETS["atari"] == PPOHyperparameters()


@given(horizon=st.integers(1, 10**7), total=st.integers(1, 10**7), share=st.floats(0, 1))
def test_schedule_falls_to_zero_over_its_own_horizon_whatever_the_run(horizon, total, share):
    timestep = share * total
    value = linear_schedule(3.0, horizon, total)(1 - share)
    assert value == pytest.approx(3.0 * max(0.0, 1 - timestep / horizon), abs=1e-6)


def test_schedule_refuses_a_horizon_of_zero():
    with pytest.raises(ValueError, match="schedule_timesteps must be a whole number of at least 1, got 0"):
        linear_schedule(1.0, 0, 10)


def image_env():
    return DummyVecEnv([lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=4, discrete=True)] * 2)


def test_build_ppo_passes_every_hyperparameter_on():
    changed = {
        "n_steps": 16,
        "n_epochs": 2,
        "batch_size": 8,
        "gamma": 0.5,
        "gae_lambda": 0.7,
        "ent_coef": 0.03,
        "vf_coef": 0.2,
        "max_grad_norm": 3.0,
    }
    h = PPOHyperparameters(learning_rate=1e-3, clip_range=0.3, **changed)
    model = build_ppo(image_env(), total_timesteps=100, hyperparameters=h, seed=1, device="cpu")
    assert {name: getattr(model, name) for name in changed} == changed
    assert model.lr_schedule(1.0) == 1e-3
    assert model.clip_range(1.0) == 0.3
    assert model.clip_range(0.0) == pytest.approx(0.3 * (1 - 100 / 10_000_000))


def test_adam_is_fused_with_sb3s_own_eps():
    plain = PPO("CnnPolicy", image_env(), device="cpu").policy.optimizer
    ours = build_ppo(image_env(), total_timesteps=100, device="cpu").policy.optimizer
    assert type(ours) is type(plain)
    ours.defaults.pop("lr"), plain.defaults.pop("lr")
    assert ours.defaults == {**plain.defaults, "fused": True}


def test_same_seed_gives_the_same_weights_after_training():
    h = PPOHyperparameters(n_steps=16, n_epochs=1, batch_size=16)
    trained = []
    for _ in range(2):
        env = image_env()
        env.action_space.seed(0)
        for inner in env.envs:
            inner.observation_space.seed(0)
        trained.append(build_ppo(env, total_timesteps=32, hyperparameters=h, seed=3, device="cpu").learn(32))
    first, second = (model.policy.state_dict() for model in trained)
    assert all(th.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("horizon", "left"), [(400, 0.75), (100, 0), (None, 1)])
def test_rate_and_clip_range_fall_over_the_schedule_not_over_the_run(horizon, left):
    h = PPOHyperparameters(n_steps=16, batch_size=8, schedule_timesteps=horizon)
    model = build_ppo(image_env(), "nature", total_timesteps=100, hyperparameters=h, device="cpu")
    ends = model.lr_schedule(0.0), model.clip_range(0.0)
    assert ends == pytest.approx((left * h.learning_rate, left * h.clip_range))
