"""``--compile`` compiles, as the command that a person types: PyTorch counts what it did until the process ends."""

import json
import os
import subprocess
import sys

import pytest

from experiments.cli.results import ROOT

pytestmark = pytest.mark.slow
FLAGS = (
    "--game breakout --total-timesteps 512 --evaluation-games 0 --n-envs 4 --threads 1 --device cpu --compile "
    "--ppo.n-steps 32 --ppo.batch-size 64 --ppo.n-epochs 1"
)
# Python imports this before the script.
COUNTS = """
import atexit, json, sys

@atexit.register
def tell():
    from torch._dynamo.utils import counters
    json.dump({name: dict(counters[name]) for name in ("stats", "frames", "graph_break")}, open("counts.json", "w"))
"""


@pytest.mark.parametrize("loop", ["auto", "device"])
def test_the_command_compiles(loop, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(COUNTS)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "site"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [sys.executable, str(ROOT / "experiments" / "atari_ppo.py"), "--run-dir", "run", "--loop", loop]
    done = subprocess.run(
        [*command, *FLAGS.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert ", compiled" in done.stdout and "not compiled" not in done.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["stats"]["unique_graphs"] >= 2  # acting, and training with gradients
    assert counts["frames"]["ok"] == counts["frames"]["total"] and not counts["graph_break"]
    assert list((tmp_path / "cache").rglob("*.so"))
