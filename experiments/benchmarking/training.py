"""The benchmark's training runs: whole agents on a game, ours against SB3 as its documentation sets Atari up.

Every contender lives in a process of its own, because settings of the allocator hold for a whole process and must not
reach plain SB3. The processes train in turns, one at a time, so that a round compares like with like.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env as make_sb3_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from agents.dqn import PASSED_ON as DQN_SETTINGS
from agents.dqn import DQNHyperparameters, build_dqn, update_rhythm
from agents.encoders import policy_kwargs
from agents.ppo import PASSED_ON as PPO_SETTINGS
from agents.ppo import PPOHyperparameters, build_ppo, linear_schedule
from experiments.benchmarking.measuring import Row, interleave, ratio
from mnv4_rl.atari import make_atari_env
from mnv4_rl.games import family_of, resolve_game
from mnv4_rl.performance import set_precision, tune
from mnv4_rl.procgen import make_procgen_env

FRAME_STACK = 4
# The schedules of learning rate and exploration run over this; a benchmark sees only their beginning.
HORIZON = 10_000_000
# Measurements thrown away: DQN's first is random play alone.
WARM_UPS = {"ppo": 1, "dqn": 2}


@dataclass(frozen=True)
class Contender:
    """A set-up and an encoder.

    Attributes:
        name: What the table calls it.
        plain_sb3: SB3's environment and process as documented, instead of this project's runner.
        encoder: A key of :data:`agents.encoders.ENCODERS`.
        precision: A key of :data:`mnv4_rl.performance.PRECISIONS`; plain SB3 has fp32 alone.
    """

    name: str
    plain_sb3: bool
    encoder: str
    precision: str = "fp32"


STOCK = Contender("SB3, NatureCNN", True, "nature")  # what all others are compared with


def all_contenders(agents: Sequence[str], precisions: Sequence[str]) -> tuple[Contender, ...]:
    """Every way to train the agents of some encoders, stock SB3 first; plain SB3 trains in fp32 alone."""
    ours = [STOCK, Contender("runner, NatureCNN", False, "nature")]
    for encoder in agents:
        ours.append(Contender(f"SB3, {encoder} by policy_kwargs", True, encoder))
        for precision in precisions:
            name = f"runner, {encoder}" if precision == "fp32" else f"runner, {encoder}, {precision}"
            ours.append(Contender(name, False, encoder, precision))
    return tuple(ours)


def growing_contenders(agents: Sequence[str]) -> tuple[Contender, ...]:
    """Stock SB3 and the runner, for the part that varies the environments."""
    return (STOCK, *(Contender(f"runner, {encoder}", False, encoder) for encoder in agents))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, the same for every contender.

    Attributes:
        part: Part of the benchmark.
        algo: "ppo" or "dqn".
        game: Any spelling.
        n_envs: Environments stepped together.
        rollout: Agent timesteps trained in one measurement; for PPO one rollout and its updates.
        threads: CPU threads, None for all.
        device: "cpu" or "cuda".
    """

    part: str
    algo: str
    game: str
    n_envs: int
    rollout: int
    threads: int | None
    device: str


def sb3_missing() -> str | None:
    """Why SB3's own Atari set-up cannot take part, None if it can."""
    if find_spec("cv2") is None:
        return (
            "training is left out: SB3's Atari wrappers need cv2; install it with: "
            "python -m pip install -c constraints.txt -r requirements-dev.txt"
        )
    return None


def make_env(contender: Contender, task: Task) -> VecEnv:
    """SB3's documented environment (NoFrameskip-v4, its wrappers, VecFrameStack), or ALE's vector environment.

    SB3 documents none for Procgen: there every contender plays in ours.
    """
    if family_of(task.game) == "procgen":
        return make_procgen_env(task.game, task.n_envs, 0, num_threads=task.threads or 0)
    if not contender.plain_sb3:
        return make_atari_env(task.game, task.n_envs, 0, num_threads=task.threads or 0)
    title = "".join(word.title() for word in resolve_game(task.game).split("_"))
    return VecFrameStack(make_sb3_atari_env(f"{title}NoFrameskip-v4", n_envs=task.n_envs, seed=0), FRAME_STACK)


def build_agent(contender: Contender, task: Task) -> BaseAlgorithm:
    """The agent on its environment, hyperparameters equal whatever the set-up.

    Plain SB3 gets no tuning of the process but the threads.
    """
    if not contender.plain_sb3:
        tune(task.threads)
    elif task.threads is not None:
        th.set_num_threads(task.threads)
    build = build_sb3_agent if contender.plain_sb3 else build_our_agent
    agent = build(make_env(contender, task), contender.encoder, task)
    set_precision(agent.policy, contender.precision)
    return agent


