"""A race on Ray: lost nodes, killed workers and a killed driver cost time and nothing else; `make test-ray`.

Not collected by the other targets, whose environment has no Ray.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from experiments import report
from experiments.racing.results import COLUMNS, read_races, write_race
from tests.scale.nodes import ROOT, TINY, cluster, finish, games, gone, kill, logged, newest, running, start, wait_for

GAMES = ("asterix", "breakout", "road_runner")  # at random their games last a few hundred timesteps
TIMESTEPS, ROLLOUT, CHECKPOINT = 1024, 128, 256
CLOCKS = [column for column in COLUMNS if column.endswith("_seconds")]
# Stops a run at a checkpoint, in a process as race.py starts one.
STOP = """
import sys
from pathlib import Path
from agents.runs import train_run
from experiments.racing.planning import RaceConfig, family_defaults, plan
from experiments.cli.command import parse
name, at, *flags = sys.argv[1:]
(run,) = [run for run in plan(parse(RaceConfig, flags)) if run.folder.name == name]
outcome = train_run(run.config(), lambda _folder, timesteps, _score: timesteps < int(at), quiet=True)
assert not outcome.finished and outcome.timesteps == int(at), outcome
"""


def flags(folder: Path, name: str, games=GAMES, seeds=(0, 1), timesteps=TIMESTEPS, every=CHECKPOINT) -> list[str]:
    places = ["--race-dir", str(folder / "races"), "--results-dir", str(folder / "results")]
    cells = ["--encoders", "nature", "rl_s", "--games", *games, "--seeds", *map(str, seeds)]
    length = ["--total-timesteps", str(timesteps), "--checkpoint-every", str(every)]
    return ["--name", name, *cells, *length, *places, *TINY.split()]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A race on three nodes, of which one is removed, with one worker killed: where it is, and what was lost when."""
    folder, lost = tmp_path_factory.mktemp("ray"), {}
    races = folder / "races" / "r"
    with cluster(3) as nodes:
        driver = start("race.py", *flags(folder, "r"), "--engine", "ray", "--address", nodes.address)
        removed = nodes.list_all_nodes()[-1]
        raylet = removed.all_processes["raylet"][0].process.pid

        def on(there: bool):
            return [(run, pid) for run, pid in running(races) if (psutil.Process(pid).ppid() == raylet) == there]

        (run, pid), *_ = wait_for(lambda: on(True), driver)
        nodes.remove_node(removed, allow_graceful=False)
        gone(pid)
        lost[run.name] = newest(run)
        (run, pid), *_ = wait_for(lambda: [(run, pid) for run, pid in on(False) if run.name not in lost], driver)
        kill(pid)
        lost[run.name] = newest(run)
        printed = finish(driver)
    assert "12 of 12 runs finished" in printed
    return folder, lost


def test_no_curve_has_a_gap_or_a_repeat(disturbed):
    folder, lost = disturbed
    runs = sorted((folder / "races" / "r").glob("*/"))
    assert len(runs) == 12 and len(lost) == 2 and all(CHECKPOINT <= at < TIMESTEPS for at in lost.values())
    for run in runs:
        assert logged(run) == list(range(ROLLOUT, TIMESTEPS + 1, ROLLOUT)), run
        sessions = (run / "command.txt").read_text().splitlines()
        assert len(sessions) == 1 + (run.name in lost), sessions
        assert len(list((run / "checkpoints").iterdir())) <= 3


def test_the_report_is_that_of_the_same_race_by_processes(disturbed, tmp_path):
    """What was lost is stopped at the same checkpoints there: emulators start new games where a run goes on."""
    folder, lost = disturbed
    for name, at in lost.items():
        stop = [sys.executable, "-c", STOP, name, str(at), *flags(tmp_path, "r")]
        subprocess.run(stop, cwd=ROOT, check=True)
    finish(start("race.py", *flags(tmp_path, "r"), "--jobs", "2"))
    for run in (tmp_path / "races" / "r").glob("*/"):
        assert games(run) == games(folder / "races" / "r" / run.name), run.name
    reported = [_report(where, tmp_path / f"report{number}") for number, where in enumerate((folder, tmp_path))]
    assert reported[0] == reported[1] and len(reported[0]) == 5


