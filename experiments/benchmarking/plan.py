"""What a benchmark measures: flags -> groups of encoders and training tasks -> rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch as th
from tqdm import tqdm

from agents.encoders import ENCODERS, policy_kwargs
from agents.runs.config import N_ENVS, check_device
from experiments.benchmarking import encoders, export, training
from experiments.benchmarking.encoders import REFERENCE, TIMM_NAME, Group, Limits, measure_group
from experiments.benchmarking.measuring import Row
from experiments.benchmarking.training import Contender, Task, measure_task
from experiments.cli.results import RESULTS, check_file_name
from mnv4_rl.checks import Interval, check_choice, check_positive, check_ranges
from mnv4_rl.games import family_of, resolve_game
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.performance import THREADS

Part = Literal["encoders", "end-to-end", "n-envs", "frames", "export"]
PARTS: tuple[Part, ...] = ("encoders", "end-to-end", "n-envs", "frames", "export")
REFERENCE_SIDE = 36  # pixels; NatureCNN's strides leave one position of them
_RANGES = {
    "n_envs": N_ENVS,
    "threads": THREADS,
    "min_seconds": Interval(0),
    "max_seconds": Interval(0, includes_low=False),
    "max_gigabytes": Interval(0, includes_low=False),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure encoders and training against NatureCNN and plain stable-baselines3."""

    parts: tuple[Part, ...] = PARTS
    """encoders: every encoder; end-to-end: agents; n-envs: PPO's growth with n_envs; frames: with the image; export:
    exported agents that act."""
    encoders: tuple[str, ...] = (*ENCODERS, TIMM_NAME)
    """Encoders by name; nature, which the others are compared with, always takes part."""
    agents: tuple[str, ...] = (DEFAULT_VARIANT,)
    """Encoders of the agents of the other parts but frames: names of mnv4_rl.list_models(), impala or impoola."""
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda") if th.cuda.is_available() else ("cpu",)
    """Devices; all there are by default."""
    dtypes: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    """fp32, and bf16 for autocast."""
    rounds: int = 7
    """Rounds, of which the median is reported."""
    min_seconds: float = 0.2
    """Seconds of calls in one measurement of an encoder."""
    max_seconds: float = 10.0
    """An encoder is left out where one call takes longer."""
    max_gigabytes: float = 4.0
    """An encoder is left out where one call needs about this much memory or more."""
    forward_batches: tuple[int, ...] = (1, 8, 64)
    """Images in a forward pass."""
    rl_batch: int = 256
    """Images in a forward and backward pass of RL encoders and baselines."""
    other_batch: int = 16
    """The same for all other encoders."""
    frame_batch: int = 64
    """The same in the part frames."""
    frame_sizes: tuple[int, ...] = (84, 128, 224)
    """Sides of the images in the part frames, in pixels."""
    game: str = "pong"
    """Game of the training parts; on Procgen, such as procgen/starpilot, PPO alone trains."""
    algos: tuple[Literal["ppo", "dqn"], ...] = ("ppo", "dqn")
    """Algorithms of the part end-to-end."""
    n_envs: int = 8
    """Environments stepped together in the part end-to-end."""
    growth: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of environments in the part n-envs."""
    rollout: int = 1024
    """Agent timesteps trained in one measurement of training; every n_envs must divide it."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    name: str = "benchmark"
    """Name of the files."""
    results_dir: Path = RESULTS
    """Folder for the CSV, the table and the figure."""


def check_config(config: BenchmarkConfig) -> None:
    """Refuse flags that cannot work, before anything is measured.

    Raises:
        ValueError: Naming the flag, what came and what is allowed.
    """
    numbers = {name: getattr(config, name) for name in ("rounds", "rl_batch", "other_batch", "frame_batch", "rollout")}
    for flag in ("forward_batches", "frame_sizes", "growth"):
        numbers |= {f"{flag}[{i}]": value for i, value in enumerate(getattr(config, flag))}
    check_positive(**numbers)
    check_ranges(config, _RANGES)
    if small := [size for size in config.frame_sizes if size < REFERENCE_SIDE]:
        raise ValueError(
            f"frame_sizes must be at least {REFERENCE_SIDE}, the smallest side that {REFERENCE} takes, got {small[0]}; "
            "leave it out."
        )
    check_file_name(config.name)
    for part in config.parts:
        check_choice("parts", part, PARTS)
    for device in config.devices:
        check_device(device)
    for name in (*(name for name in config.encoders if name != TIMM_NAME), *config.agents):
        policy_kwargs(name)
    if REFERENCE in config.agents or len(set(config.agents)) != len(config.agents):
        got = ", ".join(config.agents)
        raise ValueError(f"agents must be others than {REFERENCE}, which takes part anyway, and none twice, got {got}.")
    resolve_game(config.game)
    if family_of(config.game) == "procgen" and "dqn" in config.algos:
        raise ValueError(f"On {config.game} PPO alone is benchmarked; give --algos ppo.")
    uneven = [n for n in (config.n_envs, *config.growth) if config.rollout % n]
    if uneven:
        raise ValueError(f"rollout must be a multiple of every n_envs, got {config.rollout} and {uneven[0]}.")


