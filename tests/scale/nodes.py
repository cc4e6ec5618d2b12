"""Machines that are none: Ray's simulated cluster on one machine, and what may happen to its parts."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

os.environ["RAY_worker_niceness"] = "0"  # read when Ray starts: its workers would wait for everything else here

from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 100 * 10**6, "include_dashboard": False}
PATIENCE_SECONDS = 3600.0  # of a machine that does other things too
TINY = "--n-envs 2 --ppo.n-steps 64 --ppo.batch-size 64 --ppo.n-epochs 1 --device cpu"


@contextmanager
def cluster(n_nodes: int) -> Iterator[Cluster]:
    """A cluster of nodes with a CPU each, on the cores of this machine; the driver is on the first."""
    made = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        for _ in range(n_nodes - 1):
            made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()


def start(script: str, *flags: str) -> subprocess.Popen[str]:
    """Start a command of the checkout as a driver of its own."""
    command = [sys.executable, str(ROOT / "experiments" / script), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """What a command printed, once it has ended well."""
    printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, printed
    return printed


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> object:
    """What a function finds in the end, while a command runs."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (value := found()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.05)
    return value


def running(folders: Path) -> list[tuple[Path, int]]:
    """Run folders with a checkpoint that a live process writes to, and its id."""
    found = []
    for lock in sorted(folders.glob("*/run.lock")):
        try:
            pid = json.loads(lock.read_text())["pid"]
        except (OSError, ValueError):  # of a run that ends or begins now
            continue
        if newest(lock.parent) and psutil.pid_exists(pid):
            found.append((lock.parent, pid))
    return found


def newest(run: Path) -> int:
    """Timestep of a run's newest checkpoint, 0 without one."""
    return max((int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()), default=0)


def kill(pid: int) -> None:
    """End a process as a machine's loss of power would, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    gone(pid)


def gone(pid: int) -> None:
    """Wait until a process is gone."""
    until = time.monotonic() + PATIENCE_SECONDS
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, f"process {pid} lives on"
        time.sleep(0.05)


def logged(run: Path) -> list[int]:
    """Timesteps of a run's log, in its order."""
    with (run / "progress.csv").open(newline="") as file:
        return [int(row["time/total_timesteps"]) for row in csv.DictReader(file)]


def games(run: Path) -> list[list[str]]:
    """Score, length and environment of each game in a run's monitor file, in its order."""
    with (run / "monitor.csv").open(newline="") as file:
        next(file)
        return [[row["r"], row["l"], row["env"]] for row in csv.DictReader(file)]