def hyperparameters(task: Task) -> tuple[PPOHyperparameters, DQNHyperparameters]:
    """PPO with one rollout a measurement; DQN that begins to learn after one."""
    ppo = PPOHyperparameters(n_steps=task.rollout // task.n_envs, schedule_timesteps=HORIZON)
    return ppo, replace(DQNHyperparameters(), learning_starts=task.rollout, buffer_size=10 * task.rollout)


def build_our_agent(env: VecEnv, encoder: str, task: Task) -> BaseAlgorithm:
    """PPO or DQN as this project's commands build it."""
    ppo, dqn = hyperparameters(task)
    if task.algo == "ppo":
        return build_ppo(env, encoder, total_timesteps=HORIZON, hyperparameters=ppo, seed=0, device=task.device)
    return build_dqn(env, encoder, hyperparameters=dqn, seed=0, device=task.device)


def build_sb3_agent(env: VecEnv, encoder: str, task: Task) -> BaseAlgorithm:
    """PPO or DQN as SB3's documentation builds it; an encoder of ours comes in by policy_kwargs alone."""
    ppo, dqn = hyperparameters(task)
    # For NatureCNN these are SB3's own defaults.
    shared: dict[str, Any] = {"policy_kwargs": policy_kwargs(encoder), "seed": 0, "device": task.device}
    if task.algo == "ppo":
        settings = {name: getattr(ppo, name) for name in PPO_SETTINGS}
        rates: dict[str, Any] = {
            key: linear_schedule(getattr(ppo, key), HORIZON, HORIZON) for key in ("learning_rate", "clip_range")
        }
        return PPO("CnnPolicy", env, **settings, **rates, **shared)
    settings = {name: getattr(dqn, name) for name in DQN_SETTINGS}
    train_freq, gradient_steps = update_rhythm(dqn.train_freq, dqn.gradient_steps, task.n_envs)
    return DQN("CnnPolicy", env, train_freq=train_freq, gradient_steps=gradient_steps, **settings, **shared)


def train_once(agent: BaseAlgorithm, timesteps: int) -> float:
    """Train on, and return agent timesteps a second."""
    before, start = agent.num_timesteps, time.perf_counter()
    agent.learn(timesteps, reset_num_timesteps=False)
    return (agent.num_timesteps - before) / (time.perf_counter() - start)


def serve(pipe: Connection, contender: Contender, task: Task) -> None:
    """A contender's process: warms up, then trains once for every message, until the other end closes."""
    try:
        agent = build_agent(contender, task)
        for _ in range(WARM_UPS[task.algo]):
            train_once(agent, task.rollout)
        pipe.send(0.0)
        while True:
            pipe.recv()
            pipe.send(train_once(agent, task.rollout))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the benchmark is done with it, or was stopped


def open_contender(contender: Contender, task: Task, stack: ExitStack) -> Callable[[], float]:
    """Start a contender's process, wait until it is warm, and return what makes it train once."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, contender, task), daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(ours.close)  # before the join: it is what ends the process
    ask(ours, wake=False)
    return partial(ask, ours)


def ask(pipe: Connection, wake: bool = True) -> float:
    """Have a contender train once and wait for its rate.

    Raises:
        RuntimeError: If its process ended; its traceback is on standard error.
    """
    try:
        if wake:
            pipe.send(None)
        return pipe.recv()
    except (EOFError, BrokenPipeError) as error:
        raise RuntimeError("A training process of the benchmark ended early; its own message is above.") from error


def measure_task(task: Task, contenders: Sequence[Contender], rounds: int, advance: Callable[[], object]) -> list[Row]:
    """Train every contender once a round, in turns.

    Returns:
        A row a contender, compared with the first.
    """
    with ExitStack() as stack:
        measures = {contender.name: open_contender(contender, task, stack) for contender in contenders}
        rates = interleave(measures, rounds, advance)
    reference = rates[contenders[0].name]
    return [make_row(task, contender, rates[contender.name], reference) for contender in contenders]


def make_row(task: Task, contender: Contender, rates: np.ndarray, reference: np.ndarray) -> Row:
    """The line of one contender."""
    compared = ratio(rates, reference)
    return Row(
        part=task.part,
        model=contender.name,
        task=task.algo,
        device=task.device,
        dtype=contender.precision,
        n_envs=task.n_envs,
        size=64 if family_of(task.game) == "procgen" else 84,
        rounds=len(rates),
        per_second=float(np.median(rates)),
        ratio=compared.median,
        ratio_low=compared.low,
        ratio_high=compared.high,
    )
