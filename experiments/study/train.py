"""Train a candidate: experiments/atari_ppo.py in a process that knows the candidates' names."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # always run as a script: the checkout's packages are two folders up

if __name__ == "__main__":
    importlib.import_module("experiments.study.candidates")  # makes their names known to --encoder
    runpy.run_path(str(ROOT / "experiments" / "atari_ppo.py"), run_name="__main__")
