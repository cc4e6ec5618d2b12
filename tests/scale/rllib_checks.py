"""Our encoders learn in RLlib, survive a killed env runner, and go to agent files and back; `make test-ray`.

Not collected by the other targets, whose environment has no RLlib.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import ray
import torch as th
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from experiments.custom_env import CatchEnv
from mnv4_rl import load_agent, save_agent
from mnv4_rl.rllib import from_agent, rl_module, to_agent
from tests.mnv4_rl.seek_env import SeekEnv
from tests.scale.nodes import ROOT, gone

WIDTH = 128


@pytest.fixture(scope="module", autouse=True)
def on_ray():
    places = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}}
    ray.init(
        address="local",
        num_cpus=6,
        object_store_memory=100 * 10**6,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env=environment,
    )
    register_env("seek", lambda _: SeekEnv())
    register_env("catch", lambda _: CatchEnv())
    yield
    ray.shutdown()


def config(env: str = "seek", runners: int = 0, learners: int = 0) -> PPOConfig:
    return (
        PPOConfig()
        .environment(env)
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=2)
        .learners(num_learners=learners)
        .fault_tolerance(restart_failed_env_runners=True)
        .training(train_batch_size_per_learner=128, minibatch_size=64, num_epochs=4, lr=1e-3, gamma=0.5)
        .rl_module(rl_module_spec=rl_module(features_dim=WIDTH))
        .debugging(seed=0)
    )


@pytest.fixture
def algorithms():
    """Builds algorithms, and stops them in the end."""
    made = []

    def build(ours: PPOConfig):
        made.append(ours.build_algo())
        return made[-1]

    yield build
    for algorithm in made:
        algorithm.stop()


def images(shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)


@th.no_grad()
def logits_of(agent, observations: np.ndarray) -> th.Tensor:
    policy = agent.policy
    return policy.action_net(policy.extract_features(th.as_tensor(observations)))


@th.no_grad()
def values_of(agent, observations: np.ndarray) -> th.Tensor:
    policy = agent.policy
    return policy.value_net(policy.extract_features(th.as_tensor(observations)))[:, 0]


@th.no_grad()
def logits_there(algorithm, observations: np.ndarray) -> th.Tensor:
    """What the env runners decide by."""
    return algorithm.get_module().forward_inference({"obs": th.as_tensor(observations)})["action_dist_inputs"]


def test_two_learners_and_two_env_runners_learn_and_outlive_a_killed_runner(algorithms, tmp_path):
    """A blind agent gets 2.7 of 8."""
    algorithm, scores = algorithms(config(runners=2, learners=2)), []
    for iteration in range(12):
        scores.append(algorithm.train()["env_runners"]["episode_return_mean"])
        if iteration == 2:
            victim = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)[0]
            os.kill(victim, 9)
            gone(victim)
    sums = algorithm.learner_group.foreach_learner(
        lambda learner: sum(float(p.detach().sum()) for p in learner.module["default_policy"].parameters())
    )
    found = [result.get() for result in sums.result_or_errors]
    assert len(found) == 2 and found[0] == found[1], "learners must hold the same weights"
    assert algorithm.env_runner_group.num_remote_env_runners() == 2
    assert algorithm.env_runner_group.num_remote_worker_restarts() == 1
    print("returns of 8:", *(f"{score:.1f}" for score in scores))
    agent = to_agent(algorithm)
    env, returns = SeekEnv(), []
    for seed in range(20):
        (observation, _), ended, total = env.reset(seed=seed), False, 0.0
        while not ended:
            observation, reward, ended, _, _ = env.step(agent.predict(observation, deterministic=True)[0])
            total += reward
        returns.append(total)
    assert np.mean(returns) > 5.0, scores
    assert logits_there(algorithm, images((2, 36, 36))).equal(logits_of(agent, images((2, 36, 36))))


@pytest.mark.parametrize(("env", "shape", "turned"), [("seek", (2, 36, 36), ()), ("catch", (64, 64, 3), (0, 3, 1, 2))])
def test_agents_go_to_a_file_and_back_with_equal_logits(env, shape, turned, algorithms, tmp_path):
    trained, other = algorithms(config(env)), algorithms(config(env).debugging(seed=1))
    trained.train()
    save_agent(to_agent(trained), tmp_path / "agent", optimizer=False)
    agent, seen = load_agent(tmp_path / "agent"), images(shape)
    ours = logits_of(agent, seen.transpose(turned) if turned else seen)
    assert ours.shape == (8, 3) and ours.equal(logits_there(trained, seen))
    assert not ours.equal(logits_there(other, seen))
    from_agent(other, agent)
    assert ours.equal(logits_there(other, seen))
    back = to_agent(other)
    seen = seen.transpose(turned) if turned else seen
    assert values_of(back, seen).equal(values_of(agent, seen))
    other.train()  # goes on from there


def test_an_agent_of_another_shape_is_refused_and_changes_nothing(algorithms):
    algorithm, narrow = algorithms(config()), algorithms(config().rl_module(rl_module_spec=rl_module(features_dim=64)))
    before = logits_there(algorithm, images((2, 36, 36)))
    with pytest.raises(ValueError, match=r"not of this module.*shape"):
        from_agent(algorithm, to_agent(narrow))
    assert before.equal(logits_there(algorithm, images((2, 36, 36))))


def test_a_module_that_is_not_ours_is_refused(algorithms):
    foreign = config("catch").rl_module(rl_module_spec=RLModuleSpec(), model_config={"conv_filters": [[8, 8, 8]]})
    with pytest.raises(ValueError, match="rl_module"):
        to_agent(algorithms(foreign))


def test_the_last_layers_start_as_sb3s(algorithms):
    agent = to_agent(algorithms(config()))
    assert float(agent.policy.action_net.weight.norm(dim=1).mean()) == pytest.approx(0.01, rel=1e-4)
    assert float(agent.policy.value_net.weight.norm()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_example_leaves_an_agent(tmp_path, stopped):
    example = [sys.executable, str(ROOT / "examples" / "rllib_pong.py"), "--agent", str(tmp_path / "agent")]
    timesteps = 10**9 if stopped else 1  # one iteration is 1,024
    flags = ["--total-timesteps", str(timesteps), "--env-runners", "1", "--learners", "0"]
    with subprocess.Popen([*example, *flags], stdout=subprocess.PIPE, text=True) as process:
        printed = next(line for line in process.stdout if "timesteps, return" in line)
        if stopped:
            process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert ("interrupted" in rest) == stopped
    assert "1,024 timesteps, return" in printed and process.returncode == 0
    agent = load_agent(tmp_path / "agent")
    assert agent.observation_space.shape == (4, 84, 84) and agent.action_space.n == 6
