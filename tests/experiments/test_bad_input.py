"""Every command meets a user's mistake: one clear line, a code that is not 0, and nothing on disk changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from gymnasium import spaces

from agents.dqn import DQNHyperparameters
from agents.ppo import PPOHyperparameters
from agents.runs.checkpoints import CHECKPOINTS
from agents.runs.lock import RunLock
from experiments import (
    atari_dqn,
    atari_ppo,
    benchmark,
    benchmark_gpu,
    classify,
    copy_agent,
    custom_env,
    draw_network,
    encoder_study,
    export_agent,
    publish,
    publish_agent,
    push_agent,
    race,
    report,
    search,
    watch,
)
from mnv4_rl import MNV4Extractor
from tests.run_folders import write_config

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--n-envs", "2", "--ppo.n-steps", "8", "--ppo.batch-size", "16", "--ppo.n-epochs", "1", "--threads", "1"]
TINY += ["--encoder", "rl_s", "--evaluation-games", "0", "--device", "cpu", "--total-timesteps", "32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short PPO run with two checkpoints, as the command leaves it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    atari_ppo.main([*TINY, "--game", "pong", "--checkpoint-every", "16", "--run-dir", str(folder)])
    return folder


def furnish(folder: Path, trained: Path) -> Path:
    """Put a trained run, a file and an empty folder into a working directory."""
    shutil.copytree(trained, folder / "run")
    (folder / "file").write_text("a result")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A working directory of a test's own; commands' defaults land in it."""
    monkeypatch.chdir(tmp_path)
    return furnish(tmp_path, trained)


@pytest.fixture(scope="module")
def shared_place(trained, tmp_path_factory):
    """A working directory that nothing changes."""
    return furnish(tmp_path_factory.mktemp("shared"), trained)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(main: Callable[..., object], args: list[str], says: str, place: Path, capsys) -> None:
    """The command ends with one line that says it, and changes no file."""
    before = contents(place)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(args)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert "Traceback" not in error
    check_says(error, says)
    assert contents(place) == before


def check_says(error: str, says: str) -> None:
    """The last line is the command's, or it is the box tyro draws around a flag that it cannot parse."""
    last = error.strip().splitlines()[-1]
    if "For full helptext" in error:
        assert says in " ".join(error.replace("│", " ").split())
    else:
        assert last.startswith("error: ") and says in last
        assert sum(line.startswith("error: ") for line in error.splitlines()) == 1


class Mistake(NamedTuple):
    """A wrong invocation.

    Attributes:
        command: The command's module.
        args: Its flags, as one line.
        says: Words of the refusal.
    """

    command: ModuleType
    args: str
    says: str


PPO, DQN = "--run-dir new", "--run-dir new --n-envs 1 --encoder nature --device cpu --threads 1"
REPORT, PUBLISH = "--name r --results-dir out", "--name p --results-dir out"
RACE, BENCHMARK = "--name r --race-dir races --results-dir out", "--results-dir out --devices cpu"

