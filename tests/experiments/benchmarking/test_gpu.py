"""The GPU benchmark without a GPU: every part runs, in tiny numbers, and leaves CSVs that are whole."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from experiments import benchmark_gpu
from experiments.benchmarking.gpu import ppo_rows, run_encoders, run_tests
from experiments.benchmarking.gpu_goals import goals
from experiments.benchmarking.gpu_part import GPURow, Part, Sizes
from mnv4_rl.models.registry import DEFAULT_VARIANT

ROOT = Path(__file__).resolve().parents[3]
TINY = Sizes(
    encoders=("rl_s", "nature"), forward_batches=(2,), train_batches=(2,), n_envs=(2,), n_steps=8, compiles=False,
    min_seconds=0.0,
)  # fmt: skip
FLAGS = "--sizes.encoders rl_s --sizes.forward-batches 2 --sizes.train-batches 2 --sizes.n-envs 2 "
FLAGS += "--sizes.n-steps 8 --sizes.stock-rollout 64 --sizes.no-compiles --sizes.min-seconds 0 --device cpu "
FLAGS += "--sizes.pong-timesteps 64"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_encoder_is_measured_in_every_kind_of_number(tmp_path):
    part = Part("encoders", "cpu", tmp_path / "encoders.csv", 600, TINY)
    run_encoders(part)
    rows = rows_of(tmp_path / "encoders.csv")
    assert len(rows) == 2 * 2 * 3 and not any(row["note"] for row in rows)
    assert all(float(row["per_second"]) > 0 for row in rows)


def test_the_file_is_whole_after_each_row_and_a_failure_is_one(tmp_path):
    part = Part("encoders", "cpu", tmp_path / "x.csv", 600, TINY)
    row = GPURow(part="x", model="rl_s", task="forward", batch=2)

    def fail(row, part):
        raise RuntimeError("no\nmemory")

    for measure in (lambda row, part: row, fail, lambda row, part: row):
        part.try_to(row, measure)
        assert len(rows_of(tmp_path / "x.csv")) == len(part.rows)
    assert [row["note"] for row in rows_of(tmp_path / "x.csv")] == ["", "RuntimeError: no memory", ""]


def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    for milliseconds in range(1, 100, 9):
        path = tmp_path / f"{milliseconds}.csv"
        writer = multiprocessing.get_context("fork").Process(target=write_rows_for_ever, args=(path,))
        writer.start()
        while not path.exists() or len(rows_of(path)) < 3:
            time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        written = rows_of(path)
        assert written and all(None not in row.values() and row["seconds"] and row["note"] == "y" for row in written)


def write_rows_for_ever(path):
    part = Part("x", "cpu", path, 600, TINY)
    while True:
        part.add(GPURow(part="x", model="rl_s", task="forward", note="y"))


def test_what_overruns_is_ended_with_all_it_started(tmp_path):
    """As the tests of devices are: a process of a part's own."""
    command = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    assert not benchmark_gpu.finishes(["bash", "-c", command], 1.0)
    pid = int((tmp_path / "pid").read_text())
    with suppress(psutil.NoSuchProcess):
        psutil.wait_procs([left := psutil.Process(pid)], timeout=10)  # the kernel ends it in its own time
        assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert benchmark_gpu.finishes(["true"], 60.0)


def test_what_is_interrupted_is_ended_too(tmp_path):
    def interrupt():
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        benchmark_gpu.finishes(
            ["bash", "-c", f"echo $$ > {tmp_path}/x; mv {tmp_path}/x {tmp_path}/pid; sleep 60"], 60.0
        )
    thread.join()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_part_ends_with_its_time(tmp_path):
    part = Part("encoders", "cpu", tmp_path / "x.csv", 0.0, TINY)
    run_encoders(part)
    assert part.rows == []


def test_pong_is_learned_with_the_fastest_setting_of_ours(tmp_path):
    part = Part("ppo", "cpu", tmp_path / "ppo.csv", 600, TINY)
    assert benchmark_gpu.fastest(tmp_path / "ppo.csv", TINY).n_envs == 2
    rates = {("SB3, NatureCNN", "sb3"): 9.0, ("rl_s", "sb3"): 2.0, ("rl_s", "device"): 3.0, ("nature", "device"): 4.0}
    for (model, loop), rate in rates.items():
        part.add(GPURow(part="ppo", model=model, task="ppo", loop=loop, batch=8, n_envs=4, per_second=rate))
    best = benchmark_gpu.fastest(tmp_path / "ppo.csv", TINY)
    assert (best.model, best.loop, best.batch, best.n_envs) == ("rl_s", "device", 8, 4)


