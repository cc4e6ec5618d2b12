"""Rollouts of a frozen encoder's features: the numbers of images, without computing them again."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from mnv4_rl import create_model, load_agent, save_agent
from mnv4_rl.frozen import keep_features
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.policies import MNV4DQNPolicy, MNV4Policy
from mnv4_rl.weights import save_weights

SIDE, N_ENVS, N_STEPS = 40, 3, 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    th.manual_seed(0)
    save_weights(create_model(DEFAULT_VARIANT, in_channels=4, image_size=SIDE), path)
    return path


class OwnPPO(PPO):
    """A user's, which collects and learns as SB3's."""


class AugmentingPPO(PPO):
    """A user's, which learns from images in a way of its own."""

    def train(self) -> None:
        super().train()


class RecordingEnv(DummyVecEnv):
    """Remembers the observations; its games are cut off after a few steps, so that PPO looks at their last images."""

    def __init__(self, **kwargs):
        env = partial(FakeImageEnv, screen_height=SIDE, screen_width=SIDE, n_channels=4, discrete=True)
        super().__init__([env] * N_ENVS, **kwargs)
        for env in self.envs:
            env.ep_length = 3
        self.seen: list[np.ndarray] = []

    def reset(self):
        observations = super().reset()
        self.seen = [observations.copy()]
        return observations

    def step_wait(self):
        step = super().step_wait()
        self.seen.append(step[0].copy())
        return step


def make_agent(path: Path, algorithm=PPO, undivided: bool = False, **kwargs):
    encoder = {"features_dim": 32, "features_extractor_kwargs": {"pretrained": path, "frozen": True}}
    if undivided:  # the encoder gets floats in [0, 255]
        encoder["normalize_images"] = False
        encoder["features_extractor_kwargs"]["normalized_image"] = True
    kwargs |= {"n_epochs": 2, "batch_size": 12} if issubclass(algorithm, PPO) else {}
    env = RecordingEnv()
    return algorithm(MNV4Policy, env, n_steps=N_STEPS, policy_kwargs=encoder, seed=0, device="cpu", **kwargs)


def logits(model, observations):
    return model.policy.get_distribution(observations).distribution.logits


@pytest.mark.parametrize("algorithm", [PPO, A2C, OwnPPO])
def test_kept_features_give_the_logits_and_values_of_their_images(algorithm, weights: Path) -> None:
    model = keep_features(make_agent(weights, algorithm))
    model.learn(N_STEPS * N_ENVS)
    images = model.policy.obs_to_tensor(np.concatenate(model.get_env().seen[:N_STEPS]))[0]
    kept = model.rollout_buffer.observations.flatten(0, 1)
    assert kept.dtype == th.float32 and kept.shape[1:] != images.shape[1:]
    th.testing.assert_close(logits(model, kept), logits(model, images), rtol=1e-4, atol=1e-5)
    th.testing.assert_close(
        model.policy.predict_values(kept), model.policy.predict_values(images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("undivided", [False, True])
def test_an_agent_learns_as_it_does_from_images(weights: Path, undivided: bool) -> None:
    plain, kept = make_agent(weights, undivided=undivided), keep_features(make_agent(weights, undivided=undivided))
    for model in (plain, kept):
        model.set_random_seed(0)
        for inner in model.get_env().envs:
            inner.observation_space.seed(0)
        model.learn(2 * N_STEPS * N_ENVS)
    before = make_agent(weights).policy.state_dict()
    theirs, own = plain.policy.state_dict(), kept.policy.state_dict()
    assert theirs.keys() == own.keys()
    moved = [key for key in own if not th.equal(own[key], before[key])]
    assert any("head.fc" in key for key in moved) and not any("stages" in key or "stem" in key for key in moved)
    for key in own:
        th.testing.assert_close(own[key], theirs[key], rtol=1e-3, atol=1e-4)


def test_the_trunk_runs_once_a_step(weights: Path) -> None:
    model = keep_features(make_agent(weights))
    seen = []
    model.policy.features_extractor.network.stem.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    model.learn(N_STEPS * N_ENVS)
    cut_off = sum(count for count in seen if count == 1)
    assert sum(seen) == (N_STEPS + 1) * N_ENVS + cut_off  # the last step's values are asked for too
    assert 0 < cut_off <= N_STEPS * N_ENVS


def test_the_agent_is_saved_and_plays_as_any_other(weights: Path, tmp_path: Path) -> None:
    model = keep_features(make_agent(weights))
    model.learn(N_STEPS * N_ENVS)
    save_agent(model, tmp_path / "agent")
    images = np.concatenate(model.get_env().seen[:4])
    expected, _ = model.predict(images, deterministic=True)
    loaded = load_agent(tmp_path / "agent", device="cpu")
    assert np.array_equal(loaded.predict(images, deterministic=True)[0], expected)


def test_other_calls_of_the_policy_change_no_rollout(weights: Path) -> None:
    """Such as a callback's between acting and the rollout, or a user's before and after training."""

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            with th.no_grad():
                self.model.policy(obs=th.zeros(N_ENVS, 4, SIDE, SIDE, dtype=th.uint8))
            return True

    rollouts = []
    for callback in (None, Look()):
        model = keep_features(make_agent(weights))
        model.policy(model.policy.obs_to_tensor(model.env.reset())[0])
        model.set_random_seed(0)
        for inner in model.env.envs:
            inner.observation_space.seed(0)
        model.learn(N_STEPS * N_ENVS, callback)
        rollouts.append(model.rollout_buffer.observations.clone())
        model.policy(model.policy.obs_to_tensor(model.env.reset())[0])
    assert rollouts[0].std() > 0 and th.equal(*rollouts)


class TestRefusals:
    def test_an_encoder_that_learns(self, weights: Path) -> None:
        model = make_agent(weights)
        model.policy.features_extractor.network.requires_grad_(True)
        with pytest.raises(ValueError, match="frozen"):
            keep_features(model)

    def test_other_algorithms_policies_and_encoders(self, weights: Path) -> None:
        env = RecordingEnv()
        with pytest.raises(TypeError, match="DQN"):
            keep_features(DQN(MNV4DQNPolicy, env, buffer_size=10, device="cpu"))
        with pytest.raises(TypeError, match="ActorCriticCnnPolicy"):
            keep_features(PPO("CnnPolicy", env, n_steps=8, batch_size=8, device="cpu"))
        with pytest.raises(TypeError, match="NoneType"):
            keep_features(PPO(MNV4Policy, env, n_steps=8, batch_size=8, device="cpu", _init_setup_model=False))

    def test_a_training_of_ones_own_which_would_find_features_for_images(self, weights: Path) -> None:
        with pytest.raises(TypeError, match=r"AugmentingPPO.*nor a train of its own"):
            keep_features(make_agent(weights, AugmentingPPO))

    def test_a_second_time(self, weights: Path) -> None:
        model = keep_features(make_agent(weights))
        with pytest.raises(TypeError, match="already"):
            keep_features(model)