MISTAKES = [
    # flags
    Mistake(atari_ppo, f"{PPO} --gama 0.9", "--gama"),
    Mistake(atari_ppo, f"{PPO} --n-envs many", "many"),
    Mistake(atari_ppo, f"{PPO} --device cpu --loop captured", "GPU"),
    Mistake(atari_ppo, f"{PPO} --n-envs", "--n-envs"),
    Mistake(atari_dqn, f"{DQN} --algo ddpg", "ddpg"),
    Mistake(race, "--encoders nature", "--name"),
    Mistake(watch, "", "equired"),
    Mistake(copy_agent, "--updates 0", "updates"),
    Mistake(copy_agent, "--timesteps 2", "timesteps"),
    Mistake(copy_agent, "--seeds -1", "seeds"),
    Mistake(copy_agent, "--encoders nature nature", "none twice"),
    # games, encoders, devices
    Mistake(atari_ppo, f"{PPO} --game pongg", "Did you mean 'pong'"),
    Mistake(copy_agent, "--game pongg", "Did you mean 'pong'"),
    Mistake(copy_agent, "--encoders natur", "nature"),
    Mistake(copy_agent, "--game qbert", "has no agent of qbert"),
    Mistake(copy_agent, "--agent nowhere", "nowhere"),
    Mistake(atari_ppo, f"{PPO} --game Pong-ramNoFrameskip-v4", "observes the console's RAM"),
    Mistake(atari_ppo, f"{PPO} --game warlords", "two players"),
    Mistake(atari_dqn, f"{DQN} --encoder resnet50", "resnet50"),
    Mistake(atari_dqn, f"{DQN} --device cuda:x", "device must be auto, cpu, cuda or cuda:N"),
    # negative and absurd numbers
    Mistake(atari_ppo, f"{PPO} --total-timesteps -1", "total_timesteps must lie in [1, 1e+12], got -1"),
    Mistake(atari_ppo, f"{PPO} --total-timesteps {'9' * 400}", "total_timesteps must lie in"),
    Mistake(atari_ppo, f"{PPO} --n-envs 1000000000", "n_envs must lie in [1, 4096]"),
    Mistake(atari_ppo, f"{PPO} --seed -1", "seed must lie in [0, 2e+09], got -1"),
    Mistake(atari_ppo, f"{PPO} --threads 1000000", "threads must lie in [1, 1024]"),
    Mistake(atari_ppo, f"{PPO} --keep-checkpoints 0", "keep_checkpoints must lie in"),
    Mistake(atari_ppo, f"{PPO} --eval-every 10 --evaluation-games 0", "give evaluation_games too"),
    Mistake(atari_ppo, f"{PPO} --ppo.learning-rate nan", "learning_rate must lie in [0, inf), got nan"),
    Mistake(atari_ppo, f"{PPO} --ppo.batch-size 0", "batch_size must lie in [2, inf), got 0"),
    Mistake(atari_ppo, f"{PPO} --ppo.batch-size 2000", "batch_size=2000 is more than the 1024 samples of a rollout"),
    Mistake(atari_ppo, f"{PPO} --ppo.gamma 2", "gamma must lie in [0, 1], got 2"),
    Mistake(atari_ppo, f"{PPO} --ppo.clip-range -0.1", "clip_range must lie in"),
    Mistake(atari_ppo, f"{PPO} --ppo.n-epochs 0", "n_epochs must lie in"),
    Mistake(atari_ppo, f"{PPO} --ppo.max-grad-norm 0", "max_grad_norm must lie in (0, inf), got 0"),
    Mistake(atari_dqn, f"{DQN} --dqn.batch-size -1", "batch_size must lie in"),
    Mistake(atari_dqn, f"{DQN} --dqn.batch-size 200000", "batch_size=200000 is more than buffer_size=100000"),
    Mistake(atari_dqn, f"{DQN} --dqn.exploration-fraction 0", "exploration_fraction must lie in (0, 1]"),
    Mistake(atari_dqn, f"{DQN} --total-timesteps 50000", "learning_starts=100,000 leaves no update"),
    Mistake(atari_ppo, f"{PPO} --precision fp16", "precision"),
    Mistake(encoder_study, "--results-dir out", "is not there; write it first with --steps"),
    Mistake(atari_dqn, f"{DQN} --dqn.train-freq 0", "train_freq must lie in"),
    Mistake(atari_dqn, f"{DQN} --dqn.gamma nan", "gamma must lie in [0, 1], got nan"),
    Mistake(classify, "--run-dir new --batch-size 0", "batch_size must lie in"),
    Mistake(classify, "--run-dir new --image-size 1000000000", "use a smaller --image-size"),
    Mistake(race, f"{RACE} --seeds 0 -1", "seeds must lie in"),
    Mistake(race, f"{RACE} --ppo.gamma 2", "gamma must lie in [0, 1]"),
    Mistake(custom_env, "--run-dir new --n-envs 1000000000", "n_envs must lie in"),
    Mistake(custom_env, "--run-dir new --threads 0", "threads must lie in"),
    Mistake(custom_env, "--run-dir new --encoder nature nature", "none twice"),
    Mistake(benchmark, f"{BENCHMARK} --threads 0", "threads must lie in"),
    Mistake(benchmark, f"{BENCHMARK} --agents rl_s nature", "others than nature"),
    Mistake(benchmark, f"{BENCHMARK} --agents rl_s rl_s", "none twice"),
    Mistake(benchmark, f"{BENCHMARK} --min-seconds nan", "min_seconds must lie in"),
    Mistake(benchmark, f"{BENCHMARK} --frame-sizes 84 35", "frame_sizes must be at least 36"),
    Mistake(watch, "run --no-window --seed -1", "seed must lie in"),
    Mistake(publish, f"{PUBLISH} --runs run --points -2", "points must be"),
    # folders and files
    Mistake(atari_ppo, "--run-dir file", "file is a file; name a new folder"),
    Mistake(atari_ppo, "--run-dir file/below", "file/below cannot be made (Not a directory); name another one"),
    Mistake(atari_ppo, "--run-dir run", "already holds a run. Go on with it by --resume"),
    Mistake(atari_ppo, "--resume nowhere", "nowhere holds no run"),
    Mistake(atari_ppo, "--resume file", "file holds no run"),
    Mistake(atari_ppo, "--resume run --ppo.gamma 0.5", "gamma"),
    Mistake(atari_ppo, "--resume run --game breakout", "game was pong in the run and cannot become breakout"),
    Mistake(atari_ppo, "--resume run", "has finished its 32 timesteps; give more with --total-timesteps"),
    Mistake(atari_dqn, "--resume run", "not of this command; experiments/atari_ppo.py goes on with it"),
    Mistake(atari_ppo, "--resume run --run-dir new", "stays in its folder, run; leave --run-dir new out"),
    Mistake(watch, "run --no-window --gif /proc/a.gif", "Nothing can be written in /proc"),
    Mistake(custom_env, "--run-dir file", "file"),
    Mistake(classify, "--run-dir file/below --epochs 3", "cannot be made"),
    Mistake(classify, "--resume run", "not a configuration of this command"),
    Mistake(race, "--name r --race-dir file", "cannot be made"),
    Mistake(report, f"{REPORT} --races nowhere.csv", "error: nowhere.csv: No such file or directory."),
    Mistake(report, f"{REPORT} --races file", "file is not a race: it needs rows under the columns"),
    Mistake(report, f"{REPORT} --races run/model.zip", "model.zip is not a race"),
    Mistake(publish, f"{PUBLISH} --runs empty", "empty is not a run folder"),
    Mistake(publish, f"{PUBLISH} --runs", "names no run folder"),
    Mistake(publish, f"{PUBLISH} --runs run", "No whole game ended in run"),
    Mistake(publish, "--runs run --name ../p --results-dir out", "name must be usable as a file name"),
    Mistake(benchmark, "--results-dir file/below --devices cpu --parts n-envs", "cannot be made"),
    Mistake(watch, "nowhere --no-window", "nowhere holds no run"),
    Mistake(publish_agent, "--run nowhere --agents-dir out", "nowhere holds no run"),
    Mistake(export_agent, "nowhere", "nowhere"),
    Mistake(push_agent, "empty user/name", "empty"),
    Mistake(search, "--search-dir out --n-candidates -1", "n_candidates must lie in"),
    Mistake(search, "--search-dir out --by copies --games procgen/leaper", "has no agent of procgen/leaper"),
    Mistake(benchmark_gpu, "--results-dir out --device cpu --budget-seconds 0", "budget_seconds must lie in"),
    Mistake(draw_network, "--results-dir out --encoder rl_x", "Did you mean 'rl_s'"),
    Mistake(draw_network, "--results-dir file", "cannot be made"),
    Mistake(publish_agent, "--run run --agents-dir out --n-envs 0", "n_envs must lie in"),
    Mistake(watch, "file --no-window", "file holds no run"),
]


