"""The real command with tiny flags: what it leaves behind, and what it says to a user's mistake."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import load_results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import atari_ppo
from mnv4_rl.atari import make_atari_env
from mnv4_rl.models.registry import DEFAULT_VARIANT

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--n-envs", "4", "--ppo.n-steps", "32", "--ppo.batch-size", "64", "--ppo.n-epochs", "1", "--threads", "1"]


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "experiments" / "atari_ppo.py"), *flags]


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True, scope="module")
def short_games():
    """Whole games that end within a few hundred timesteps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.runs.families.make_atari_env", partial(make_atari_env, max_episode_frames=400))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, short_games):
    """A Breakout run."""
    folder = tmp_path_factory.mktemp("runs") / "breakout"
    flags = ["--game", "Breakout", "--total-timesteps", "600", "--evaluation-games", "1", "--run-dir", str(folder)]
    atari_ppo.main([*flags, *TINY])
    return folder


def test_run_folder_explains_itself(run):
    config = yaml.safe_load((run / "config.yml").read_text())
    assert (config["game"], config["encoder"], config["ppo"]["n_steps"]) == ("Breakout", DEFAULT_VARIANT, 32)
    versions = (run / "versions.txt").read_text()
    assert "stable-baselines3: " in versions and "commit: " in versions
    assert (run / "command.txt").read_text().strip()


def test_monitor_holds_raw_scores_of_whole_games(run):
    games = load_results(str(run))
    assert len(games) > 0
    assert (games["r"] >= 0).all() and games["l"].sum() <= 600 + 4 * 32


def test_tensorboard_has_sb3_keys_and_ours(run):
    events = EventAccumulator(str(run))
    events.Reload()
    keys = set(events.Tags()["scalars"])
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/loss", "train/approx_kl"} <= keys
    assert {"score/game", "time/env_fraction", "time/learner_fraction", "eval/mean_reward"} <= keys
    games = load_results(str(run))
    assert [event.value for event in events.Scalars("score/game")] == pytest.approx(games["r"].tolist())


def test_progress_steps_strictly_increase(run):
    with (run / "progress.csv").open() as file:
        steps = [int(row["time/total_timesteps"]) for row in csv.DictReader(file) if row["time/total_timesteps"]]
    assert steps == sorted(set(steps)) and steps[-1] >= 600


def test_saved_model_loads_and_plays(run):
    env = make_atari_env("breakout", n_envs=2)
    actions, _ = PPO.load(run / "model.zip", device="cpu").predict(env.reset(), deterministic=True)
    assert env.action_space.contains(actions[0])
    env.close()


def test_evaluation_is_of_whole_games(run):
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["games"] == len(evaluation["scores"]) == 1


def test_run_stopped_in_its_evaluation_only_evaluates_when_resumed(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "evaluation.json").unlink()
    atari_ppo.main(["--resume", str(copy)])
    assert json.loads((copy / "evaluation.json").read_text())["games"] == 1
    assert (copy / "progress.csv").read_text() == (run / "progress.csv").read_text()


def test_folder_with_a_run_is_refused_and_left_alone(run, capsys):
    before = files_in(run)
    with pytest.raises(SystemExit) as refused:
        atari_ppo.main(["--run-dir", str(run), *TINY])
    assert refused.value.code == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == files_in(run)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--game", "pongg"], "pong"),
        (["--encoder", "rl-s"], "Did you mean 'rl_s'"),
        (["--total-timesteps", "0"], "total_timesteps must lie in [1, 1e+12], got 0"),
        (["--n-envs", "-1"], "n_envs must lie in [1, 4096], got -1"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:99"], "CUDA devices here"),
        (["--threads", "0"], "threads must lie in [1, 1024], got 0"),
        (["--eval-every", "9", "--evaluation-games", "0"], "eval_every=9 needs games to play"),
        (["--evaluation-games", "-1"], "evaluation_games must lie in [0, inf), got -1"),
        (["--ppo.schedule-timesteps", "0"], "schedule_timesteps must lie in"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing_behind(flags, message, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as refused:
        atari_ppo.main([*TINY, "--run-dir", str(folder), *flags])
    assert refused.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (folder / "config.yml").exists()


def test_help_gives_every_flag_its_unit(capsys):
    with pytest.raises(SystemExit):
        atari_ppo.main(["--help"])
    text = capsys.readouterr().out
    for words in ("Agent timesteps (decisions) to train", "Games played side by side", "CPU threads"):
        assert words in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_interrupt_saves_the_model_and_says_where(stop, tmp_path):
    folder = tmp_path / "my run"
    process = subprocess.Popen(
        command("--total-timesteps", "1000000", "--run-dir", str(folder), *TINY),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    progress = folder / "progress.csv"
    while not (progress.exists() and progress.read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in out and "model.zip" in out and "Traceback" not in err
    assert "tensorboard --logdir .\n" in out
    assert re.search(r"^go on with   python \S+atari_ppo\.py --resume 'my run'$", out, re.MULTILINE)
    assert PPO.load(folder / "model.zip", device="cpu").num_timesteps > 0
