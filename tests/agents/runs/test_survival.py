"""The long ones: a run that is killed again and again, and memory over hundreds of thousands of timesteps."""

import dataclasses
import multiprocessing
import os
import random
import sys
import time

import numpy as np
import psutil
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs.checkpoints import newest_checkpoint
from agents.runs.logs import STEP, read_rows
from experiments import atari_dqn, atari_ppo
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari.options import PROTOCOLS
from mnv4_rl.performance import tune
from tests.tensorboard_server import LOADERS, tensorboard

KILLS = 20
FLAGS = ["--n-envs", "2", "--ppo.n-steps", "4", "--ppo.batch-size", "8", "--ppo.n-epochs", "1", "--threads", "1"]
FLAGS += ["--encoder", "nature", "--evaluation-games", "0", "--device", "cpu", "--checkpoint-every", "8"]
FLAGS += ["--total-timesteps", "1000000"]


DQN_FLAGS = ["--n-envs", "2", "--dqn.batch-size", "8", "--dqn.learning-starts", "8", "--dqn.buffer-size", "500"]
DQN_FLAGS += [*FLAGS[FLAGS.index("--threads") :], "--checkpoint-replay"]


def run_session(main, flags, log):
    """The real command on games of ten timesteps, as its own process; what it prints goes to a file."""
    PROTOCOLS["sb3"] = dataclasses.replace(PROTOCOLS["sb3"], max_episode_frames=40)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    main(flags)


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.002)


def half_written(run):
    return list((run / "checkpoints").glob("*.partial"))


def kill_session(process, run, seconds):
    """SIGKILL after some seconds, or while a checkpoint is written; whether it left one half written."""
    if seconds is None:
        wait_until(lambda: half_written(run), process)
    else:
        time.sleep(seconds)
    process.kill()
    process.join()
    return bool(half_written(run))


def steps_of(run):
    return [int(row[STEP]) for row in read_rows(run / "progress.csv")] if (run / "progress.csv").exists() else []


def end_session(context, main, run, place):
    """One more session, which is asked to stop: what a kill leaves uneven is even then."""
    before = newest_timestep(run)
    process = context.Process(target=run_session, args=(main, ["--resume", str(run)], place / "last.log"))
    process.start()
    wait_until(lambda: newest_timestep(run) > before + 80, process)  # games are of twenty timesteps
    process.terminate()
    process.join()
    assert process.exitcode == 130


def check_curves(run):
    """TensorBoard's own server shows the games of monitor.csv, and no timestep twice, with either of its loaders."""
    rows = (run / "monitor.csv").read_text().splitlines()[2:]
    scores = [float(row.split(",")[0]) for row in rows]
    assert len(scores) > 2
    for loader in LOADERS:
        with tensorboard(run, loader) as server:
            games, steps = server.points("score/game"), [point.step for point in server.points("time/wall_seconds")]
        assert [point.value for point in games] == scores
        assert [point.step for point in games] == sorted({point.step for point in games})
        assert steps == sorted(set(steps))


@pytest.mark.slow
def test_run_survives_twenty_kills(tmp_path):
    """Every other kill waits for a half-written checkpoint. A fork server imports the packages once, not 21 times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.atari_ppo"])
    rng, run, partial_writes, reached = random.Random(0), tmp_path / "run", 0, [0]
    for kill in range(KILLS + 1):
        newest = newest_checkpoint(run)
        flags = ["--resume", str(run)] if kill else ["--run-dir", str(run), *FLAGS]
        process = context.Process(target=run_session, args=(atari_ppo.main, flags, tmp_path / f"{kill}.log"))
        process.start()
        log = tmp_path / f"{kill}.log"
        wait_until(lambda log=log: log.exists() and "run folder" in log.read_text(), process)
        wait_until(lambda: (steps_of(run) or [0])[-1] > reached[-1], process)
        said = log.read_text()
        if kill:
            expected = f"resumed from timestep {int(newest.name):,}" if newest else "it starts over"
            assert expected in said
        partial_writes += kill_session(process, run, seconds=None if kill % 2 else rng.uniform(0, 0.5))
        steps = steps_of(run)
        assert steps == list(range(8, 8 * len(steps) + 1, 8))  # no gap, no repeated step
        reached.append(newest_timestep(run))
    assert partial_writes >= KILLS // 4
    assert reached == sorted(reached) and reached[-1] > 0
    end_session(context, atari_ppo.main, run, tmp_path)
    check_curves(run)


@pytest.mark.slow
def test_dqn_with_its_replay_survives_kills(tmp_path):
    """As above; every other kill comes while a checkpoint, the replay in it, is written."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.atari_dqn"])
    rng, run, partial_writes, reached = random.Random(0), tmp_path / "run", 0, [0]
    for kill in range(KILLS + 1):
        flags = ["--resume", str(run)] if kill else ["--run-dir", str(run), *DQN_FLAGS]
        process = context.Process(target=run_session, args=(atari_dqn.main, flags, tmp_path / f"{kill}.log"))
        process.start()
        wait_until(lambda: newest_timestep(run) > reached[-1], process)
        partial_writes += kill_session(process, run, seconds=None if kill % 2 else rng.uniform(0, 0.5))
        reached.append(newest_timestep(run))
        assert (newest_checkpoint(run) / "replay.npz").is_file()
        if kill:
            assert f"resumed from timestep {reached[-2]:,}" in (tmp_path / f"{kill}.log").read_text()
        steps = steps_of(run)
        assert steps == sorted(set(steps))
    assert partial_writes >= KILLS // 4
    assert reached == sorted(set(reached))
    end_session(context, atari_dqn.main, run, tmp_path)
    check_curves(run)


def newest_timestep(run):
    checkpoint = newest_checkpoint(run)
    return int(checkpoint.name) if checkpoint else 0


def resident():
    return psutil.Process().memory_info().rss


@pytest.mark.slow
def test_memory_stays_flat_over_500k_env_steps():
    env = make_atari_env("pong", n_envs=8, seed=0, num_threads=1)
    env.reset()
    actions = np.random.default_rng(0).integers(0, env.action_space.n, (1000, 8))
    for step in range(20_000 // 8):
        env.step(actions[step % 1000])
    warm = resident()
    for step in range(500_000 // 8):
        env.step(actions[step % 1000])
    env.close()
    assert resident() < 1.02 * warm


class Resident(BaseCallback):
    """Resident bytes at every rollout's end."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.bytes.append((self.num_timesteps, resident()))


@pytest.mark.slow
def test_memory_stays_flat_over_200k_ppo_steps():
    tune(1)
    env = make_atari_env("pong", n_envs=8, seed=0, num_threads=1, screen_size=36)
    h = PPOHyperparameters(n_steps=128, n_epochs=1, batch_size=256)
    seen = Resident()
    build_ppo(env, "nature", total_timesteps=225_000, hyperparameters=h, seed=0, device="cpu").learn(225_000, seen)
    env.close()
    warm = next(size for timestep, size in seen.bytes if timestep >= 24_000)
    assert seen.bytes[-1][0] - 24_000 >= 200_000
    assert seen.bytes[-1][1] < 1.02 * warm
