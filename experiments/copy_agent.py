"""Compare encoders in minutes: each copies a trained agent, and is examined on games that it has not seen.

python experiments/copy_agent.py --game breakout --encoders nature rl_s2 --seeds 0 1 2
python experiments/copy_agent.py --game procgen/coinrun --agent runs/mine/checkpoints/002000000 --encoders nature rl_s2

An encoder that copies soon found out soon what a good policy depends on, which is half of learning by reward; it says
nothing of exploration. See docs/search.md.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from agents.encoders import policy_kwargs
from agents.runs.config import SEED
from agents.runs.folder import CHECKPOINTS
from experiments.benchmarking.measuring import machine
from experiments.cli.command import INTERRUPTED_CODE, parse, user_errors
from experiments.cli.results import check_cells, markdown_table, read_csv, shown
from experiments.study.cloning import EVERY, Lesson, as_rewards_teach, clone, published_agent, record
from mnv4_rl.agent_files import AGENT
from mnv4_rl.checks import Interval, check_range, check_ranges
from mnv4_rl.games import resolve_game
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.performance import THREADS, tune
from mnv4_rl.safe_files import make_folder, write_csv

KEY = ("encoder", "seed", "updates", "timesteps", "agent", "labels")
MEASURED = ("policy", "value", "cpu_seconds")
_RANGES = {"updates": Interval(1, 10**6), "timesteps": Interval(2 * EVERY, 10**6), "threads": THREADS}


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """Let encoders copy a trained agent, a minute each, and say how much of it they learnt."""

    game: str = "pong"
    """The agent's game: any of ALE's, or of Procgen's, such as procgen/starpilot."""
    agent: Path | None = None
    """Folder of the agent: a checkpoint, or what save_agent wrote; the game's published agent by default."""
    encoders: tuple[str, ...] = ("nature", DEFAULT_VARIANT)
    """nature, impala, impoola, or names of mnv4_rl.list_models()."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights and batches; the play that is copied is the same for all."""
    labels: Literal["exact", "sampled"] = "exact"
    """exact: the agent's probabilities and values. sampled: an action it drew and a noisy return, as rewards teach."""
    updates: int = 250
    """Steps of Adam, of 256 states each."""
    timesteps: int = 3_000
    """Agent timesteps that it plays in each of 16 environments; every third is kept, and three environments are for
    the examination."""
    threads: int = 1
    """CPU threads."""
    results_dir: Path = Path("runs/copies")
    """Folder for the CSV; rows that it holds of other encoders, seeds and agents stay."""

    @property
    def csv(self) -> Path:
        """Where the rows go."""
        return self.results_dir / f"copies_{resolve_game(self.game).replace('/', '_')}.csv"

    def check(self) -> None:
        """Refuse flags that cannot work, before an agent plays for minutes.

        Raises:
            ValueError: Naming the flag, what came and what is allowed.
        """
        check_ranges(self, _RANGES)
        resolve_game(self.game)
        for seed in self.seeds:
            check_range("seeds", seed, SEED)
        for encoder in self.encoders:
            policy_kwargs(encoder)
        check_cells(encoders=self.encoders, seeds=self.seeds)


def main(args: list[str] | None = None) -> None:
    """Copy what is missing, and show everything that the CSV holds of this agent, as long taught."""
    config = parse(CopyConfig, args)
    with user_errors():
        config.check()
        agent = config.agent or published_agent(resolve_game(config.game))
        if not (agent / AGENT).is_file():
            raise FileNotFoundError(f"{agent} holds no agent; name a checkpoint of a run, or what save_agent wrote.")
        tune(config.threads)
        rows = read_csv(config.csv) if config.csv.is_file() else []
    try:
        with user_errors():
            copy_missing(config, agent, rows)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on")
        sys.exit(INTERRUPTED_CODE)
    chosen = {name: str(getattr(config, name)) for name in ("updates", "timesteps", "labels")}
    same = {"agent": name_of(agent), **chosen}
    print(table([row for row in rows if same.items() <= row.items()]))
    print(f"rows         {shown(config.csv)}")


def name_of(agent: Path) -> str:
    """The end of an agent's path, from its run's folder on: other runs have checkpoints of as many timesteps."""
    parts = agent.absolute().parts
    return "/".join(parts[-3:] if parts[-2:-1] == (CHECKPOINTS,) else parts[-2:])


def copy_missing(config: CopyConfig, agent: Path, rows: list[dict[str, str]]) -> None:
    """Add a row for every encoder and seed that has none of these numbers; the CSV is whole after each."""
    there = {tuple(row[name] for name in KEY) for row in rows}
    cells = [(encoder, seed) for seed, encoder in product(config.seeds, config.encoders)]
    keys = {
        cell: (*map(str, (*cell, config.updates, config.timesteps)), name_of(agent), config.labels) for cell in cells
    }
    missing = [cell for cell in cells if keys[cell] not in there]
    if not missing:
        return
    print(f"{name_of(agent)} plays {config.timesteps:,} timesteps ...", flush=True)
    lesson = record(config.game, agent, 0, config.timesteps)
    if config.labels == "sampled":
        lesson = as_rewards_teach(lesson, 0)
    comments = [f"{key}: {value}" for key, value in machine().items()]
    make_folder(config.results_dir)
    for encoder, seed in (bar := tqdm(missing, unit="copy", dynamic_ncols=True)):
        bar.set_postfix_str(encoder)
        rows.append(dict(zip(KEY, keys[encoder, seed], strict=True)) | copied(encoder, seed, config.updates, lesson))
        write_csv(config.csv, rows, comments=comments)


def copied(encoder: str, seed: int, updates: int, lesson: Lesson) -> dict[str, str]:
    """What one encoder learnt, and at what cost."""
    before = time.process_time()
    learnt = clone(encoder, lesson, seed, updates)
    seconds = time.process_time() - before
    return dict(zip(MEASURED, (f"{number:.3f}" for number in (*learnt, seconds)), strict=True))


def table(rows: list[dict[str, str]]) -> str:
    """A line an encoder, the one that copied most first."""
    names = dict.fromkeys(row["encoder"] for row in rows)
    found = {
        name: np.array([[float(row[c]) for c in MEASURED] for row in rows if row["encoder"] == name]) for name in names
    }
    lines = []
    for name in sorted(names, key=lambda name: -found[name][:, 0].mean()):
        (policy, value, seconds), of_seeds = found[name].mean(0), found[name][:, 0]
        spread = f"{of_seeds.min():.2f} to {of_seeds.max():.2f}"
        lines.append([name, f"{policy:.2f}", spread, f"{value:.2f}", str(len(of_seeds)), f"{seconds:.0f}"])
    return markdown_table(["encoder", "policy copied", "seeds", "value copied", "runs", "CPU seconds"], lines)


if __name__ == "__main__":
    main()
