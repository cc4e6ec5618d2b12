"""What is said where RLlib is not installed; tests/scale has the rest, in an environment that has it."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = 'pip install -c constraints-rllib.txt -e ".[rllib]"'


def test_without_rllib_its_adapter_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mnv4_rl.rllib", raising=False)
    with pytest.raises(ModuleNotFoundError) as refused:
        import_module("mnv4_rl.rllib")
    assert INSTALL in str(refused.value) and "\n" not in str(refused.value)


def test_without_rllib_the_example_is_one_line():
    hidden = "import importlib.util, runpy; importlib.util.find_spec = lambda name: None; runpy.run_path('{}')"
    code = hidden.format(ROOT / "examples" / "rllib_pong.py")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and INSTALL in done.stderr and done.stderr.count("\n") == 1
