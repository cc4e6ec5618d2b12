"""Clone a trained agent: how soon an encoder finds out what a good policy depends on, without exploration's luck.

An encoder gets the states that the agent met, what the agent did in each and what it was worth, and learns both with
PPO's own step sizes. It takes seconds where a race takes an hour, and tells encoders apart that one seed of a race does
not. It says nothing about exploration, or about updates that overshoot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional as F

from agents.ppo import PRESETS, PPOHyperparameters, build_ppo
from agents.runs.families import FAMILIES, Games
from agents.runs.folder import KEPT_AGENT
from experiments.cli.results import AGENTS
from mnv4_rl.agent_files import load_agent
from mnv4_rl.games import family_of, resolve_game

N_ENVS, N_TEST_ENVS = 16, 3
TIMESTEPS, EVERY = 2_400, 3  # agent timesteps a game, every third of which is kept: neighbours look alike
UPDATES = 160
# Whom copies of a game with several published agents are of: one published later must not take its place unseen.
TEACHERS = ("pong__ppo__rl_s__s0",)
BATCH = PRESETS["atari"].batch_size  # on Procgen too, whose own would see every state many times


class Play(NamedTuple):
    """States an agent met.

    Attributes:
        observations: (N, C, H, W) uint8.
        probabilities: (N, n_actions) float32, its policy.
        values: (N,) float32, its value of each state; mean 0 and standard deviation 1 over all play.
    """

    observations: Tensor
    probabilities: Tensor
    values: Tensor


@dataclass(frozen=True)
class Lesson:
    """What to learn and what to be examined on: games of the same agent, none in both."""

    game: str
    train: Play
    test: Play


class Learnt(NamedTuple):
    """What a clone explains of the agent on games it has not seen; 0 is an encoder that sees nothing, 1 the agent.

    Attributes:
        policy: Share of the policy's dependence on the state: 1 less the KL divergence over that of the mean policy.
            Below 0 while even the mean is not learnt.
        value: Share of the values' variance.
    """

    policy: float
    value: float


def published_agent(game: str, agents_dir: Path = AGENTS) -> Path:
    """Folder of the published agent of a game that is copied.

    Raises:
        ValueError: If the game has none, or several of which :data:`TEACHERS` names none.
    """
    start = f"{game.replace('/', '_')}__ppo__"
    found = {agent.parent.name: agent for agent in sorted(agents_dir.glob(f"{start}*/{KEPT_AGENT}"))}
    if not found:
        raise ValueError(f"{agents_dir} has no agent of {game}; publish one first with experiments/publish_agent.py.")
    named = [name for name in found if len(found) == 1 or name in TEACHERS]
    if len(named) != 1:
        raise ValueError(f"{agents_dir} has {', '.join(found)}; name one of them in TEACHERS of {Path(__file__).name}.")
    return found[named[0]]


def make_games(game: str, n_envs: int, seed: int) -> VecEnv:
    """Environments of a game of any kind, by a name that :func:`mnv4_rl.games.resolve_game` gave.

    Procgen's draw from all levels there are, so hardly any is met twice.
    """
    return FAMILIES[family_of(game)].make_plain_env(Games(game, n_envs=n_envs, seed=seed))


def record(game: str, agent: Path, seed: int, timesteps: int = TIMESTEPS) -> Lesson:
    """Let an agent play; the last environments' games are for the test.

    Args:
        game: Any common spelling.
        agent: Folder that :func:`mnv4_rl.save_agent` wrote.
        seed: Seed of games and actions.
        timesteps: Agent timesteps in each environment.

    Raises:
        ValueError: If the agent has no probabilities of actions, or sees other images than the game shows.
    """
    game, model = resolve_game(game), load_agent(agent, device="cpu")
    if not isinstance(model.policy, ActorCriticPolicy):
        raise ValueError(f"{agent} is of {type(model).__name__}, which has no probabilities to copy; name one of PPO.")
    env = make_games(game, N_ENVS, seed)
    try:
        if (found := model.observation_space) != env.observation_space:
            raise ValueError(f"{agent} sees {found}, {game} shows {env.observation_space}; name the agent's own game.")
        steps = list(_play(model.policy, env, timesteps, th.Generator().manual_seed(seed)))
    finally:
        env.close()
    played = [th.stack(column, 1) for column in zip(*steps, strict=True)]  # (N_ENVS, kept timesteps, ...)
    played[2] = (played[2] - played[2].mean()) / played[2].std()
    split = [column.split([N_ENVS - N_TEST_ENVS, N_TEST_ENVS]) for column in played]
    train, test = (Play(*(column.flatten(0, 1) for column in part)) for part in zip(*split, strict=True))
    return Lesson(game, train, test)


def as_rewards_teach(lesson: Lesson, seed: int) -> Lesson:
    """The same states with what reward tells of them: one action each, drawn from the policy, and a noisy return.

    The noise is as large as the values differ among themselves: PPO's returns leave it about as much to guess. The test
    stays exact.
    """
    generator = th.Generator().manual_seed(seed)
    observations, probabilities, values = lesson.train
    action = th.multinomial(probabilities, 1, generator=generator)
    drawn = th.zeros_like(probabilities).scatter_(1, action, 1.0)
    noisy = values + th.randn(values.shape, generator=generator)
    return replace(lesson, train=Play(observations, drawn, noisy))


@th.no_grad()
def _play(policy: Any, env: VecEnv, timesteps: int, generator: th.Generator) -> Iterator[Play]:
    observations: Any = env.reset()
    for timestep in range(timesteps):
        batch = th.as_tensor(observations.copy())
        probabilities = policy.get_distribution(batch).distribution.probs
        if timestep % EVERY == 0:
            yield Play(batch, probabilities, policy.predict_values(batch)[:, 0])
        observations, *_ = env.step(th.multinomial(probabilities, 1, generator=generator)[:, 0].numpy())


def clone(encoder: str, lesson: Lesson, seed: int, updates: int = UPDATES) -> Learnt:
    """What a fresh agent with this encoder has learnt after so many updates, see :func:`clone_to`."""
    (learnt,) = clone_to(encoder, lesson, seed, (updates,))
    return learnt


def clone_to(encoder: str, lesson: Lesson, seed: int, marks: Sequence[int]) -> Iterator[Learnt]:
    """Teach a fresh agent with this encoder, by PPO's Adam, learning rate and gradient clipping.

    Args:
        encoder: A name that :func:`agents.encoders.policy_kwargs` knows.
        lesson: What :func:`record` gave.
        seed: Seed of the weights and of the batches.
        marks: Steps of Adam, rising, after which it is examined; it learns on from one to the next.
    """
    h, train = PRESETS[family_of(lesson.game)], lesson.train
    policy = _fresh_policy(encoder, lesson.game, h, seed)
    generator = np.random.default_rng(seed)
    for update in range(1, marks[-1] + 1):
        chosen = th.as_tensor(generator.integers(len(train.values), size=BATCH))
        logits, values = _outputs(policy, train.observations[chosen])
        value_loss = F.mse_loss(values, train.values[chosen])
        loss = F.cross_entropy(logits, train.probabilities[chosen]) + h.vf_coef * value_loss
        policy.optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(policy.parameters(), h.max_grad_norm)
        policy.optimizer.step()
        if update in marks:
            yield examine(policy, lesson)


def _fresh_policy(encoder: str, game: str, h: PPOHyperparameters, seed: int) -> ActorCriticPolicy:
    env = make_games(game, 1, seed)
    h = replace(h, batch_size=min(h.batch_size, h.n_steps))  # one environment's rollout; SB3 warns of larger ones
    try:
        return build_ppo(env, encoder, total_timesteps=1, hyperparameters=h, seed=seed, device="cpu").policy
    finally:
        env.close()


def _outputs(policy: ActorCriticPolicy, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, n_actions) and values (N,)."""
    features: Any = policy.extract_features(observations)
    return policy.action_net(features), policy.value_net(features)[:, 0]


@th.no_grad()
def examine(policy: ActorCriticPolicy, lesson: Lesson) -> Learnt:
    """What a policy explains of the agent's play on the test games."""
    test, mean = lesson.test, lesson.train.probabilities.mean(0)
    outputs = [_outputs(policy, batch) for batch in test.observations.split(BATCH)]
    logits, values = (th.cat(column) for column in zip(*outputs, strict=True))
    divergence = _divergence(test.probabilities, logits.log_softmax(1))
    error = (values - test.values).square().mean() / (lesson.train.values.mean() - test.values).square().mean()
    known = mean.clamp(min=1e-6).log()  # an action that was never drawn
    return Learnt(float(1 - divergence / _divergence(test.probabilities, known)), float(1 - error))


def _divergence(probabilities: Tensor, log_policy: Tensor) -> Tensor:
    """Mean KL divergence of a policy, or of one for all states, from the agent's."""
    return (th.xlogy(probabilities, probabilities) - probabilities * log_policy).sum(1).mean()
