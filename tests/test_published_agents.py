"""The committed agents act as when they were published: golden logits on frames of their games, recorded before."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from mnv4_rl import load_agent

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted((ROOT / "experiments" / "results" / "agents").iterdir())
GOLDEN = ROOT / "tests" / "golden" / "published_agents.npz"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_published_agent_acts_as_when_it_was_published(folder, monkeypatch):
    monkeypatch.setattr("mnv4_rl.models.registry.SPECS", {})  # its architecture is in its file
    golden, game = np.load(GOLDEN), folder.name.partition("__")[0]
    model = load_agent(folder / "agent", device="cpu")
    frames = th.as_tensor(golden[f"{game}_frames"])
    with th.no_grad():
        logits = model.policy.get_distribution(frames).distribution.logits.numpy()
        values = model.policy.predict_values(frames).numpy()
    np.testing.assert_allclose(logits, golden[f"{folder.name}_logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(values, golden[f"{folder.name}_values"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_pictures_of_its_card_are_there_and_small(folder):
    card = (folder / "README.md").read_text()
    for name, kind in (("play.gif", b"GIF89a"), ("play.mp4", b"ftyp")):
        content = (folder / name).read_bytes()
        assert f"]({name})" in card and kind in content[:12] and len(content) < 1_000_000
