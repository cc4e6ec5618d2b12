"""One argument learns: every algorithm finds the square with our defaults to a stated return, NatureCNN beside them.

A blind agent gets 2.7 of 8 in all of these; NatureCNN, whose speed of learning is not ours to state, has to see more.
"""

import pytest
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN

from mnv4_rl.contrib import MNV4MaskablePolicy, MNV4QRDQNPolicy, MNV4RecurrentPolicy
from mnv4_rl.policies import MNV4DQNPolicy, MNV4Policy, MNV4SACPolicy, MNV4TD3Policy
from tests.mnv4_rl.seek_env import SeekEnv

ROLLOUT = {"n_steps": 64, "batch_size": 64, "n_epochs": 4, "learning_rate": 1e-3, "gamma": 0.5}
REPLAY = {"buffer_size": 4_000, "learning_starts": 200, "batch_size": 64, "learning_rate": 1e-3, "gamma": 0.5}
REPLAY |= {"train_freq": 2, "gradient_steps": 1}
Q = {**REPLAY, "target_update_interval": 200, "exploration_fraction": 0.3}
SEES = 3.2
# Algorithm, policy, settings, environment, agent timesteps, return of 8.
TASKS = {
    "PPO": (PPO, MNV4Policy, ROLLOUT, {}, 2_048, 7.0),
    "PPO, Dict": (PPO, MNV4Policy, ROLLOUT, {"with_vector": True}, 3_072, 6.5),
    "PPO, continuous": (PPO, MNV4Policy, ROLLOUT, {"continuous": True}, 3_072, 5.0),
    "A2C": (A2C, MNV4Policy, {"learning_rate": 1e-3, "gamma": 0.5}, {}, 4_000, 7.0),
    "DQN": (DQN, MNV4DQNPolicy, Q, {}, 2_000, 7.0),
    "DQN, Dict": (DQN, MNV4DQNPolicy, Q, {"with_vector": True}, 2_500, 6.5),
    "SAC": (SAC, MNV4SACPolicy, REPLAY, {"continuous": True}, 1_500, 4.5),
    "TD3": (TD3, MNV4TD3Policy, REPLAY, {"continuous": True}, 1_500, 4.5),
    "QR-DQN": (QRDQN, MNV4QRDQNPolicy, Q, {}, 2_000, 7.0),
    "RecurrentPPO": (RecurrentPPO, MNV4RecurrentPolicy, ROLLOUT, {}, 2_048, 7.0),
    "MaskablePPO": (MaskablePPO, MNV4MaskablePolicy, ROLLOUT, {}, 1_536, 7.0),
    "TRPO": (TRPO, MNV4Policy, {"n_steps": 128, "batch_size": 64, "gamma": 0.5}, {}, 3_072, 7.0),
}


# NatureCNN sees nothing under TD3 within these timesteps, nor within 2,500: seeds 0 and 1 score 0.1 and 0.7, then less.
RUNS = [(task, encoder) for task in TASKS for encoder in ("ours", "nature") if (task, encoder) != ("TD3", "nature")]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "encoder"), RUNS)
def test_finds_the_square(task, encoder):
    algorithm, policy, settings, env, total_timesteps, enough = TASKS[task]
    nature = CombinedExtractor if env.get("with_vector") else NatureCNN
    kwargs = {} if encoder == "ours" else {"features_extractor_class": nature}
    model = algorithm(policy, SeekEnv(**env), policy_kwargs=kwargs, seed=0, device="cpu", **settings)
    model.learn(total_timesteps)
    evaluate = evaluate_masked if algorithm is MaskablePPO else evaluate_policy
    score, _ = evaluate(model, SeekEnv(**env), 30, warn=False)
    print(f"{task}, {encoder}: {score:.2f}")
    assert score >= (enough if encoder == "ours" else SEES)
