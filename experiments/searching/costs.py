"""What candidates cost beside NatureCNN, and a table of what each option of the space costs ``rl_s``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch as th
from gymnasium import spaces

from agents.encoders import add_encoder, policy_kwargs
from experiments.benchmarking.encoders import make_call
from experiments.benchmarking.measuring import Ratio, calls_per_second, interleave, machine, ratio
from experiments.cli.results import RESULTS, markdown_table
from experiments.racing.protocol import REFERENCE
from experiments.searching.config import IMAGES, SearchConfig
from experiments.searching.space import RL_S_CHOICES, SPACE, spec_of
from mnv4_rl.games import family_of
from mnv4_rl.models.specs import NetworkSpec
from mnv4_rl.safe_files import make_folder, write_csv

COLUMNS = ("choice", "option", "cost", "cost_low", "cost_high")


def relative_cost(spec: NetworkSpec, config: SearchConfig) -> float:
    """As :func:`relative_costs`, the median for one candidate."""
    return relative_costs([spec], config)[spec.name].median


def relative_costs(specs: Sequence[NetworkSpec], config: SearchConfig) -> dict[str, Ratio]:
    """Seconds of candidates' forward and backward passes over NatureCNN's in the same rounds, by name.

    CPU seconds on a CPU, which others may share.
    """
    shape = IMAGES[family_of(config.games[0])]
    device = "cuda" if config.device == "auto" and th.cuda.is_available() else config.device.replace("auto", "cpu")
    images = th.randint(0, 256, (config.batch, *shape), dtype=th.uint8, device=device)
    clock = time.perf_counter if images.is_cuda else time.process_time
    space, calls = spaces.Box(0, 255, shape, np.uint8), {}
    for spec in specs:
        add_encoder(spec.name, spec)
    for name in (REFERENCE, *(spec.name for spec in specs)):
        kwargs = policy_kwargs(name)
        model = kwargs["features_extractor_class"](space, **kwargs["features_extractor_kwargs"]).to(device)
        calls[name] = make_call(model, images, "forward+backward", "fp32")
        calls[name]()  # warm
    measures = {name: partial(calls_per_second, call, config.min_seconds, clock) for name, call in calls.items()}
    rates = interleave(measures, config.rounds, lambda: None)
    return {spec.name: ratio(rates[REFERENCE], rates[spec.name]) for spec in specs}


def neighbours() -> dict[tuple[str, str], NetworkSpec]:
    """(Choice, option) -> ``rl_s`` with that option; its own options are ``rl_s`` itself."""
    found = {}
    for choice, options in SPACE.items():
        for option in options:
            picked = {**RL_S_CHOICES, choice: option}
            if picked["norm"] != "none":
                del picked["start"]
            found[choice, option] = spec_of(picked)
    return found


def write_costs(config: SearchConfig, folder: Path = RESULTS) -> str:
    """Time all neighbours and write search_costs_FAMILY.csv; the table as markdown."""
    rows, family = neighbours(), family_of(config.games[0])
    costs = relative_costs(list(rows.values()), config)
    values = [(choice, option, *costs[spec.name]) for (choice, option), spec in rows.items()]
    channels, height, width = IMAGES[family]
    comments = [f"{key}: {value}" for key, value in machine().items()]
    comments.append(
        f"forward and backward of {config.batch} images {channels}x{height}x{width}, {config.rounds} rounds"
    )
    make_folder(folder)
    table = [dict(zip(COLUMNS, row, strict=True)) for row in values]
    write_csv(folder / f"search_costs_{family}.csv", table, comments=comments, digits=3)
    cells = [[choice, option, f"{cost:.2f}x", f"{low:.2f} to {high:.2f}"] for choice, option, cost, low, high in values]
    return markdown_table(["choice", "option", "cost, NatureCNN 1", "rounds"], cells)
