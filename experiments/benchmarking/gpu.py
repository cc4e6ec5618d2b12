"""What the GPU benchmark measures, most important first, each part within its share of the time."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.profiler import profile

from agents.dqn import DQNHyperparameters, build_dqn
from agents.ppo import PRESETS, PPOHyperparameters, build_ppo
from agents.runs.callbacks import EnvTimer, recent_score
from agents.runs.config import check_device
from experiments.benchmarking import encoders, training
from experiments.benchmarking.gpu_part import HORIZON, GPURow, Part, Sizes
from experiments.benchmarking.measuring import calls_per_second
from experiments.benchmarking.training import STOCK, Task, train_once
from mnv4_rl.atari import make_atari_env
from mnv4_rl.performance import compile_encoders, set_precision, tune
from mnv4_rl.safe_files import write_file

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("fp32", "tf32", "bf16")
SOLVED = 18.0  # raw score on Pong
SIZE = 84


def run_tests(part: Part) -> None:
    """The tests of devices; those that compile have what time is left."""
    for marked in ("not slow", "slow") if part.sizes.compiles else ("not slow",):
        if not part.is_over:
            part.try_to(GPURow(part=part.name, model="tests/gpu", task=marked), run_pytest)


def run_pytest(row: GPURow, part: Part) -> GPURow:
    """One process: what it says goes to a file beside the CSV as it comes, its last line into the row."""
    log = part.csv.with_name(f"tests_{row.task.replace(' ', '_')}.txt")
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--no-header", "tests/gpu", "-m", row.task]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = str(process.wait(max(1.0, part.seconds_left)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = "none, its time was over"
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    return replace(row, note=f"exit code {code}: {last[:200]}")


def run_encoders(part: Part) -> None:
    """Images a second of every encoder; all of them eager first, as compiling takes its time."""
    sizes = part.sizes
    trains = [("forward+backward", batch) for batch in sizes.train_batches]
    tasks = [*trains[:1], *(("forward", batch) for batch in sizes.forward_batches), *trains[1:]]
    compiled = (False, True) if sizes.compiles else (False,)
    for is_compiled, dtype, (task, batch), name in itertools.product(compiled, DTYPES, tasks, sizes.encoders):
        if part.is_over:
            return
        row = GPURow(part=part.name, model=name, task=task, dtype=dtype, compiled=is_compiled, batch=batch)
        part.try_to(row, measure_encoder)


def measure_encoder(row: GPURow, part: Part) -> GPURow:
    """One encoder at one batch."""
    assert row.batch is not None
    model: nn.Module = encoders.build(row.model, SIZE).to(part.device)
    if row.compiled:
        th.compiler.reset()  # PyTorch gives up at eight graphs of one function
        model = th.compile(model, mode="reduce-overhead", dynamic=False)  # type: ignore[assignment]
    images = encoders.random_images(row.batch, SIZE, part.device)
    call = encoders.make_call(model, images, row.task, "fp32" if row.dtype == "tf32" else row.dtype)

    def step() -> None:
        th.compiler.cudagraph_mark_step_begin()
        call()

    with tf32(row.dtype == "tf32"):
        for _ in range(3):  # CUDA graphs are recorded in the second
            step()
        return replace(row, per_second=row.batch * calls_per_second(step, part.sizes.min_seconds))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether fp32 products may be of 10 bits inside, convolutions too."""
    before = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        with th.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            yield
    finally:
        th.set_float32_matmul_precision(before)


def run_ppo(part: Part) -> None:
    """PPO on Pong: ours at its best, stock SB3, then ours in every other way."""
    with ExitStack() as stack:
        # ALE takes a fifth of a second to start an emulator, one after the other: each number is started once.
        games = cache(lambda n_envs: stack.enter_context(closing(pong(n_envs))))
        for number, row in enumerate(ppo_rows(part)):
            if part.is_over:
                return
            part.try_to(row, partial(measure_ppo, games))
            if number == 0:
                stock = GPURow(part=part.name, model=training.STOCK.name, task="ppo", loop="sb3", n_envs=8, batch=256)
                part.try_to(stock, measure_stock)


