"""Ctrl-C, SIGTERM and memory that is out end a training command with one line, whenever they come."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch as th
from stable_baselines3 import PPO

from agents.runs.config import PPOConfig
from experiments import atari_ppo, custom_env, export_agent, publish_agent, watch

ROOT = Path(__file__).resolve().parents[2]
TINY = "--n-envs 2 --total-timesteps 32 --checkpoint-every 16 --encoder rl_s --evaluation-games 1 --device cpu "
TINY += "--threads 1 --ppo.n-steps 8 --ppo.batch-size 16 --ppo.n-epochs 1"


def ended(folder, capsys, *flags):
    """Exit code and last line of a command in this process."""
    with pytest.raises(SystemExit) as left:
        atari_ppo.main([*TINY.split(), "--run-dir", str(folder), *flags])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return left.value.code, (said.out + said.err).strip().splitlines()


@pytest.fixture(autouse=True)
def _own_handlers():
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_before_training_nothing_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PPOConfig, "build", interrupt)
    code, lines = ended(tmp_path / "run", capsys)
    assert code == 130 and "interrupted" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_in_the_last_evaluation_the_model_is_there_and_resuming_plays_the_games(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("agents.runs.session.evaluate_and_log", interrupt)
        code, lines = ended(tmp_path / "run", capsys)
    assert code == 130 and any("interrupted after 32 timesteps" in line for line in lines)
    assert (tmp_path / "run" / "model.zip").exists() and not (tmp_path / "run" / "evaluation.json").exists()
    monkeypatch.setattr("agents.runs.evaluation_log.CLIP_TIMESTEPS", 2)
    monkeypatch.setattr("agents.runs.session.evaluate_and_log", lambda *_: pytest.fail("reached"))
    with pytest.raises(pytest.fail.Exception, match="reached"):
        atari_ppo.main(["--resume", str(tmp_path / "run")])


def test_while_the_model_is_saved_nothing_half_written_stays(tmp_path, capsys, monkeypatch):
    def half(_model, file, *_):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(PPO, "save", half)
    code, lines = ended(tmp_path / "run", capsys)
    assert code == 130 and "interrupted" in lines[-1]
    assert not [path for path in (tmp_path / "run").iterdir() if "model" in path.name or "partial" in path.name]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9.1 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory\nmore"),
        th.OutOfMemoryError("CUDA out of memory."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_is_out_is_one_line_and_checkpoints_stay(error, tmp_path, capsys, monkeypatch):
    train, calls = PPO.train, []

    def out_of_memory(model):
        calls.append(model.num_timesteps)
        if len(calls) == 2:
            raise error
        train(model)

    monkeypatch.setattr(PPO, "train", out_of_memory)
    code, lines = ended(tmp_path / "run", capsys)
    assert code == 2 and lines[-1].startswith("error: memory is out") and "000000016" in lines[-1]


@pytest.mark.parametrize(
    ("command", "busy", "flags"),
    [
        (custom_env, "train", ["--run-dir", "run"]),
        (watch, "load_run", ["run", "--no-window"]),
        (export_agent, "load_run", ["run"]),
        (publish_agent, "read_finished", ["--run", "run"]),
    ],
)
def test_of_other_commands_too(command, busy, flags, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, busy, interrupt)
    with pytest.raises(SystemExit) as left:
        command.main(flags)
    assert left.value.code == 130 and capsys.readouterr().err.endswith("interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["imports", "run.lock", "config.yml", "progress.csv", "three times"])
def test_at_any_moment_of_the_real_command(moment, stop, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "experiments" / "atari_ppo.py"), "--run-dir", str(run), *TINY.split()]
    process = subprocess.Popen(
        [*command, "--total-timesteps", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    name = {"three times": "progress.csv"}.get(moment, moment)
    while moment != "imports" and not (run / name).exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1.5 if moment == "imports" else 0)
    for _ in range(3 if moment == "three times" else 1):
        process.send_signal(stop)
        time.sleep(0.1)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in out + err and "Traceback" not in err
    assert not [path for path in run.rglob("*") if path.name.endswith(".partial")]
