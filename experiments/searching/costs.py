"""What each option of the space costs: ``rl_s`` with one choice changed, timed beside NatureCNN."""

from __future__ import annotations

from pathlib import Path

from experiments.benchmarking.measuring import machine
from experiments.cli.results import RESULTS, markdown_table
from experiments.searching.space import RL_S_CHOICES, SPACE, spec_of
from experiments.searching.studying import IMAGES, SearchConfig, relative_costs
from mnv4_rl.games import family_of
from mnv4_rl.models.specs import NetworkSpec
from mnv4_rl.safe_files import make_folder, write_csv

COLUMNS = ("choice", "option", "cost", "cost_low", "cost_high")


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