def _report(folder: Path, results: Path) -> dict[str, bytes]:
    """The report's files, of curves in which the timesteps are every clock."""
    runs = read_races([folder / "results" / "race_r.csv"])
    assert len(runs) == 12
    for run in runs:
        for clock in CLOCKS:
            run.clock(clock)[:] = run.clock("timesteps")
    results.mkdir()
    write_race(results / "race_r.csv", sorted(runs, key=lambda run: run.name), [])
    cells = ["--encoders", "nature", "rl_s", "--games", *GAMES, "--seeds", "0", "1"]
    report.main(["--races", str(results / "race_r.csv"), *cells, "--name", "r", "--results-dir", str(results)])
    written = [path for path in results.iterdir() if path.name != "race_r.csv"]
    return {
        path.name: path.read_bytes().replace(bytes(results), b"") for path in written
    }  # the table names its command


def test_a_killed_driver_takes_its_runs_with_it_and_the_same_command_goes_on(tmp_path):
    races = tmp_path / "races" / "r"
    command = [*flags(tmp_path, "r", GAMES[1:2], (0,)), "--engine", "ray"]
    driver = start("race.py", *command)
    (first, worker), *_ = wait_for(lambda: running(races), driver)
    kill(driver.pid)
    driver.wait()
    gone(worker)
    at = newest(first)
    assert at < TIMESTEPS and "1 of 2" not in driver.stdout.read()
    assert "2 of 2 runs finished" in finish(start("race.py", *command))
    for run in races.glob("*/"):
        assert logged(run) == list(range(ROLLOUT, TIMESTEPS + 1, ROLLOUT))
    before = {path: path.stat().st_mtime_ns for path in races.rglob("*") if path.is_file() and path.name != "lock"}
    assert "2 runs, 2 of them finished" in finish(start("race.py", *command))
    assert before == {path: path.stat().st_mtime_ns for path in races.rglob("*") if path in before}


def test_ctrl_c_lets_the_runs_save(tmp_path):
    races = tmp_path / "races" / "r"
    driver = start("race.py", *flags(tmp_path, "r", GAMES[1:2], (0,), 10**6, 0), "--engine", "ray")
    wait_for(lambda: any(logged(log.parent) for log in races.glob("*/progress.csv")), driver)
    driver.send_signal(signal.SIGINT)
    printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130 and "the same command goes on" in printed, printed
    (run,) = races.glob("*/")
    assert newest(run) >= ROLLOUT and not (run / "run.lock").exists()


def test_a_run_that_cannot_go_on_fails_alone_and_says_why(tmp_path):
    races = tmp_path / "races" / "r"
    command = [*flags(tmp_path, "r", GAMES[1:2], (0,), 512), "--engine", "ray", "--jobs", "2"]
    broken = races / "breakout__nature__s0"
    broken.mkdir(parents=True)
    (broken / "model.zip").write_text("of somebody else")
    driver = start("race.py", *command)
    printed, _ = driver.communicate()
    assert driver.returncode == 1 and "1 of 2 runs finished" in printed and "breakout__nature__s0.log" in printed
    assert "already holds model.zip" in broken.with_suffix(".log").read_text()
    assert (broken / "model.zip").read_text() == "of somebody else"


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    driver = start("race.py", *flags(tmp_path, "r"), "--engine", "ray", "--address", "127.0.0.1:1")
    printed, _ = driver.communicate(timeout=300)
    errors = [line for line in printed.splitlines() if line.startswith("error: Ray at 127.0.0.1:1 ")]
    assert driver.returncode == 2 and len(errors) == 1 and "Traceback" not in printed, printed


def test_a_run_that_fits_on_no_machine_is_one_line(tmp_path):
    driver = start("race.py", *flags(tmp_path, "r"), "--engine", "ray", "--gpus-per-run", "99")
    printed, _ = driver.communicate(timeout=300)
    assert driver.returncode == 2 and "\nerror: No machine" in printed and "99 GPU" in printed, printed
