"""The GPU benchmark without a GPU: every part runs, in tiny numbers, and leaves CSVs that are whole."""

import csv
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments import benchmark_gpu
from experiments.benchmarking.gpu import GPURow, Part, Sizes, run_encoders

ROOT = Path(__file__).resolve().parents[3]
TINY = Sizes(
    encoders=("rl_s", "nature"), forward_batches=(2,), train_batches=(2,), n_envs=(2,), n_steps=8, compiles=False,
    min_seconds=0.0,
)  # fmt: skip
FLAGS = "--sizes.encoders rl_s nature --sizes.forward-batches 2 --sizes.train-batches 2 --sizes.n-envs 2 "
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
    path = tmp_path / "x.csv"
    rows = 0
    for milliseconds in range(1, 100, 9):
        writer = multiprocessing.get_context("fork").Process(target=write_rows_for_ever, args=(path,))
        writer.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        written = rows_of(path)
        assert written and all(None not in row.values() and row["seconds"] and row["note"] == "y" for row in written)
        rows = max(rows, len(written))
    assert rows > 5


def write_rows_for_ever(path):
    part = Part("x", "cpu", path, 600, TINY)
    while True:
        part.add(GPURow(part="x", model="rl_s", task="forward", note="y"))


def test_what_overruns_is_ended_with_all_it_started(tmp_path):
    """As the tests of devices are: a process of a part's own."""
    command = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    assert not benchmark_gpu.finishes(["bash", "-c", command], 1.0)
    assert not psutil.pid_exists(pid := int((tmp_path / "pid").read_text())) or (
        psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    )
    assert benchmark_gpu.finishes(["true"], 60.0)


def test_a_part_ends_with_its_time(tmp_path):
    part = Part("encoders", "cpu", tmp_path / "x.csv", 0.0, TINY)
    run_encoders(part)
    assert part.rows == []


def test_pong_is_learned_with_the_fastest_setting_of_ours(tmp_path):
    part = Part("ppo", "cpu", tmp_path / "ppo.csv", 600, TINY)
    assert benchmark_gpu.fastest(tmp_path / "ppo.csv", TINY).n_envs == 2
    rates = {("SB3, NatureCNN", False): 9.0, ("rl_s", False): 2.0, ("rl_s", True): 3.0, ("nature", False): 1.0}
    for (model, compiled), rate in rates.items():
        row = GPURow(part="ppo", model=model, task="ppo", compiled=compiled, batch=8, n_envs=4, per_second=rate)
        part.add(row)
    best = benchmark_gpu.fastest(tmp_path / "ppo.csv", TINY)
    assert (best.model, best.compiled, best.batch, best.n_envs) == ("rl_s", True, 8, 4)


def test_cuda_is_refused_where_there_is_none(capsys, tmp_path):
    with pytest.raises(SystemExit) as refused:
        benchmark_gpu.main(["--device", "cuda:99", "--results-dir", str(tmp_path / "gpu")])
    assert refused.value.code == 2 and "GPU" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


@pytest.mark.slow
def test_the_whole_command_runs_dry_on_the_cpu(tmp_path):
    parts = ["encoders", "ppo", "dqn", "pong"]  # the tests are run by pytest itself
    command = [sys.executable, str(ROOT / "experiments" / "benchmark_gpu.py"), *FLAGS.split()]
    command += ["--budget-seconds", "1200", "--results-dir", str(tmp_path), "--parts", *parts]
    subprocess.run(command, check=True, timeout=1200)
    rows = {part: rows_of(tmp_path / f"{part}.csv") for part in parts}
    assert {row["model"] for row in rows["ppo"]} == {"SB3, NatureCNN", "rl_s", "nature"}
    for part in ("encoders", "ppo", "dqn"):
        assert all(row["per_second"] and not row["note"] for row in rows[part]), part
    for row in (*rows["ppo"], *rows["dqn"]):
        shares = float(row["env_fraction"]), float(row["learner_fraction"])
        assert min(shares) > 0 and sum(shares) <= 1
    steps = [int(row["timesteps"]) for row in rows["pong"]]
    assert steps == [16, 32, 48, 64]
    assert "torch" in (tmp_path / "machine.txt").read_text()