def test_there_are_mistakes_for_every_command():
    scripts = [path.stem for path in (ROOT / "experiments").glob("*.py") if "parse(" in path.read_text()]
    commands = {*scripts, "atari_ppo", "atari_dqn"}
    assert {mistake.command.__name__.partition(".")[2] for mistake in MISTAKES} == commands


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.command.__name__.split('.')[1]} {m.args[-60:]}")
def test_a_mistake_gets_one_line_and_changes_nothing(mistake, shared_place, monkeypatch, capsys):
    monkeypatch.chdir(shared_place)
    refuse(mistake.command.main, mistake.args.split(), mistake.says, shared_place, capsys)


def test_memory_that_the_machine_does_not_have_is_refused(place, capsys, monkeypatch):
    monkeypatch.setattr("mnv4_rl.memory.available_bytes", lambda *_: 1e6)
    for main, args, says in (
        (atari_ppo.main, [*TINY, "--run-dir", "new", "--ppo.n-steps", "100000"], "n_steps=100000 in 2 environments"),
        (atari_dqn.main, [*DQN.split(), "--dqn.buffer-size", "1000000"], " would fit"),
    ):
        with pytest.raises(SystemExit) as left:
            main(args)
        error = capsys.readouterr().err
        assert left.value.code == 2 and "Traceback" not in error
        check_says(error, says)
        assert not (place / "new" / "config.yml").exists()


