"""A full disk costs rows, points and checkpoints, each with a warning; what was there stays, and training goes on."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.monitor import load_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.runs.event_file import EventFile, event_files
from agents.runs.logs import ProgressCsv, read_rows
from mnv4_rl.episode_log import EpisodeLog

ROOT = Path(__file__).resolve().parents[3]
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's device that is always full")


class FullDisk:
    """While entered, the kernel refuses what this process writes to its open file ``path``."""

    def __init__(self, path):
        links = {fd: os.path.realpath(f"/proc/self/fd/{fd}") for fd in map(int, os.listdir("/proc/self/fd"))}
        self.fd = next(fd for fd, target in links.items() if target == str(path))

    def __enter__(self):
        self.kept = os.dup(self.fd)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, self.fd)
        os.close(full)

    def __exit__(self, *_error):
        os.dup2(self.kept, self.fd)
        os.close(self.kept)


@needs_dev_full
def test_games_finished_on_a_full_disk_are_in_the_monitor_file_once_there_is_room(tmp_path):
    log = EpisodeLog(1, "pong", tmp_path / "x")

    def finish(score):
        log.add(np.array([score]))
        log.finish(0)

    finish(1)
    with FullDisk(tmp_path / "x.monitor.csv"):
        for score in (2, 3):
            with pytest.warns(RuntimeWarning, match=r"x.monitor.csv could not be written for now: .*No space left"):
                finish(score)
    finish(4)
    log.close()
    assert list(load_results(str(tmp_path))["r"]) == [1, 2, 3, 4]


@contextmanager
def room_for(n_bytes):
    """No file of this process grows beyond a size; a write that would is cut short, as on a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("bytes_of_the_row", [0, 1, 10])
def test_curves_go_on_after_a_full_disk(tmp_path, bytes_of_the_row):
    progress, events = ProgressCsv(tmp_path / "progress.csv"), EventFile(tmp_path)
    for output, path in ((progress, tmp_path / "progress.csv"), (events, None)):
        output.write({"score": 1.5}, {}, 1)
        (path,) = [path] if path else event_files(tmp_path)
        with room_for(path.stat().st_size + bytes_of_the_row), pytest.warns(RuntimeWarning, match=path.name):
            output.write({"score": 2.123456789012}, {}, 2)
        output.write({"score": 3.5}, {}, 3)
    assert [row["score"] for row in read_rows(tmp_path / "progress.csv")] == ["1.5", "3.5"]
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("score")
    assert [(point.step, point.value) for point in points] == [(1, 1.5), (3, 3.5)]


@pytest.mark.slow
def test_a_model_that_cannot_be_saved_ends_the_run_with_one_line_and_resuming_saves_it(tmp_path):
    """A limit on the size of files stands in for the disk: checkpoints and model.zip are the large ones."""
    command, run = [sys.executable, str(ROOT / "experiments" / "atari_ppo.py")], tmp_path / "run"
    flags = ["--n-envs", "2", "--ppo.n-steps", "8", "--ppo.batch-size", "8", "--total-timesteps", "48"]
    flags += ["--checkpoint-every", "16", "--evaluation-games", "0", "--threads", "1", "--device", "cpu"]
    limit = 1_000_000

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = subprocess.run(
        [*command, *flags, "--run-dir", str(run)], preexec_fn=small_files, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "the checkpoint at timestep 16 failed" in ended.stderr
    assert "training goes on" in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert "model.zip cannot be written" in last
    assert "there is no checkpoint. Make room, then go on with --resume" in last
    assert "Traceback" not in ended.stderr
    assert not list(run.glob("model*"))
    subprocess.run([*command, "--resume", str(run)], check=True, capture_output=True)
    assert (run / "model.zip").exists()
