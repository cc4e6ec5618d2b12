"""Rewrite the table of all models in docs/models.md from the registry.

python experiments/model_table.py
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch as th

from experiments.cli.results import ROOT, markdown_table
from mnv4_rl import create_model
from mnv4_rl.models.complexity import Complexity, measure
from mnv4_rl.models.registry import get_spec, list_models
from mnv4_rl.safe_files import write_file

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- models: begin -->\n", "<!-- models: end -->\n"
ATARI_SIZE = 84
COLUMNS = ("model", "parameters", "MMACs at 84", "its own size", "MMACs there", "activations at 84")
NOTE = (
    "\n\nRL models on 4 frames without classes, the others on RGB with 1000 classes; multiply-adds and activation bytes"
    " (fp32 outputs of\nconvolutions, linear layers and attention) of one image."
    " Made by `python experiments/model_table.py`.\n"
)


def usage(name: str) -> tuple[int, int]:
    """Channels and classes that a model is counted with: features of 4 frames, or 1000 classes on RGB."""
    return (4, 0) if get_spec(name).family == "rl" else (3, 1000)


@cache
def costs(name: str) -> dict[int, Complexity]:
    """Side of an image -> what a model costs for it, at 84 pixels and at its own size."""
    with th.device("meta"):  # counting needs shapes only
        model = create_model(name, *usage(name))
    return {size: measure(model, size) for size in sorted({ATARI_SIZE, get_spec(name).image_size})}


def row(name: str) -> list[str]:
    """The cells of a model."""
    at_84, own = costs(name)[ATARI_SIZE], costs(name)[get_spec(name).image_size]
    sizes = f"{at_84.macs / 1e6:,.1f}", str(get_spec(name).image_size), f"{own.macs / 1e6:,.1f}"
    return [f"`{name}`", f"{own.parameters:,}", *sizes, f"{at_84.activation_bytes / 1e6:.2f} MB"]


def table() -> str:
    """The whole table, registry order."""
    return markdown_table(COLUMNS, [row(name) for name in list_models()], numbers=True) + NOTE


def with_table(page: str) -> str:
    """A page with the table between its markers renewed.

    Raises:
        ValueError: If the markers are missing.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"The page needs the lines {BEGIN.strip()} and {END.strip()} around the table.")
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def main() -> None:
    """Rewrite the table in place."""
    write_file(PAGE, with_table(PAGE.read_text(encoding="utf-8")).encode())
    print(f"Renewed the table of {len(list_models())} models in {PAGE.name}")


if __name__ == "__main__":
    main()
