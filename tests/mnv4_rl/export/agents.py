"""Untrained agents with every algorithm, space and encoder, and what their policies answer."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3

from mnv4_rl.contrib import MNV4MaskablePolicy, MNV4QRDQNPolicy
from mnv4_rl.policies import MNV4DQNPolicy, MNV4Policy, MNV4SACPolicy, MNV4TD3Policy

POLICIES = {
    DQN: MNV4DQNPolicy,
    QRDQN: MNV4QRDQNPolicy,
    SAC: MNV4SACPolicy,
    TD3: MNV4TD3Policy,
    MaskablePPO: MNV4MaskablePolicy,
}
OFF_POLICY = (DQN, QRDQN, SAC, TD3)
ACTIONS = {
    "discrete": spaces.Discrete(5),
    "multi": spaces.MultiDiscrete([3, 2, 4]),
    "binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 0.02], np.float32)),
    "matrix": spaces.Box(-1, 1, (2, 3)),
}


class Still(gym.Env):
    """An environment for its spaces alone."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def agent(
    algorithm=PPO,
    *,
    action=None,
    shape=(4, 36, 36),
    space=None,
    with_vector=False,
    policy=None,
    settings=None,
    **policy_kwargs,
):
    """An agent whose scores differ: SB3's last layers start so small that all actions would be as good."""
    space = space or spaces.Box(0, 255, shape, np.uint8)
    if with_vector:
        space = spaces.Dict(
            camera=space,
            joints=spaces.Box(-1, 1, (3,)),
            switches=spaces.MultiBinary(2),
            mode=spaces.Discrete(4),
            gears=spaces.MultiDiscrete([2, 3]),
        )
    continuous = algorithm in (SAC, TD3)
    name = action or ("box" if continuous else "discrete")
    sizes = {"buffer_size": 8} if algorithm in OFF_POLICY else {"n_steps": 8}
    sizes |= {"batch_size": 8} if algorithm in (PPO, MaskablePPO) else {}
    kwargs = {"features_dim": 32, **policy_kwargs}
    env = Still(space, ACTIONS[name])
    policy = policy or POLICIES.get(algorithm, MNV4Policy)
    if getattr(kwargs.get("features_extractor_class"), "__name__", "") == "CombinedExtractor":
        kwargs.pop("features_dim")
    if getattr(kwargs.get("features_extractor_class"), "__name__", "") == "Foreign":
        kwargs.pop("features_dim")
    model = algorithm(policy, env, policy_kwargs=kwargs, seed=0, device="cpu", **sizes, **(settings or {}))
    with th.no_grad():
        for module in last_layers(model.policy):
            module.weight.normal_(std=0.5)
            module.bias.normal_()
    return model


def last_layers(policy):
    """The layers that put out scores."""
    modules = dict(policy.named_modules())
    names = ("action_net", "q_net.q_net", "quantile_net.quantile_net", "actor.mu")
    found = [modules[name] for name in names if name in modules]
    return [module for part in found for module in part.modules() if isinstance(module, th.nn.Linear)]


def observations(model, n):
    """Random observations, as predict takes them."""
    model.observation_space.seed(3)
    samples = [model.observation_space.sample() for _ in range(n)]
    if isinstance(samples[0], dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    return np.stack(samples)


def batch_of(observations):
    if isinstance(observations, dict):
        return {key: th.as_tensor(value) for key, value in observations.items()}
    return th.as_tensor(observations)


@th.no_grad()
def expected_scores(model, batch):
    """What SB3's own modules decide by."""
    policy = model.policy
    policy.set_training_mode(False)
    match model:
        case DQN():
            return policy.q_net(batch)
        case QRDQN():
            return policy.quantile_net(batch).mean(1)
        case SAC():
            return policy.actor.get_action_dist_params(batch)[0]
        case TD3():
            return policy.actor(batch)
    features = policy.extract_features(batch)
    features = features[0] if isinstance(features, tuple) else features
    return policy.action_net(policy.mlp_extractor.forward_actor(features))
