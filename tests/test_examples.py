"""The C++ example builds against the installed PyTorch and plays as the agent does."""

import shutil
import subprocess

import numpy as np
import pytest
import torch as th

from examples import build_and_run
from mnv4_rl.export import fold
from tests.mnv4_rl.export.agents import agent, observations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs CMake and a C++ compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build_and_run.build(tmp_path_factory.mktemp("build"))


def test_plays_as_the_agent(program, tmp_path):
    model = agent()
    frames = observations(model, 9)
    actions, scores = build_and_run.play(program, model, frames, tmp_path)
    expected, best = fold(model)(th.as_tensor(frames))
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(actions, best.numpy())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage"),
        (["nowhere.pt", "frames.bin", "1", "2", "2"], "nowhere.pt"),
        (["nowhere.pt", "frames.bin", "1", "3", "2"], "whole frames"),
        (["nowhere.pt", "no_frames.bin", "1", "2", "2"], "whole frames"),
    ],
)
def test_a_mistake_is_one_line(program, tmp_path, arguments, says):
    (tmp_path / "frames.bin").write_bytes(bytes(4))
    done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr.splitlines()[0]
