"""What TensorBoard itself shows of runs that were killed, resumed, and met odd clocks; and whose files are changed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.monitor import load_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from agents.runs.event_file import EventFile, bytes_until, event_files
from agents.runs.folder import RunFolder
from agents.runs.logs import open_logs, rewind_logs
from agents.runs.session import find_resume, rewind
from mnv4_rl.safe_files import DamagedError
from tests.tensorboard_server import LOADERS, tensorboard

ROOT = Path(__file__).resolve().parents[3]
DAY = 86_400


def add(folder, steps, session=0.0):
    """A session's points, and the files it wrote."""
    before = set(event_files(folder))
    file = EventFile(folder)
    for step in steps:
        file.add({"score": step + session}, step)
    return set(event_files(folder)) - before


def go_on(folder, timesteps):
    with RunFolder(folder, resume=True) as run:
        rewind_logs(run, timesteps, 0)


def killed_three_times(folder):
    add(folder, range(1, 8))
    for session, (timesteps, last) in enumerate([(4, 9), (4, 6), (6, 8)], start=1):
        go_on(folder, timesteps)
        add(folder, range(timesteps + 1, last + 1), session / 10)


def clock_set_back(folder):
    now = time.time()
    for session in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda session=session: now - session * DAY)
            add(folder, range(10 * session, 10 * session + 3))


def killed_in_a_write(folder):
    (path,) = add(folder, range(1, 4))
    os.truncate(path, path.stat().st_size - 3)
    go_on(folder, 3)
    add(folder, range(3, 5), 0.5)


def started_over(folder):
    add(folder, range(1, 4))
    go_on(folder, -1)
    add(folder, range(1, 3), 0.5)


def dumped_twice(folder):
    with RunFolder(folder) as run:
        logger = open_logs(run)
        for value in (1.0, 2.0):
            logger.record("score", value)
            logger.dump(8)
        logger.close()


def evaluated_again(folder):
    """A session that only plays games: at the last timestep, which has been trained and partly evaluated."""
    add(folder, range(1, 4))
    for value in (0.5, 0.75):
        go_on(folder, 3)
        EventFile(folder).add({"score": 9.0, "eval": value, f"eval_{value}": value}, 3)
    go_on(folder, 3)
    add(folder, [4], 0.5)


SHOWN = {
    killed_three_times: [1, 2, 3, 4, 5.2, 6.2, 7.3, 8.3],
    clock_set_back: [0, 1, 2, 10, 11, 12, 20, 21, 22],
    killed_in_a_write: [1, 2, 3.5, 4.5],
    started_over: [1.5, 2.5],
    dumped_twice: [1],
    evaluated_again: [1, 2, 3, 4.5],
}


@pytest.fixture(scope="module", params=LOADERS)
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for write in SHOWN:
        (folder / write.__name__).mkdir()
        write(folder / write.__name__)
    with tensorboard(folder, request.param) as server:
        yield server


@pytest.mark.parametrize("run", SHOWN, ids=lambda run: run.__name__)
def test_tensorboard_shows_every_point_once_and_in_order(server, run):
    points = server.points("score", run.__name__)
    np.testing.assert_allclose([point.value for point in points], SHOWN[run], rtol=1e-6)
    for axis in ("step", "wall_time"):
        values = [getattr(point, axis) for point in points]
        assert values == sorted(values)


def test_a_session_that_only_evaluates_adds_what_is_missing(tmp_path):
    evaluated_again(tmp_path)
    shown = EventAccumulator(str(tmp_path)).Reload()
    points = {tag: [(point.step, point.value) for point in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    once = {"eval": [(3, 0.5)], "eval_0.5": [(3, 0.5)], "eval_0.75": [(3, 0.75)]}
    assert points == {"score": [(1, 1), (2, 2), (3, 3), (4, 4.5)], **once}
    written = [value.tag for path in event_files(tmp_path) for event in read(path) for value in event.summary.value]
    assert sorted(written) == sorted([*once, *["score"] * 4])


def read(path):
    return LegacyEventFileLoader(str(path)).Load()


COMMON = ["--game", "breakout", "--n-envs", "2", "--encoder", "nature", "--device", "cpu", "--threads", "1"]
COMMON += ["--evaluation-games", "0", "--total-timesteps", "1000000", "--checkpoint-every", "100"]
COMMANDS = {
    "ppo": ["--ppo.n-steps", "32", "--ppo.batch-size", "32", "--ppo.n-epochs", "1"],
    "dqn": ["--dqn.batch-size", "8", "--dqn.buffer-size", "500", "--dqn.learning-starts", "64"],
}


def kill_after_a_few_games(command, run):
    """SIGKILL once the run has played more games than before."""
    played = games(run)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while games(run) <= played + 4:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()


def games(run):
    monitor = run / "monitor.csv"
    return monitor.read_text().count("\n") if monitor.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("algo", COMMANDS)
def test_tensorboard_shows_the_games_of_a_run_that_was_killed_three_times(algo, tmp_path):
    run, command = tmp_path / "run", [sys.executable, str(ROOT / "experiments" / f"atari_{algo}.py")]
    for flags in ([*COMMON, *COMMANDS[algo], "--run-dir", str(run)], *[["--resume", str(run)]] * 3):
        kill_after_a_few_games([*command, *flags], run)
    with RunFolder(run, resume=True) as folder:
        rewind(folder, resume := find_resume(folder))  # what came after the last checkpoint is not the run's
    expected = load_results(str(run))["r"].to_list()
    assert resume.timesteps > 0 and len(expected) > 8
    for loader in LOADERS:
        with tensorboard(run, loader) as server:
            assert [point.value for point in server.points("score/game")] == expected
            for curve in server.curves()["."]:
                steps = [point.step for point in server.points(curve)]
                assert steps == sorted(set(steps)), curve


def test_what_is_kept_stays_byte_for_byte(tmp_path):
    (path,) = add(tmp_path, range(1, 9))
    before = path.read_bytes()
    go_on(tmp_path, 8)
    assert path.read_bytes() == before
    size = bytes_until(path, 5)
    go_on(tmp_path, 5)
    assert path.read_bytes() == before[:size] and bytes_until(path, 8) == size < len(before)


@pytest.mark.parametrize("make", [os.symlink, os.mkfifo], ids=["link", "pipe"])
@pytest.mark.parametrize("name", ["events.out.tfevents.0000000009.x.1.0", "monitor.csv", "progress.csv"])
def test_a_file_that_is_none_refuses_the_resume_and_nothing_changes(tmp_path, make, name):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("precious\n")
    (path,) = add(run, range(1, 9))
    before = path.read_bytes()
    make(*([victim] if make is os.symlink else []), run / name)
    with pytest.raises(DamagedError):
        go_on(run, 4)
    assert victim.read_text() == "precious\n" and path.read_bytes() == before


def test_what_is_no_event_file_is_read_without_harm(tmp_path):
    """A record that claims more bytes than there are, and bytes that are none."""
    (path,) = add(tmp_path, [1, 2])
    good = path.read_bytes()
    first = bytes_until(path, 1)
    damaged = {b"": 0, b"\xff" * 100: 0, b"\0" * 10_000: 0, good[:20]: 0, good[:-1]: first, good[:first]: first}
    for content, whole in damaged.items():
        path.write_bytes(content)
        assert bytes_until(path, 10) == whole
