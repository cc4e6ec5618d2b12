"""Every command as a person runs it: the script by its path, its real flags, from another folder."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import copy

import pytest

from experiments.cli.results import RESULTS, ROOT
from mnv4_rl.models.registry import DEFAULT_VARIANT
from tests.experiments.classification.image_folders import write_folder

pytestmark = pytest.mark.slow
TRAIN = "--n-envs 4 --threads 1 --ppo.n-steps 32 --ppo.batch-size 64 --ppo.n-epochs 1"
# Command -> flags, and a file that it leaves in its folder. Games of Breakout end within a few hundred timesteps.
COMMANDS = {
    "benchmark_gpu": (
        "--device cpu --parts encoders --sizes.encoders rl_s --sizes.forward-batches 2 --sizes.train-batches 2 "
        "--sizes.no-compiles --sizes.min-seconds 0 --results-dir gpu",
        "gpu/encoders.csv",
    ),
    "atari_ppo": (f"--game breakout --total-timesteps 256 --evaluation-games 2 --run-dir ppo {TRAIN}", "ppo/model.zip"),
    "atari_dqn": (
        "--game breakout --total-timesteps 256 --dqn.learning-starts 128 --dqn.buffer-size 512 --evaluation-games 0 "
        "--threads 1 --run-dir dqn",
        "dqn/model.zip",
    ),
    "procgen_ppo": (
        f"--game starpilot --total-timesteps 256 --evaluation-games 0 --run-dir procgen {TRAIN}",
        "procgen/model.zip",
    ),
    "search": (
        "--games breakout --total-timesteps 256 --rungs 1 --n-candidates 1 --batch 2 --rounds 1 --min-seconds 0 "
        f"--budget 1000 --search-dir search {TRAIN}",
        "search/encoders/study.db",
    ),
    "race": (
        f"--name r --games breakout --total-timesteps 2048 --race-dir races --results-dir . {TRAIN}",
        "race_r.csv",
    ),
    "report": (f"--races {RESULTS}/race_atari.csv --name atari --n-resamples 20 --results-dir .", "atari_iqm.png"),
    "watch": ("run --episodes 1 --no-window --gif play.gif", "play.gif"),
    "publish": ("--runs run --name figure --results-dir .", f"breakout__ppo__{DEFAULT_VARIANT}__s0.csv"),
    "publish_agent": (
        "--run run --games 2 --n-envs 2 --agents-dir agents",
        f"agents/breakout__ppo__{DEFAULT_VARIANT}__s0/README.md",
    ),
    "copy_agent": (
        "--game breakout --encoders rl_s --updates 1 --timesteps 64 --threads 1 --results-dir .",
        "copies_breakout.csv",
    ),
    "export_agent": ("run --output agent.onnx --frames 20", "agent.onnx"),
    "benchmark": (
        "--parts encoders --encoders rl_s --dtypes fp32 --devices cpu --rounds 1 --min-seconds 0 --forward-batches 1 "
        "--rl-batch 2 --other-batch 2 --threads 1 --results-dir .",
        "benchmark.png",
    ),
    "draw_network": ("--results-dir images", f"images/{DEFAULT_VARIANT}.png"),
    "encoder_study": ("--results-dir study", "study/encoder_study.md"),
    "classify": (
        "--data images --epochs 2 --warmup-epochs 1 --batch-size 8 --threads 1 --run-dir images_run",
        "images_run/confusion.png",
    ),
    "custom_env": (
        "--encoder rl_s --total-timesteps 256 --n-eval-episodes 2 --threads 1 --run-dir catch",
        "catch/results.csv",
    ),
    "model_table": ("", str(ROOT / "README.md")),
}


COMMANDS["search"] = (
    f"--n-candidates 1 --rungs 1 --total-timesteps 256 --batch 8 --rounds 1 --min-seconds 0 --budget 1000 {TRAIN} "
    "--device cpu --search-dir search",
    "search/encoders",
)
NEEDS_ENVPOOL = {"procgen_ppo", "search"}
NEEDS_AN_ACCOUNT = {"push_agent"}


def run(command, flags, folder):
    """Output of a command run in a folder."""
    words = [sys.executable, str(ROOT / "experiments" / f"{command}.py"), *flags.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # a script finds its packages by itself
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A place to work in: a finished run, the study's files, and a folder of images."""
    place = tmp_path_factory.mktemp("commands")
    run("atari_ppo", f"--game breakout --total-timesteps 2048 --evaluation-games 0 --run-dir run {TRAIN}", place)
    (place / "study").mkdir()
    for path in (*RESULTS.glob("encoder_study_*.csv"), *RESULTS.glob("race_*.csv")):
        copy(path, place / "study")
    write_folder(place / "images")
    return place


def test_no_command_is_left_out():
    scripts = {path.stem for path in (ROOT / "experiments").glob("*.py") if '"__main__"' in path.read_text()}
    assert scripts - NEEDS_AN_ACCOUNT == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_as_a_script(command, folder):
    if command in NEEDS_ENVPOOL:
        pytest.importorskip("envpool", reason="an extra of 750 MB")
    flags, left = COMMANDS[command]
    before = (ROOT / "README.md").read_bytes()
    run(command, flags, folder)
    assert (folder / left).stat().st_size > 0
    assert (ROOT / "README.md").read_bytes() == before  # the table of models in it is new already


def test_the_study_trains_candidates_by_name(folder):
    run("study/train", f"--game breakout --encoder rl_s-gap --total-timesteps 128 --run-dir gap {TRAIN}", folder)
    assert "encoder: rl_s-gap" in (folder / "gap" / "config.yml").read_text()


def test_compile_compiles_or_says_why_not(folder):
    flags = f"--game breakout --total-timesteps 128 --evaluation-games 0 --compile --run-dir compiled {TRAIN}"
    said = run("atari_ppo", flags, folder)
    assert "ImportError" not in said and (folder / "compiled" / "model.zip").is_file()
