"""Timing that other load on the machine bends little: interleaved rounds, ratios within a round, medians over rounds.

Two encoders timed one after the other differ by whatever else the machine did meanwhile. Here every round times every
contender once, and a contender is compared with the reference of the same round.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch as th

from agents.runs.folder import versions
from mnv4_rl.safe_files import write_csv

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the benchmark's CSV; None where a column means nothing.

    Attributes:
        part: Part of the benchmark.
        model: Encoder, or set-up and encoder.
        task: "forward", "forward+backward", "ppo" or "dqn".
        device: "cpu" or "cuda".
        dtype: "fp32", or "bf16" for autocast.
        batch: Images in a call.
        size: Side of an image in pixels.
        n_envs: Environments stepped together.
        rounds: Rounds measured; 0 if it was left out, see ``note``.
        per_second: Median images, or agent timesteps, a second.
        ratio: Median over rounds of its rate over the reference's in the same round.
        ratio_low: Lowest of these.
        ratio_high: Highest of these.
        best_dtype_ratio: As ``ratio``, against the reference in whichever dtype was faster for it.
        peak_fraction: Median share of the matrix-product rate measured in the same round, same device and dtype.
        parameters: Parameters.
        macs: Multiply-adds of one image forward.
        saved_bytes: Bytes autograd keeps for backward, an image that comes as float.
        saved_bytes_uint8: The same of an image that comes as uint8, if the encoder takes that.
        note: Why there is no number.
    """

    part: str
    model: str
    task: str
    device: str
    dtype: str = "fp32"
    batch: int | None = None
    size: int | None = None
    n_envs: int | None = None
    rounds: int = 0
    per_second: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    best_dtype_ratio: float | None = None
    peak_fraction: float | None = None
    parameters: int | None = None
    macs: int | None = None
    saved_bytes: int | None = None
    saved_bytes_uint8: int | None = None
    note: str = ""


def write_rows(path: Path, rows: Iterable[Row], comments: Iterable[str]) -> None:
    """Write all rows as a CSV, comment lines in front."""
    write_csv(path, [asdict(row) for row in rows], comments=comments, digits=5)


class Ratio(NamedTuple):
    """Median, lowest and highest over rounds of a rate over the reference's rate in the same round."""

    median: float
    low: float
    high: float


def calls_per_second(call: Callable[[], object], min_seconds: float, clock: Clock = time.perf_counter) -> float:
    """Call until ``min_seconds`` have passed, at least once; calls a second of ``clock``."""
    calls, start = 0, clock()
    while True:
        call()
        calls += 1
        elapsed = clock() - start
        if elapsed >= min_seconds:
            return calls / elapsed


def interleave(
    measures: Mapping[Key, Callable[[], float]], rounds: int, advance: Callable[[], object]
) -> dict[Key, np.ndarray]:
    """Measure every contender once a round, every other round backwards so that none always goes first.

    Args:
        measures: Contender -> what measures its rate once.
        rounds: Rounds.
        advance: Called after every measurement, for a progress bar.

    Returns:
        Contender -> its rates, (rounds,).
    """
    rates: dict[Key, list[float]] = {key: [] for key in measures}
    for index in range(rounds):
        order = list(measures) if index % 2 == 0 else list(measures)[::-1]
        for key in order:
            rates[key].append(measures[key]())
            advance()
    return {key: np.array(values) for key, values in rates.items()}


def ratio(rates: np.ndarray, reference: np.ndarray) -> Ratio:
    """Compare round by round; both (rounds,)."""
    ratios = rates / reference
    return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def machine() -> dict[str, str]:
    """What a table of timings needs beside it: versions, processor, threads, and how busy the machine was."""
    return {
        **versions(),
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(th.get_num_threads()),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }


def cpu_name() -> str:
    """The processor as /proc/cpuinfo names it, else as Python does."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