@pytest.mark.parametrize("args", [["--run-dir", "run"], ["--resume", "run", "--total-timesteps", "64"]])
def test_a_folder_that_a_live_process_uses_is_refused(args, place, capsys):
    lock = RunLock(place / "run" / "run.lock")
    refuse(atari_ppo.main, args, f"is in use by process {os.getpid()}", place, capsys)
    lock.release()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def as_text(path: Path) -> None:
    path.write_text("not what it was\n")


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "not an agent")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "cannot give its weights"),
        (as_text, "cannot give its weights"),
        (foreign_zip, "cannot give its weights"),
        (as_folder, "no regular file"),
    ],
)
def test_a_damaged_model_is_refused(damage, says, place, capsys):
    damage(place / "run" / "model.zip")
    refuse(watch.main, ["run", "--no-window"], says, place, capsys)


@pytest.mark.parametrize("file", ["agent.safetensors", "agent.json", "training.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_bit, as_text])
def test_damaged_checkpoints_are_refused(damage, file, place, capsys):
    (place / "run" / "model.zip").unlink()
    for checkpoint in (place / "run" / CHECKPOINTS).iterdir():
        damage(checkpoint / file)
    with pytest.warns(RuntimeWarning, match="damaged checkpoint passed by"):
        refuse(watch.main, ["run", "--no-window"], "neither model.zip nor a sound checkpoint", place, capsys)


@pytest.mark.parametrize("command", [atari_ppo, watch, publish, race, classify])
@pytest.mark.parametrize("text", ["a: [1", "- a list", "\x00\x01", "game: pong", ""])
def test_a_config_that_is_none_is_refused(command, text, place, capsys):
    (place / "run" / "config.yml").write_text(text)
    shutil.copytree(place / "run", place / "races" / "r" / "pong__nature__s0")
    args = {
        atari_ppo: "--resume run",
        watch: "run --no-window",
        publish: f"{PUBLISH} --runs run",
        race: f"{RACE} --encoders nature",
        classify: "--resume run",
    }
    refuse(command.main, args[command].split(), "pong__nature__s0" if command is race else "run", place, capsys)


@pytest.mark.parametrize("log", ["time/total_timesteps\n\x00", "\udcff\udcfe", "half a row"])
def test_a_log_that_is_none_is_refused(log, place, capsys):
    (place / "run" / "progress.csv").write_bytes(log.encode(errors="surrogateescape"))
    refuse(publish.main, [*PUBLISH.split(), "--runs", "run"], "run", place, capsys)


def test_a_recorded_setting_out_of_range_is_refused(place, capsys):
    config = place / "run" / "config.yml"
    config.write_text(config.read_text().replace("gamma: 0.99", "gamma: .nan"))
    refuse(atari_ppo.main, ["--resume", "run"], "gamma must lie in [0, 1], got nan", place, capsys)


def test_the_shell_sees_the_same(tmp_path):
    script = ROOT / "experiments" / "atari_ppo.py"
    flags = ["--n-envs", "0", "--run-dir", "new"]
    done = subprocess.run([sys.executable, str(script), *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    check_says(done.stderr, "n_envs must lie in")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(4), "Box"),
        (spaces.Box(-1, 1, (8,), np.float32), r"\(8,\)"),
    ],
)
def test_observations_that_are_no_images_are_refused(space, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MNV4Extractor(space)


@pytest.mark.parametrize("settings", [PPOHyperparameters(gamma=-1), DQNHyperparameters(gamma=-1)])
def test_hyperparameters_of_a_library_user_are_checked_too(settings):
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got -1"):
        settings.check()


def test_an_agent_that_names_something_else_is_refused(place, capsys):
    """A description that was changed with its manifest, so that only its contents are wrong."""
    (place / "run" / "config.yml").unlink()
    write_config(place / "run", algo="ppo", game="pong", encoder=json.dumps("os.system"))
    refuse(watch.main, ["run", "--no-window"], "os.system", place, capsys)