def plan_encoders(config: BenchmarkConfig) -> list[Group]:
    """Groups of the parts encoders and frames; prints who is left out, and why."""
    names = tuple(dict.fromkeys((REFERENCE, *config.encoders)))
    missing = encoders.timm_missing() if TIMM_NAME in names else None
    if missing:
        print(missing)
        names = tuple(name for name in names if name != TIMM_NAME)
    groups: list[Group] = []
    for device in config.devices:
        if "encoders" in config.parts:
            groups += encoders.encoder_groups(
                names, device, config.forward_batches, config.rl_batch, config.other_batch
            )
        if "frames" in config.parts:
            groups += encoders.frame_groups(names, device, config.frame_batch, config.frame_sizes)
    return groups


def plan_training(config: BenchmarkConfig) -> list[tuple[Task, tuple[Contender, ...]]]:
    """Tasks of the parts end-to-end and n-envs and who takes part; prints it if SB3's set-up is not there."""
    wanted = {"end-to-end", "n-envs"} & set(config.parts)
    missing = training.sb3_missing() if wanted else None
    if missing:
        print(missing)
        return []
    shared = {"game": config.game, "rollout": config.rollout, "threads": config.threads}
    tasks: list[tuple[Task, tuple[Contender, ...]]] = []
    for device in config.devices:
        if "end-to-end" in wanted:
            for algo in config.algos:
                task = Task(part="end-to-end", algo=algo, n_envs=config.n_envs, device=device, **shared)  # type: ignore[arg-type]
                tasks.append((task, training.all_contenders(config.agents, config.dtypes)))
        if "n-envs" in wanted:
            for n_envs in config.growth:
                task = Task(part="n-envs", algo="ppo", n_envs=n_envs, device=device, **shared)  # type: ignore[arg-type]
                tasks.append((task, training.growing_contenders(config.agents)))
    return tasks


def run(
    groups: list[Group],
    tasks: list[tuple[Task, tuple[Contender, ...]]],
    config: BenchmarkConfig,
    keep: Callable[[Sequence[Row]], None],
) -> list[Row]:
    """Measure everything that was planned.

    Args:
        groups: What :func:`plan_encoders` says.
        tasks: What :func:`plan_training` says.
        config: The flags.
        keep: Called with all rows so far whenever there are more, so that an interrupt loses little.

    Returns:
        All rows.
    """
    limits = Limits(config.dtypes, config.rounds, config.min_seconds, config.max_seconds, config.max_gigabytes * 1e9)
    n_measurements = sum((len(group.models) + 1) * len(config.dtypes) for group in groups)
    n_measurements += sum(len(contenders) for _, contenders in tasks)
    batches = export.BATCHES if "export" in config.parts else ()
    n_measurements += len(batches) * export.n_measurements(config.agents)
    rows: list[Row] = []
    with tqdm(total=n_measurements * config.rounds, unit="measurement", dynamic_ncols=True) as bar:
        for group in groups:
            bar.set_description(f"{group.part}: {group.task}, batch {group.batch}, {group.size}x{group.size}")
            rows += measure_group(group, limits, bar.update)
            keep(rows)
        for task, contenders in tasks:
            bar.set_description(f"{task.part}: {task.algo}, {task.n_envs} envs")
            rows += measure_task(task, contenders, config.rounds, bar.update)
            keep(rows)
        for batch in batches:
            bar.set_description(f"export: batch {batch}")
            rows += export.measure_export(batch, config.agents, limits, bar.update)
            keep(rows)
    return rows
