"""A run whose output is full, closed or gone ends as any other: its files, its model, its exit code."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BROKEN = {
    "full": "> /dev/full 2>&1",
    "stderr full": "2> /dev/full",
    "reader gone": "2>&1 | head -c 1 > /dev/null",
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "both closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
}
pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's device that is always full")

# It reads output.py by itself: the packages around it take seconds to import.
SPEAKER = f"""
import os, signal, sys, time, warnings
from tqdm import tqdm
sys.path.insert(0, {str(ROOT / "agents" / "runs")!r})
from output import courteous_output, tell_at_once

@courteous_output()
def main():
    signal.signal(signal.SIGTERM, lambda *_: tell_at_once("stopping"))
    with open("file", "w") as file:
        for _ in tqdm(range(100), mininterval=0):
            print("x" * 1000)
            print("x" * 1000, file=sys.stderr, flush=True)
        warnings.warn("careful")
        os.kill(os.getpid(), signal.SIGTERM)
        for descriptor in map(int, sys.argv[1:]):
            os.write(descriptor, b"of a C library")
        time.sleep(0.05)
        print("done")
        file.write("whole")
    sys.exit(7)

main()
"""


def shell(words, output, cwd):
    """Run a command with its output redirected; its own exit code."""
    line = f'{{ "$@"; echo $? > "{cwd}/code"; }} {output}'
    subprocess.run(["bash", "-c", line, "bash", *map(str, words)], cwd=cwd, check=False)
    return int((cwd / "code").read_text())


@pytest.mark.parametrize("output", BROKEN.values(), ids=BROKEN)
def test_nothing_that_is_said_ends_a_command(output, tmp_path):
    assert shell([sys.executable, "-c", SPEAKER], output, tmp_path) == 7
    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize("output", [text for name, text in BROKEN.items() if "closed" in name])
def test_a_file_never_gets_the_place_of_a_closed_output(output, tmp_path):
    assert shell([sys.executable, "-c", SPEAKER, 1, 2], output, tmp_path) == 7
    assert (tmp_path / "file").read_text() == "whole"


def test_output_that_works_is_shown_once_and_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", SPEAKER], cwd=tmp_path, capture_output=True)
    assert done.stdout.count(b"x") == 100_000 and done.stdout.endswith(b"done\n")
    assert b"careful" in done.stderr and b"stopping" in done.stderr and b"100/100" in done.stderr


FLAGS = ["--n-envs", "2", "--ppo.n-steps", "8", "--ppo.batch-size", "8", "--encoder", "nature", "--threads", "1"]
FLAGS += ["--device", "cpu", "--game", "breakout", "--evaluation-games", "1", "--checkpoint-every", "16"]


@pytest.mark.slow
@pytest.mark.parametrize("output", BROKEN.values(), ids=BROKEN)
def test_a_run_leaves_everything_behind_whatever_becomes_of_its_output(output, tmp_path):
    command = [sys.executable, ROOT / "experiments" / "atari_ppo.py", "--run-dir", tmp_path / "run", *FLAGS]
    assert shell([*command, "--total-timesteps", "48"], output, tmp_path) == 0
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.zip", "evaluation.json", "monitor.csv", "progress.csv"} <= left and "run.lock" not in left
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())][-1] == "000000048"
    assert (tmp_path / "run" / "monitor.csv").read_text()[0] == "#"


@pytest.mark.slow
@pytest.mark.parametrize("output", [BROKEN["full"], BROKEN["all closed"]], ids=["full", "all closed"])
def test_a_run_stopped_by_a_signal_leaves_a_checkpoint_whatever_becomes_of_its_output(output, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, ROOT / "experiments" / "atari_ppo.py", "--run-dir", run, *FLAGS]
    line = f'"$@" --total-timesteps 100000000 {output} & echo $! > pid; wait $!; echo $? > code'
    with subprocess.Popen(["bash", "-c", line, "bash", *map(str, command)], cwd=tmp_path) as process:
        while not list(run.glob("checkpoints/*")):
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(int((tmp_path / "pid").read_text()), 15)
    assert int((tmp_path / "code").read_text()) == 130
    assert (run / "model.zip").exists()
