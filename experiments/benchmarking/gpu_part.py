"""What the GPU benchmark writes down, how much it measures, and a part of it under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments.benchmarking.encoders import TIMM_NAME
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.safe_files import write_csv

HORIZON = 4_000_000  # agent timesteps over which Pong's rates fall to 0


@dataclass(frozen=True, kw_only=True)
class GPURow:
    """One line of a CSV; None where a column means nothing.

    Attributes:
        part: Part of the benchmark.
        model: Encoder, or set-up and encoder.
        task: What was done.
        dtype: "fp32" as PyTorch has it by default in agents, all of it in encoders; "tf32"; "bf16" for autocast.
        compiled: Whether by torch.compile.
        loop: Who trains PPO, a key of :data:`agents.ppo.LOOPS`.
        batch: Images in a call, or in a minibatch.
        n_envs: Environments stepped together.
        per_second: Images or agent timesteps a second.
        env_fraction: Share of the wall time in the emulators.
        learner_fraction: Share in updates; the rest is acting.
        seconds: Wall seconds since the part's beginning.
        timesteps: Agent timesteps trained.
        score: Mean raw score of the last 100 games.
        note: What else there is to say, or why there is no number.
    """

    part: str
    model: str
    task: str
    dtype: str = "fp32"
    compiled: bool = False
    loop: str = ""
    batch: int | None = None
    n_envs: int | None = None
    per_second: float | None = None
    env_fraction: float | None = None
    learner_fraction: float | None = None
    seconds: float | None = None
    timesteps: int | None = None
    score: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured; the defaults are for a GPU, a test has smaller ones.

    Attributes:
        encoders: Names, most important first.
        forward_batches: Images in a forward pass.
        train_batches: Images in a forward and backward pass.
        n_envs: Environments of PPO, the most important number first.
        n_steps: Agent timesteps of a rollout in each environment.
        stock_rollout: Agent timesteps of a rollout of stock SB3 in all its 8 environments.
        compiles: Whether everything is measured compiled too.
        min_seconds: Of calls in one measurement of an encoder; an agent trains ten times as long.
        pong_timesteps: Agent timesteps after which Pong ends, learned or not.
    """

    encoders: tuple[str, ...] = (DEFAULT_VARIANT, "nature", "rl_m", "impala", TIMM_NAME)
    forward_batches: tuple[int, ...] = (8, 64, 128)
    train_batches: tuple[int, ...] = (2048, 256, 1024, 8192)
    n_envs: tuple[int, ...] = (128, 8, 64, 256)
    n_steps: int = 64
    stock_rollout: int = 1024
    compiles: bool = True
    min_seconds: float = 0.2
    pong_timesteps: int = HORIZON


class Part:
    """A part under way: where it runs, until when, and the CSV that is whole after every row.

    Args:
        name: Its name.
        device: "cuda", "cuda:N" or "cpu".
        csv: The file.
        seconds: How long it may take.
        sizes: How much is measured.
    """

    def __init__(self, name: str, device: str, csv: Path, seconds: float, sizes: Sizes) -> None:
        self.name, self.device, self.sizes, self.csv = name, device, sizes, csv
        self._start = time.perf_counter()
        self._end = self._start + seconds
        self.rows: list[GPURow] = []

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._start

    @property
    def seconds_left(self) -> float:
        """Until its time is spent."""
        return self._end - time.perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether its time is spent."""
        return self.seconds_left <= 0

    def add(self, row: GPURow) -> None:
        """Write one more row, and say it."""
        self.rows.append(replace(row, seconds=self.seconds))
        write_csv(self.csv, [asdict(row) for row in self.rows], digits=5)
        values = [value for value in asdict(self.rows[-1]).values() if value not in (None, "", False)]
        print("  ".join(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in values), flush=True)

    def try_to(self, row: GPURow, measure: Callable[[GPURow, Part], GPURow]) -> None:
        """Add what a measurement gives; one that fails leaves the reason, and the others go on."""
        try:
            self.add(measure(row, self))
        except Exception as error:  # memory, compilers and drivers have no common class
            self.add(replace(row, note=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
