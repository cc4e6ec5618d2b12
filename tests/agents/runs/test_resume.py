"""A run that stops and goes on: equal to one that did not, where the environment allows it; every timestep once."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.dqn import DQNHyperparameters, build_dqn
from agents.encoders import encoder_of
from agents.runs import saving as sessions
from agents.runs import session as training
from agents.runs.callbacks import EnvTimer
from agents.runs.checkpoints import newest_checkpoint, restore_model
from agents.runs.folder import RunFolder
from agents.runs.guards import FiniteGuard, NonFiniteError, check_losses
from agents.runs.lock import FolderInUseError, RunLock
from agents.runs.logs import ITERATIONS, STEP, ProgressCsv, read_rows, rewind_logs
from agents.runs.replay_file import read_replay, write_replay
from agents.runs.saving import CheckpointPlan
from agents.runs.session import Plan, find_resume, go_on, rewind, train
from agents.runs.state import Clock, capture, restore_counters
from experiments import atari_ppo
from mnv4_rl.replay import AtariReplayBuffer
from tests.tiny_env import tiny_env, tiny_ppo

TOTAL = 96  # six rollouts of two environments
TINY = ["--n-envs", "2", "--ppo.n-steps", "8", "--ppo.batch-size", "16", "--ppo.n-epochs", "1", "--threads", "1"]
TINY += ["--encoder", "nature", "--evaluation-games", "0", "--device", "cpu"]


def session(folder, resume=False, total=TOTAL, every=16, keep=100, model=None, checkpoints=None):
    """Train as the commands do, on the tiny environment."""
    with RunFolder(folder, resume) as run:
        start = find_resume(run) if resume else None
        model = model or tiny_ppo(total)
        if start is not None:
            go_on(model, start, total)
            rewind(run, start)
        plan = Plan(total, 0, checkpoints or CheckpointPlan(every, keep))
        outcome = train(model, model.env, run, plan, tiny_env, start)
        run.describe({"algo": "ppo"}, "python a.py")
    return model, outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    model, outcome = session(folder)
    assert outcome.finished and outcome.timesteps == TOTAL
    return model, folder


def stopped_at(folder, timesteps, target):
    """What a run killed some time after a checkpoint looks like: curves that went on beyond it."""
    shutil.copytree(folder, target)
    for path in (target / "checkpoints").iterdir():
        if int(path.name) > timesteps:
            shutil.rmtree(path)
    return target


def without_clock(rows):
    kept = (STEP, ITERATIONS)
    return [{key: value for key, value in row.items() if key in kept or not key.startswith("time/")} for row in rows]


def optimizer_state(model):
    state = model.policy.optimizer.state_dict()["state"]
    return [state[index][name] for index in sorted(state) for name in ("exp_avg", "exp_avg_sq", "step")]


@pytest.mark.parametrize(("timesteps", "loop"), [(16, "sb3"), (48, "sb3"), (80, "sb3"), (48, "device")])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(whole, timesteps, loop, tmp_path):
    """Whichever loop goes on with it."""
    model, folder = whole
    goes_on = tiny_ppo(TOTAL, loop=loop)
    resumed, _ = session(stopped_at(folder, timesteps, tmp_path / "run"), resume=True, model=goes_on)
    assert all(th.equal(a, b) for a, b in zip(*(m.policy.state_dict().values() for m in (model, resumed)), strict=True))
    assert all(th.equal(a, b) for a, b in zip(optimizer_state(model), optimizer_state(resumed), strict=True))
    assert (resumed.num_timesteps, resumed._n_updates) == (model.num_timesteps, model._n_updates)
    assert [game["r"] for game in resumed.ep_info_buffer] == [game["r"] for game in model.ep_info_buffer]
    rows = [without_clock(read_rows(path / "progress.csv")) for path in (folder, tmp_path / "run")]
    assert len(rows[0]) == TOTAL // 16
    for uninterrupted, row in zip(*rows, strict=True):
        assert row.keys() == uninterrupted.keys()
        # VecMonitor's scores are float32 before they have been through a checkpoint's JSON.
        numbers = [[float(cells[key] or "nan") for key in row] for cells in (row, uninterrupted)]
        np.testing.assert_allclose(*numbers, rtol=1e-6)


def test_curves_of_a_resumed_run_have_every_timestep_once(whole, tmp_path):
    run = stopped_at(whole[1], 48, tmp_path / "run")
    session(run, resume=True)
    events = EventAccumulator(str(run))
    events.Reload()
    for key in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(key)]
        assert steps == sorted(steps)
        assert key == "score/game" or len(steps) == len(set(steps)), key  # two games may end at once
    assert [event.step for event in events.Scalars("train/loss")] == [32, 48, 64, 80, 96]
    rows = read_rows(run / "progress.csv")
    assert [int(row[ITERATIONS]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for key in ("time/wall_seconds", "time/cpu_seconds"):
        values = [float(row[key]) for row in rows]
        assert values == sorted(values)


def test_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(whole, tmp_path):
    run = stopped_at(whole[1], 64, tmp_path / "run")
    os.truncate(run / "checkpoints" / "000000064" / "agent.safetensors", 1000)
    with pytest.warns(RuntimeWarning, match="damaged checkpoint passed by"):
        resumed, _ = session(run, resume=True)
    states = (whole[0].policy.state_dict(), resumed.policy.state_dict())
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


def test_run_killed_before_its_first_checkpoint_starts_over_and_says_so(whole, tmp_path):
    run = stopped_at(whole[1], 0, tmp_path / "run")
    for name in ("model.zip", "first_checkpoint.txt"):
        (run / name).unlink()
    with RunFolder(run, resume=True) as folder:
        assert "no checkpoint was written before the run stopped: it starts over" in str(find_resume(folder))
    session(run, resume=True)
    assert [int(row[STEP]) for row in read_rows(run / "progress.csv")] == [16, 32, 48, 64, 80, 96]


def test_longer_run_extends_a_finished_one(whole, tmp_path):
    run = stopped_at(whole[1], TOTAL, tmp_path / "run")
    model, outcome = session(run, resume=True, total=TOTAL + 32)
    assert outcome.timesteps == TOTAL + 32 and model._total_timesteps == TOTAL + 32
    assert len(read_rows(run / "progress.csv")) == TOTAL // 16 + 2


class Stop(BaseCallback):
    """Ctrl-C in the middle of a rollout."""

    def __init__(self, timestep):
        super().__init__()
        self._timestep = timestep

    def _on_step(self):
        if self.num_timesteps == self._timestep:
            os.kill(os.getpid(), 2)
        return True


def test_ctrl_c_writes_the_state_of_the_rollouts_start(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "GameScores", lambda: Stop(40))
    model, outcome = session(tmp_path / "run", every=0)
    assert not outcome.finished and model.num_timesteps == 32
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.name == "000000032"
    monkeypatch.undo()
    resumed, _ = session(tmp_path / "run", resume=True)
    states = (whole[0].policy.state_dict(), resumed.policy.state_dict())
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    session(tmp_path / "run", keep=2)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["000000080", "000000096"]


def test_training_goes_on_when_a_checkpoint_cannot_be_written(tmp_path, monkeypatch):
    write = sessions.write_checkpoint

    def full_disk(model, run, state, description, with_replay):
        if state["counters"]["num_timesteps"] == 48:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(model, run, state, description, with_replay)

    monkeypatch.setattr(sessions, "write_checkpoint", full_disk)
    with pytest.warns(RuntimeWarning, match="checkpoint at timestep 48 failed: .*No space left on device.*goes on"):
        _, outcome = session(tmp_path / "run")
    assert outcome.finished
    written = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert written == [16, 32, 64, 80, 96]


# Numbers that are none


def test_weight_that_becomes_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    class Poison(FiniteGuard):
        def _on_rollout_end(self):
            if self.num_timesteps == 64:
                with th.no_grad():
                    self.model.policy.value_net.bias.fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(NonFiniteError, match="at timestep 64"):
        patch.setattr(training, "FiniteGuard", Poison)
        session(tmp_path / "run")
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None and newest.name == "000000048"
    assert not (tmp_path / "run" / "model.zip").exists()
    model = tiny_ppo()
    restore_model(model, newest)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_no_number_is_named(whole, bad):
    model = tiny_ppo().learn(16)
    model.logger.record("train/explained_variance", float("nan"))  # of constant returns: no fault
    check_losses(model)
    model.logger.record("train/value_loss", bad)
    with pytest.raises(NonFiniteError, match=f"train/value_loss is {bad} at timestep 16"):
        check_losses(model)


def test_diverging_command_ends_with_one_line_and_its_own_code(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--total-timesteps", "400", "--ppo.learning-rate", "1e12", "--checkpoint-every", "16"]
    with pytest.raises(SystemExit) as ended:
        atari_ppo.main([*flags, "--run-dir", str(folder), *TINY])
    assert ended.value.code == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: training stopped: ") and "at timestep" in error
    assert not (folder / "model.zip").exists() and not (folder / "run.lock").exists()


# The command


@pytest.fixture(scope="module")
def pong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pong"
    atari_ppo.main(["--total-timesteps", "64", "--checkpoint-every", "32", "--run-dir", str(folder), *TINY])
    return folder


def test_resume_needs_no_other_flag_and_can_extend(pong, tmp_path, capsys):
    run = stopped_at(pong, 32, tmp_path / "run")
    atari_ppo.main(["--resume", str(run)])
    assert "resumed from timestep 32" in capsys.readouterr().out
    assert [int(row[STEP]) for row in read_rows(run / "progress.csv")] == [16, 32, 48, 64]
    atari_ppo.main(["--resume", str(run), "--total-timesteps", "80"])
    assert [int(row[STEP]) for row in read_rows(run / "progress.csv")] == [16, 32, 48, 64, 80]
    assert len((run / "command.txt").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "has finished its 64 timesteps; give more with --total-timesteps"),
        (["--seed", "1"], "seed was 0 in the run and cannot become 1"),
        (["--ppo.gamma", "0.5"], "ppo was"),
        (["--total-timesteps", "10"], "total_timesteps was 64 and can only grow, got 10"),
        (["--keep-checkpoints", "0"], "keep_checkpoints must lie in [1, inf), got 0"),
        (["--checkpoint-every", "-1"], "checkpoint_every must lie in [0, inf), got -1"),
    ],
)
def test_flags_that_a_run_cannot_change_are_refused(pong, flags, message, capsys):
    before = {path: path.read_bytes() for path in pong.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as refused:
        atari_ppo.main(["--resume", str(pong), *flags])
    assert refused.value.code == 2 and message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in pong.rglob("*") if path.is_file()}


def test_folder_without_a_run_cannot_be_resumed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        atari_ppo.main(["--resume", str(tmp_path)])
    assert "holds no run: there is no config.yml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Replay


def q_learner(seed=0, learning_starts=32):
    h = DQNHyperparameters(buffer_size=256, learning_starts=learning_starts, batch_size=8, train_freq=4)
    return build_dqn(EnvTimer(tiny_env()), "nature", hyperparameters=h, seed=seed, device="cpu")


@pytest.mark.parametrize("with_replay", [False, True])
def test_resumed_dqn_updates_at_once_with_its_replay_and_refills_it_without(with_replay, tmp_path):
    plan = CheckpointPlan(0, 3, with_replay)
    first, _ = session(tmp_path / "run", total=64, model=q_learner(), checkpoints=plan)
    assert first._n_updates == (64 - 32) // 4
    second, _ = session(tmp_path / "run", True, total=128, model=q_learner(), checkpoints=plan)
    refill = 0 if with_replay else 32
    assert second._n_updates == pytest.approx(first._n_updates + (128 - 64 - refill) // 4, abs=1)
    assert second.gradient_steps == first.gradient_steps
    assert second.exploration_rate == second.exploration_schedule(0.0)


@pytest.mark.parametrize("end", ["finished", "interrupted"])
def test_a_run_that_ends_while_its_replay_is_refilled_is_saved_as_it_was_built(end, tmp_path, monkeypatch):
    first, _ = session(tmp_path / "run", total=64, model=q_learner(), checkpoints=CheckpointPlan(0))

    class Interrupt(BaseCallback):
        def _on_step(self):
            if end == "interrupted" and self.num_timesteps > 72:
                raise KeyboardInterrupt
            return True

    monkeypatch.setattr(training, "GameScores", Interrupt)
    second, _ = session(tmp_path / "run", True, total=80, model=q_learner(), checkpoints=CheckpointPlan(0))
    assert second._n_updates == first._n_updates
    with zipfile.ZipFile(tmp_path / "run" / "model.zip") as archive:
        assert json.loads(archive.read("data"))["gradient_steps"] == first.gradient_steps > 0


def test_a_replay_comes_back_with_the_real_ends_of_its_newest_transitions(tmp_path):
    """Of four games the first ends, the second is cut off by time, the others go on."""
    saved, restored = (AtariReplayBuffer(8, *spaces_of(tiny_env()), n_envs=4, device="cpu") for _ in range(2))
    dones, cut = np.array([1, 1, 0, 0], bool), [{"TimeLimit.truncated": index == 1} for index in range(4)]
    images = np.zeros((4, 4, 36, 36), np.uint8)
    saved.add(images, images, np.zeros(4, int), np.zeros(4), dones, cut)
    with (tmp_path / "replay.npz").open("wb") as file:
        write_replay(saved, file)
    read_replay(restored, tmp_path / "replay.npz")
    assert restored.dones[0].tolist() == [1, 1, 1, 1]
    assert restored.timeouts[0].tolist() == [0, 1, 1, 1]


def spaces_of(env):
    return env.observation_space, env.action_space


# Logs


def log(path, *rows):
    output = ProgressCsv(path)
    for step, values in rows:
        output.write(values, dict.fromkeys(values, None), step)


def test_progress_goes_on_after_its_rows_and_takes_new_columns(tmp_path):
    path = tmp_path / "progress.csv"
    log(path, (1, {"a": 1.5}), (2, {"a": 2.5, "text": 'x, "y"'}))
    log(path, (3, {"b": 3}), (3, {"c": 4}), (4, {"a": 5}))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row[STEP] for row in rows] == ["1", "2", "3", "4"]
    assert [row["a"] for row in rows] == ["1.5", "2.5", "", "5"]
    assert rows[1]["text"] == 'x, "y"' and (rows[2]["b"], rows[2]["c"]) == ("3", "4")


def test_progress_leaves_out_a_line_cut_short(tmp_path):
    path = tmp_path / "progress.csv"
    log(path, (1, {"a": 1}), (2, {"a": 2}))
    path.write_bytes(path.read_bytes()[:-1])
    assert [row["a"] for row in read_rows(path)] == ["1"]


def test_rewinding_drops_what_came_after_the_checkpoint(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.monitor.write_text("#{}\nr,l,t,env\n1,2,3,0\n4,5,6,1\n")
        size = len("#{}\nr,l,t,env\n1,2,3,0\n")
        log(run.progress, (8, {"a": 1}), (16, {"a": 2}), (24, {"a": 3}))
        rewind_logs(run, 16, size)
        assert run.monitor.read_text() == "#{}\nr,l,t,env\n1,2,3,0\n"
        assert [row[STEP] for row in read_rows(run.progress)] == ["8", "16"]


# Lock


def test_folder_of_a_live_process_is_refused_and_of_a_dead_one_taken_over(tmp_path, capsys):
    """The other process holds the lock until it is killed."""
    code = f"import pathlib, agents.runs.lock as r; lock = r.RunLock(pathlib.Path({str(tmp_path)!r}, 'run.lock'))"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(FolderInUseError, match=f"is in use by process {other.pid} on .*, started "):
        RunLock(tmp_path / "run.lock")
    other.kill()
    other.wait()
    lock = RunLock(tmp_path / "run.lock")
    assert f"process {other.pid} on" in capsys.readouterr().err
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert not (tmp_path / "run.lock").exists()


def test_command_refuses_a_folder_in_use(pong, capsys):
    lock = RunLock(pong / "run.lock")
    for flags in (["--resume", str(pong)], ["--run-dir", str(pong), *TINY]):
        with pytest.raises(SystemExit) as refused:
            atari_ppo.main(flags)
        assert refused.value.code == 2 and "is in use by process" in capsys.readouterr().err
    lock.release()


def test_same_seed_gives_the_same_weights_on_atari(pong, tmp_path):
    atari_ppo.main(["--total-timesteps", "64", "--checkpoint-every", "32", "--run-dir", str(tmp_path / "b"), *TINY])
    pair = [path / "checkpoints" / "000000064" / "agent.safetensors" for path in (pong, tmp_path / "b")]
    assert np.array_equal(*(np.frombuffer(path.read_bytes(), np.uint8) for path in pair))


def test_a_resumed_run_still_means_the_last_hundred_games():
    model = tiny_ppo().learn(16)
    restore_counters(model, capture(model, Clock()))
    assert model.ep_info_buffer.maxlen == 100


def test_a_resumed_run_begins_other_games(whole, tmp_path):
    model = tiny_ppo(TOTAL)
    with RunFolder(stopped_at(whole[1], 48, tmp_path / "run"), resume=True) as run:
        go_on(model, find_resume(run), TOTAL)
    assert model.env.unwrapped._seeds == [48, 49]


def test_a_clock_counts_all_threads_on_top_of_earlier_sessions():
    clock = Clock(wall_seconds=100.0, cpu_seconds=50.0)

    def spin():
        while time.thread_time() < 0.05:
            pass

    thread = Thread(target=spin)
    thread.start()
    thread.join()
    assert 50.05 <= clock.cpu_seconds < 60 and clock.wall_seconds >= 100.05


def test_a_full_replay_comes_back(tmp_path):
    saved, restored = (AtariReplayBuffer(8, *spaces_of(tiny_env()), n_envs=4, device="cpu") for _ in range(2))
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 36, 36), dtype=np.uint8)
    for t in range(3):  # two fit
        saved.add(images[t], images[t + 1], np.zeros(4, int), np.full(4, t), np.zeros(4), [{}] * 4)
    with (tmp_path / "replay.npz").open("wb") as file:
        write_replay(saved, file)
    read_replay(restored, tmp_path / "replay.npz")
    assert (restored.full, restored.pos, restored.rewards[:, 0].tolist()) == (True, 1, [2, 1])
    for name in ("observations", "next_observations"):
        assert np.array_equal(getattr(restored, name)[:], getattr(saved, name)[:])


def test_weights_too_large_to_compute_with_are_never_a_checkpoint(tmp_path, monkeypatch):
    class Blow(FiniteGuard):
        def _on_rollout_start(self):
            super()._on_rollout_start()
            if self.num_timesteps == 64:
                with th.no_grad():
                    for weight in encoder_of(self.model).parameters():
                        weight.mul_(1e30)

    monkeypatch.setattr(training, "FiniteGuard", Blow)
    with pytest.raises(NonFiniteError, match="features are NaN or infinite at timestep 64"):
        session(tmp_path / "run")
    assert newest_checkpoint(tmp_path / "run").name == "000000048"


def test_sb3s_clock_of_a_resumed_run_is_of_the_whole(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Clock", lambda *_: Clock(100.0, 50.0))
    run = stopped_at(whole[1], 80, tmp_path / "run")
    session(run, resume=True)
    assert float(read_rows(run / "progress.csv")[-1]["time/time_elapsed"]) >= 100


def test_speed_is_of_this_sessions_timesteps(whole, tmp_path, monkeypatch):
    run = stopped_at(whole[1], 80, tmp_path / "run")
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=iter([0.0, 2.0]).__next__))
    assert session(run, resume=True)[1].steps_per_second == (TOTAL - 80) / 2
