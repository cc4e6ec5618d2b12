"""Programs for ExecuTorch: they act as the agent does where it is installed, and what cannot be is one line."""

import importlib.util
import sys

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC

from mnv4_rl.export import to_executorch
from mnv4_rl.export.executorch_file import EXECUTORCH_INSTALL_LINE
from tests.mnv4_rl.export.agents import agent, observations

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason=f"needs executorch: {EXECUTORCH_INSTALL_LINE}"
)


@needs_executorch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "kwargs", "batch_size"),
    [(PPO, {}, 1), (DQN, {}, 3), (SAC, {}, 1), (PPO, {"with_vector": True}, 1)],
)
def test_a_program_acts_as_the_agent(algorithm, kwargs, batch_size, tmp_path):
    from executorch.runtime import Runtime

    model, path = agent(algorithm, **kwargs), tmp_path / "agent.pte"
    batch = observations(model, 7)
    written = to_executorch(model, path, batch_size=batch_size, frames=batch)
    assert written.same_actions == written.n_frames == 7 // batch_size * batch_size
    assert written.n_bytes == path.stat().st_size
    content = path.read_bytes()
    assert b"site-packages" not in content and str(tmp_path).encode() not in content
    rows = list(batch.values()) if isinstance(batch, dict) else [batch]
    method = Runtime.get().load_program(content).load_method("forward")
    _, actions = method.execute([th.tensor(row[:batch_size]) for row in rows])
    expected, _ = model.predict(batch, deterministic=True)
    np.testing.assert_allclose(actions.numpy(), expected[:batch_size], rtol=1e-4, atol=1e-4)


@needs_executorch
def test_fewer_frames_than_a_batch(tmp_path):
    model = agent(PPO)
    with pytest.raises(ValueError, match="batch_size=4"):
        to_executorch(model, tmp_path / "agent.pte", batch_size=4, frames=observations(model, 3))
    assert list(tmp_path.iterdir()) == []


def test_without_executorch_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ModuleNotFoundError) as refused:
        to_executorch(agent(PPO), tmp_path / "agent.pte")
    assert EXECUTORCH_INSTALL_LINE in str(refused.value)


def test_paths_and_sizes_are_refused_first(tmp_path):
    there = tmp_path / "agent.pte"
    there.write_bytes(b"mine")
    for path, size, error in ((there, 1, FileExistsError), ("agent.onnx", 1, ValueError), ("a.pte", 0, ValueError)):
        with pytest.raises(error):
            to_executorch(agent(PPO), path, batch_size=size)
    assert there.read_bytes() == b"mine"
