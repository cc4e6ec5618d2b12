"""A search on Ray: a killed worker and a killed driver cost time and nothing else; `make test-ray`.

Not collected by the other targets, whose environment has no Ray.
"""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from experiments.cli.command import parse
from experiments.searching.config import SearchConfig
from experiments.searching.studying import open_study
from tests.scale.nodes import TINY, finish, gone, kill, start, wait_for

QUICK = "--batch 8 --rounds 1 --min-seconds 0 --budget 1000 --rungs 2 --reduction 2 --total-timesteps 2048"


def flags(folder: Path, n_candidates: int) -> list[str]:
    places = ["--search-dir", str(folder), "--storage", f"sqlite:///{folder / 'other.db'}"]
    return [*TINY.split(), *QUICK.split(), *places, "--games", "breakout", "--n-candidates", str(n_candidates)]


def ended(folder: Path) -> list[int]:
    """Numbers of the candidates that came to an end; opening the study takes no part in it."""
    study = open_study(parse(SearchConfig, flags(folder, 0)))
    return sorted(t.number for t in study.get_trials() if t.state.name in ("COMPLETE", "PRUNED"))


def workers(folder: Path) -> list[int]:
    """Live processes that train a candidate."""
    found = []
    for lock in folder.glob("encoders/*/run.lock"):
        try:
            found.append(json.loads(lock.read_text())["pid"])
        except (OSError, ValueError):  # of a run that ends or begins now
            continue
    return [pid for pid in found if psutil.pid_exists(pid)]


def test_a_search_outlives_a_worker_and_its_driver(tmp_path):
    on_ray = ["--engine", "ray", "--jobs", "2"]
    driver = start("search.py", *flags(tmp_path, 2), *on_ray)
    kill(wait_for(lambda: workers(tmp_path), driver)[0])
    assert "NetworkSpec(" in finish(driver)
    assert len(ended(tmp_path)) == 2
    driver = start("search.py", *flags(tmp_path, 4), *on_ray)
    worker = wait_for(lambda: workers(tmp_path), driver)[0]
    kill(driver.pid)
    driver.wait()
    gone(worker)
    before = ended(tmp_path)
    assert len(before) < 4
    finish(start("search.py", *flags(tmp_path, 4), *on_ray))
    after = ended(tmp_path)
    assert len(after) == 4 and set(before) <= set(after)
    assert (tmp_path / "other.db").is_file() and not (tmp_path / "encoders" / "study.db").exists()
