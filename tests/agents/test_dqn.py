import pytest
import torch as th
from stable_baselines3 import DQN

from agents.dqn import DQNHyperparameters, build_dqn, update_rhythm
from mnv4_rl.atari import make_atari_env
from mnv4_rl.performance import set_precision
from mnv4_rl.policies import PixelModel
from mnv4_rl.replay import AtariReplayBuffer
from tests.tiny_env import tiny_env


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps", "n_envs", "expected"),
    [(4, 1, 1, (4, 1)), (4, 1, 8, (1, 2)), (4, 1, 3, (4, 3)), (1, 1, 8, (1, 8)), (4, 2, 2, (2, 2))],
)
def test_update_rhythm_keeps_updates_per_timestep(train_freq, gradient_steps, n_envs, expected):
    vector_steps, updates = update_rhythm(train_freq, gradient_steps, n_envs)
    assert (vector_steps, updates) == expected
    assert updates * train_freq == gradient_steps * vector_steps * n_envs


@pytest.mark.parametrize("algo", ["dqn", "qrdqn"])
def test_build_dqn_updates_once_every_four_timesteps(algo):
    if algo == "qrdqn":
        pytest.importorskip("sb3_contrib", reason="sb3-contrib is an extra: pip install sb3-contrib")
    env = make_atari_env("pong", n_envs=8, seed=0)
    h = DQNHyperparameters(buffer_size=1_000, learning_starts=64, n_steps=3)
    model = build_dqn(env, algo=algo, hyperparameters=h, seed=0, device="cpu")
    model.learn(128)
    assert model._n_updates == (128 - 64) // 4
    assert isinstance(model.replay_buffer, AtariReplayBuffer)
    assert model.replay_buffer.n_steps == 3
    env.close()


@pytest.mark.filterwarnings("ignore:This processor has no bf16 units")
@pytest.mark.parametrize("algo", ["dqn", "qrdqn"])
def test_every_network_reads_bytes_and_can_compute_in_bf16(algo):
    h = DQNHyperparameters(buffer_size=8, batch_size=8)
    model = build_dqn(tiny_env(), "rl_s", algo=algo, hyperparameters=h, device="cpu")
    set_precision(model.policy, "bf16")
    networks = [module for module in model.policy.modules() if isinstance(module, PixelModel)]
    assert len(networks) == 2 and all(network.autocast_dtype == th.bfloat16 for network in networks)


def test_adam_is_fused_and_else_sb3s():
    h = DQNHyperparameters(buffer_size=8, batch_size=8)
    ours = build_dqn(tiny_env(), "nature", hyperparameters=h, device="cpu").policy.optimizer
    plain = DQN("CnnPolicy", tiny_env(), buffer_size=8, device="cpu").policy.optimizer
    assert type(ours) is type(plain)
    assert ours.defaults == {**plain.defaults, "fused": True}


@pytest.mark.parametrize(("algo", "unset"), [("dqn", 1e-8), ("qrdqn", 0.01 / 8)])
def test_adam_eps_is_the_one_asked_for_else_the_algorithms_own(algo, unset):
    def eps_of(adam_eps):
        h = DQNHyperparameters(buffer_size=8, batch_size=8, adam_eps=adam_eps)
        return build_dqn(tiny_env(), "nature", algo=algo, hyperparameters=h, device="cpu").policy.optimizer.defaults[
            "eps"
        ]

    assert eps_of(1.5e-4) == 1.5e-4
    assert eps_of(None) == pytest.approx(unset)


def test_zoo_values_are_the_defaults():
    h = DQNHyperparameters()
    assert (h.buffer_size, h.learning_starts, h.batch_size, h.learning_rate) == (100_000, 100_000, 32, 1e-4)
    assert (h.train_freq, h.gradient_steps, h.target_update_interval) == (4, 1, 1_000)
    assert (h.exploration_fraction, h.exploration_final_eps) == (0.1, 0.01)


def test_unknown_algo_names_the_known_ones():
    env = make_atari_env("pong", n_envs=1)
    with pytest.raises(ValueError, match="dqn, qrdqn"):
        build_dqn(env, algo="ddqn")
    env.close()


def test_every_hyperparameter_reaches_sb3():
    changed = {
        "buffer_size": 64,
        "learning_starts": 9,
        "batch_size": 8,
        "learning_rate": 3e-4,
        "gamma": 0.9,
        "target_update_interval": 77,
        "exploration_fraction": 0.3,
        "exploration_final_eps": 0.02,
        "max_grad_norm": 3.0,
    }
    h = DQNHyperparameters(n_steps=3, **changed)
    model = build_dqn(tiny_env(), "nature", hyperparameters=h, device="cpu")
    assert {name: getattr(model, name) for name in changed} == changed
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, 0.9)