def test_ppo_is_measured_from_the_most_important_on(tmp_path):
    rows = ppo_rows(Part("ppo", "cuda", tmp_path / "ppo.csv", 600, Sizes()))
    first, ours = rows[0], DEFAULT_VARIANT
    assert (first.loop, first.dtype, first.n_envs, first.model) == ("captured", "fp32", 128, ours)
    assert len(rows) == 3 * 4 * 4 * 3 == len(set(rows))
    one_away = rows[1:9]
    assert {(row.loop, row.n_envs, row.model, row.dtype) for row in one_away} == {
        ("device", 128, ours, "fp32"), ("sb3", 128, ours, "fp32"), ("captured", 8, ours, "fp32"),
        ("captured", 64, ours, "fp32"), ("captured", 256, ours, "fp32"), ("captured", 128, "nature", "fp32"),
        ("captured", 128, "rl_m", "fp32"), ("captured", 128, ours, "bf16"),
    }  # fmt: skip
    assert not any(row.compiled for row in rows[: len(rows) // 2])


def test_tests_that_take_too_long_leave_what_they_said(tmp_path):
    run_tests(part := Part("tests", "cpu", tmp_path / "tests.csv", 0.5, TINY))
    assert "its time was over" in part.rows[0].note
    assert (tmp_path / "tests_not_slow.txt").exists()


def test_goals_are_told_as_far_as_they_were_measured(tmp_path):
    assert [line.rpartition(": ")[2] for line in goals(tmp_path)] == ["not measured"] * 3
    rows = {
        "ppo": [
            *(GPURow(part="ppo", model="rl_m", task="ppo", per_second=rate) for rate in (None, 9000.0, 12_000.0)),
            GPURow(part="ppo", model="SB3, NatureCNN", task="ppo", per_second=2000.0),
        ],
        "encoders": [
            GPURow(part="e", model=model, task="forward+backward", batch=batch, per_second=rate)
            for model, batch, rate in (("rl_m", 2048, 5e4), ("nature", 2048, 6e4), ("rl_m", 256, 1e3))
        ],
        "pong": [
            GPURow(part="pong", model="rl_s", task="learn Pong", score=score) for score in (None, 3.0, 18.5, 19.0)
        ],
    }
    for name, measured in rows.items():
        part = Part(name, "cpu", tmp_path / f"{name}.csv", 600, TINY)
        for row in measured:
            part.add(row)
    speed, step, pong = (line.rpartition(": ")[2] for line in goals(tmp_path))
    assert (speed, step) == ("12,000 timesteps/s, 6.0x", "1.20x") and pong == "0 s"


def test_cuda_is_refused_where_there_is_none(capsys, tmp_path):
    with pytest.raises(SystemExit) as refused:
        benchmark_gpu.main(["--device", "cuda:99", "--results-dir", str(tmp_path / "gpu")])
    assert refused.value.code == 2 and "CUDA" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


@pytest.mark.slow
def test_the_whole_command_runs_dry_on_the_cpu(tmp_path):
    parts = ["encoders", "ppo", "dqn", "pong"]  # the tests are run by pytest itself
    command = [sys.executable, str(ROOT / "experiments" / "benchmark_gpu.py"), *FLAGS.split()]
    command += ["--budget-seconds", "1200", "--results-dir", str(tmp_path), "--parts", *parts]
    subprocess.run(command, check=True, timeout=1200)
    rows = {part: rows_of(tmp_path / f"{part}.csv") for part in parts}
    assert {(row["model"], row["loop"]) for row in rows["ppo"]} == {
        ("SB3, NatureCNN", "sb3"), ("rl_s", "device"), ("rl_s", "sb3"),
    }  # fmt: skip
    for part in ("encoders", "ppo", "dqn"):
        assert all(row["per_second"] and not row["note"] for row in rows[part]), part
    for row in (*rows["ppo"], *rows["dqn"]):
        shares = float(row["env_fraction"]), float(row["learner_fraction"])
        assert min(shares) > 0 and sum(shares) <= 1
    steps = [int(row["timesteps"]) for row in rows["pong"]]
    assert steps == [16, 32, 48, 64]
    assert "torch" in (tmp_path / "machine.txt").read_text()
    assert "aten::" in (tmp_path / "profile.txt").read_text()
    assert len((tmp_path / "goals.txt").read_text().splitlines()) == 3