def ppo_rows(part: Part) -> list[GPURow]:
    """Settings of our PPO, the most important first: each way to differ from the first, then all the others."""
    sizes = part.sizes
    numbers = [("fp32", False), ("bf16", False), *([("fp32", True), ("bf16", True)] if sizes.compiles else [])]
    ways = itertools.product(loops(part.device), numbers, sizes.n_envs, sizes.encoders[:3])
    rows = [
        GPURow(
            part=part.name,
            model=encoder,
            task="ppo",
            dtype=dtype,
            compiled=compiled,
            loop=loop,
            n_envs=n_envs,
            batch=minibatch(n_envs, sizes.n_steps),
        )
        for loop, (dtype, compiled), n_envs, encoder in ways
    ]
    # Compiling takes long; among the others the fewer differences the sooner.
    return sorted(rows, key=lambda row: (row.compiled, differences(row, rows[0])))


def differences(row: GPURow, other: GPURow) -> int:
    """Settings in which two rows differ."""
    names = ("loop", "dtype", "compiled", "n_envs", "model")
    return sum(getattr(row, name) != getattr(other, name) for name in names)


def loops(device: str) -> tuple[str, ...]:
    """Keys of :data:`agents.ppo.LOOPS` that a device can run, ours first."""
    return ("captured", "device", "sb3") if device.startswith("cuda") else ("device", "sb3")


