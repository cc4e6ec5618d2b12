"""What a user has with the wheel alone: a published agent plays, is exported, and its file plays the same game."""

import shutil
import site
import subprocess
import venv

import pytest

from tests.test_layering import ROOT, build

PONG = ROOT / "experiments" / "results" / "agents" / "pong__ppo__rl_s__s0"
SCRIPT = """
import numpy as np
import torch as th

import mnv4_rl
from mnv4_rl import load_agent
from mnv4_rl.atari import make_atari_env
from mnv4_rl.export import OnnxAgent, to_onnx

agent = load_agent("pong", device="cpu")


def play(player):
    th.manual_seed(0)
    env = make_atari_env("pong", n_envs=1, seed=0)
    observations, rewards = env.reset(), []
    while True:
        actions, _ = player.predict(observations)
        observations, _, _, infos = env.step(actions)
        if "episode" in infos[0]:
            env.close()
            return infos[0]["episode"]["r"], infos[0]["episode"]["l"]


written = to_onnx(agent, "pong.onnx")
assert written.same_actions == written.n_frames
print(mnv4_rl.__file__, *play(agent), *play(OnnxAgent("pong.onnx")))
"""


@pytest.mark.slow
def test_the_wheel_alone_plays_exports_and_plays_the_same_game(tmp_path):
    """The packages are those of this interpreter, but the checkout is out of reach."""
    build("wheel", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    shutil.unpack_archive(wheel, packages, "zip")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    home = tmp_path / "empty"
    shutil.copytree(PONG, home / "pong")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", SCRIPT],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    place, *games = done.stdout.split()
    assert place.startswith(str(packages)) and str(ROOT) not in done.stdout
    assert games[:2] == games[2:] and float(games[0]) > 0
    assert sorted(path.name for path in home.iterdir()) == ["pong", "pong.onnx"]
