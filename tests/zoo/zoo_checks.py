"""rl-zoo trains, plays and tunes our policies by its own commands, in an environment of its own: `make test-zoo`.

Not collected by the other targets, whose environment has no rl_zoo3.
"""

import sys

import pytest
import torch as th
from rl_zoo3 import train as zoo_train
from rl_zoo3.enjoy import enjoy
from stable_baselines3.common.save_util import load_from_zip_file

from mnv4_rl import MNV4Extractor

SMALL = {
    "ppo": "n_envs:2 n_steps:32 batch_size:32 n_epochs:1",
    "dqn": "buffer_size:200 learning_starts:50 batch_size:8",
}


def command(monkeypatch, line):
    monkeypatch.setattr(sys, "argv", ["rl_zoo3", *line.split()])


@pytest.fixture(autouse=True)
def fresh_hyperparameters():
    """The zoo replaces values of a module's dict in place; a command of its own begins with a fresh one."""
    for algo in SMALL:
        sys.modules.pop(f"mnv4_rl.zoo.{algo}", None)


@pytest.mark.parametrize("algo", SMALL)
def test_train_then_enjoy(algo, tmp_path, monkeypatch):
    log = f"--algo {algo} --env PongNoFrameskip-v4 -f {tmp_path}"
    command(monkeypatch, f"{log} -conf mnv4_rl.zoo.{algo} -n 128 --eval-freq -1 -params {SMALL[algo]}")
    zoo_train.train()
    (path,) = (tmp_path / algo).glob("*/PongNoFrameskip-v4.zip")
    _, parameters, _ = load_from_zip_file(path)
    assert any("network.stem.conv" in name for name in parameters["policy"])
    played = []
    before = MNV4Extractor.forward

    def forward(self, observations):
        played.append(observations.dtype)
        return before(self, observations)

    monkeypatch.setattr(MNV4Extractor, "forward", forward)
    command(monkeypatch, f"{log} -n 20 --no-render")
    enjoy()
    assert len(played) >= 10 and set(played) == {th.uint8}  # DQN explores in between


def test_optimize_keeps_the_encoder(tmp_path, monkeypatch):
    """Its trials replace policy_kwargs: layers behind the encoder are tried out, the encoder stays."""
    built = []
    before = MNV4Extractor.__init__

    def build(self, *args, **kwargs):
        built.append(self)
        before(self, *args, **kwargs)

    monkeypatch.setattr(MNV4Extractor, "__init__", build)
    command(
        monkeypatch,
        f"--algo ppo --env PongNoFrameskip-v4 -f {tmp_path} -conf mnv4_rl.zoo.ppo -optimize --n-trials 1 --n-jobs 1 "
        "--no-optim-plots --n-startup-trials 1 --n-evaluations 1 --eval-episodes 1 -n 64 -params n_envs:1",
    )
    zoo_train.train()
    assert built