def minibatch(n_envs: int, n_steps: int) -> int:
    """A quarter of a rollout, at most 2,048."""
    return max(2, min(2048, n_envs * n_steps // 4))


def measure_stock(row: GPURow, part: Part) -> GPURow:
    """SB3 as documented."""
    if (missing := training.sb3_missing()) is not None:
        return replace(row, note=missing)
    assert row.n_envs is not None
    rollout = part.sizes.stock_rollout
    task = Task(
        part=part.name, algo="ppo", game="pong", n_envs=row.n_envs, rollout=rollout, threads=None, device=part.device
    )
    with closing(EnvTimer(training.make_env(STOCK, task))) as env:
        return measure_agent(training.build_sb3_agent(env, STOCK.encoder, task), env, rollout, row, part)


def measure_ppo(games: Callable[[int], EnvTimer], row: GPURow, part: Part) -> GPURow:
    """Our PPO, rollout after rollout."""
    assert row.n_envs is not None and row.batch is not None
    env, rollout = games(row.n_envs), row.n_envs * part.sizes.n_steps
    h = PPOHyperparameters(n_steps=part.sizes.n_steps, n_epochs=3, batch_size=row.batch)
    agent = build_our_ppo(row, env, h, part)
    measured = measure_agent(agent, env, rollout, row, part)
    if not part.rows:  # the first is the most important
        try:
            write_profile(agent, rollout, part)
        except Exception as error:  # a profiler that this machine does not have costs no number
            return replace(measured, note=f"no profile: {type(error).__name__}")
    return measured


def write_profile(agent: BaseAlgorithm, rollout: int, part: Part) -> None:
    """What one more rollout and its updates spend their time on, in a file beside the CSV."""
    orders = ["self_cpu_time_total"]
    if agent.device.type == "cuda":
        orders.insert(0, "self_cuda_time_total")
    with profile() as found:  # of the CPU, and of a GPU where there is one
        train_once(agent, rollout)
    tables = [found.key_averages().table(order, row_limit=30, max_name_column_width=60) for order in orders]
    write_file(part.csv.with_name("profile.txt"), "\n".join(tables).encode())


def build_our_ppo(row: GPURow, env: EnvTimer, h: PPOHyperparameters, part: Part) -> BaseAlgorithm:
    """PPO with the encoder, numbers and loop of a row."""
    loop: Any = row.loop
    # No seed: emulators that are seeded load their game again, as slowly as at their start.
    agent = build_ppo(env, row.model, total_timesteps=HORIZON, hyperparameters=h, device=part.device, loop=loop)
    prepare(agent, row)
    return agent


def prepare(agent: BaseAlgorithm, row: GPURow) -> None:
    """Precision and compilation of a row; one that could not be compiled is no such row."""
    set_precision(agent.policy, row.dtype)
    th.compiler.reset()
    if row.compiled and not compile_encoders(agent.policy, graphs=not getattr(agent, "captures", False)):
        raise RuntimeError("the encoder was not compiled; the warning above says why")


def pong(n_envs: int) -> EnvTimer:
    """Pong, stepped by ALE's threads."""
    return EnvTimer(make_atari_env("pong", n_envs, 0))


def measure_agent(agent: BaseAlgorithm, env: EnvTimer, rollout: int, row: GPURow, part: Part) -> GPURow:
    """Agent timesteps a second after a first rollout, and where the time goes."""
    learner = time_updates(agent)
    train_once(agent, rollout)
    env.seconds = learner[0] = 0.0
    before, start = agent.num_timesteps, time.perf_counter()
    while True:
        train_once(agent, rollout)
        elapsed = time.perf_counter() - start
        if elapsed >= 10 * part.sizes.min_seconds or part.is_over:
            break
    trained = agent.num_timesteps - before
    return replace(
        row,
        per_second=trained / elapsed,
        timesteps=trained,
        env_fraction=env.seconds / elapsed,
        learner_fraction=learner[0] / elapsed,
    )


def time_updates(agent: Any) -> list[float]:
    """Seconds in the agent's updates from now on, the device's work included: a list of the one number."""
    seconds, train = [0.0], agent.train

    def timed(*args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        train(*args, **kwargs)
        if agent.device.type == "cuda":
            th.cuda.synchronize(agent.device)
        seconds[0] += time.perf_counter() - start

    agent.train = timed
    return seconds


def run_dqn(part: Part) -> None:
    """DQN on Pong, past the random play of its beginning."""
    for compiled in (False, True) if part.sizes.compiles else (False,):
        if part.is_over:
            return
        row = GPURow(part=part.name, model=part.sizes.encoders[0], task="dqn", compiled=compiled, n_envs=8, batch=32)
        part.try_to(row, measure_dqn)


def measure_dqn(row: GPURow, part: Part) -> GPURow:
    """Our DQN with rl-zoo's values and a small replay."""
    with closing(pong(8)) as env:
        h = DQNHyperparameters(buffer_size=20_000, learning_starts=64)
        agent = build_dqn(env, row.model, hyperparameters=h, seed=0, device=part.device)
        prepare(agent, row)
        return measure_agent(agent, env, 64, row, part)


class Watch(BaseCallback):
    """Writes the score after rollouts and at the end; ends training at the goal or when the time is spent."""

    def __init__(self, part: Part, row: GPURow) -> None:
        super().__init__()
        self._part, self._row = part, row
        self._written_at, self._written_timesteps = float("-inf"), 0

    def _on_step(self) -> bool:
        return not self._part.is_over and (recent_score(self.model) or -21.0) < SOLVED

    def _on_rollout_end(self) -> None:
        if self._part.seconds - self._written_at >= 10 * self._part.sizes.min_seconds:
            self._write()

    def _on_training_end(self) -> None:
        if self._written_timesteps != self.num_timesteps:
            self._write()

    def _write(self) -> None:
        self._written_at, self._written_timesteps = self._part.seconds, self.num_timesteps
        rate = self.num_timesteps / self._part.seconds
        row = replace(self._row, timesteps=self.num_timesteps, per_second=rate, score=recent_score(self.model))
        self._part.add(row)


def run_pong(part: Part, best: GPURow) -> None:
    """Learn Pong with the fastest setting until it is solved or the time is spent; updates as rl-zoo has them."""
    assert best.n_envs is not None
    n_steps, zoo = part.sizes.n_steps, PRESETS["atari"]
    batch = min(zoo.batch_size, best.n_envs * n_steps)
    h = replace(zoo, n_steps=n_steps, batch_size=batch, schedule_timesteps=HORIZON)
    row = replace(best, part=part.name, task="learn Pong", batch=batch, env_fraction=None, learner_fraction=None)
    with closing(pong(best.n_envs)) as env:
        build_our_ppo(row, env, h, part).learn(part.sizes.pong_timesteps, callback=Watch(part, row))


def default_setting(sizes: Sizes) -> GPURow:
    """What learns Pong if PPO was not measured."""
    n_envs = sizes.n_envs[0]
    batch = minibatch(n_envs, sizes.n_steps)
    return GPURow(part="ppo", model=sizes.encoders[0], task="ppo", loop="auto", n_envs=n_envs, batch=batch)


def set_up(device: str) -> None:
    """The process's settings; on a GPU PyTorch's threads, which wait actively, leave the cores to the emulators."""
    if device == "auto":
        raise ValueError("device must be cuda, cuda:N or cpu, got 'auto'.")
    check_device(device)
    tune(threads=min(4, th.get_num_threads()) if device.startswith("cuda") else None)
