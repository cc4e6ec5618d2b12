"""Draw a variant: its layers, and the size of the map between them, from its row of data.

python experiments/draw_network.py --encoder rl_s2
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from experiments.cli.command import parse, user_errors
from experiments.cli.results import ROOT, check_file_name, save_figure, shown
from mnv4_rl.checks import check_positive
from mnv4_rl.models.registry import DEFAULT_VARIANT, get_spec
from mnv4_rl.models.specs import (
    BlockSpec,
    ConvSpec,
    FusedIBSpec,
    GatedIBSpec,
    GridHeadSpec,
    MobileMQASpec,
    NetworkSpec,
    PoolSpec,
    SESpec,
    Size,
    UIBSpec,
)
from mnv4_rl.safe_files import make_folder

IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT, GAP = 3.4, 0.62, 0.38  # of a box, and between two, in inches


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Draw a network's layers and maps as a picture."""

    encoder: str = DEFAULT_VARIANT
    """Any name of mnv4_rl.list_models()."""
    in_channels: int = 4
    """Image channels."""
    image_size: int = 84
    """Side of the image in pixels."""
    results_dir: Path = IMAGES
    """Folder for the picture, <encoder>.png."""


@dataclass(frozen=True)
class Layer:
    """One box of the picture.

    Attributes:
        name: What it is.
        detail: Its kernels and widths.
        output: What comes out, for example "16 x 21 x 21".
        stage: Position of its stage, which gives the colour; the stem is -1 and the head comes last.
    """

    name: str
    detail: str
    output: str
    stage: int


def layers(spec: NetworkSpec, image_size: int) -> list[Layer]:
    """The boxes of a network, top to bottom."""
    stem = spec.stem
    side = -(-image_size // stem.stride)
    kernel = f"{stem.kernel_size}x{stem.kernel_size} / {stem.stride}"
    channels = stem.out_channels
    found = [Layer("Stem", f"{kernel}, {channels} filters", _map(channels, (side, side)), -1)]
    for stage, blocks in enumerate(spec.stages):
        for block in blocks:
            side = -(-side // block.stride)
            channels = getattr(block, "out_channels", channels)
            name, detail = describe(block)
            found.append(Layer(name, detail, _map(channels, (side, side)), stage))
    return [*found, _head(spec, (side, side), len(spec.stages))]


def describe(block: BlockSpec) -> tuple[str, str]:
    """Name and settings of a block, in the paper's words."""
    stride = f" / {block.stride}" if block.stride > 1 else ""
    match block:
        case ConvSpec():
            return "Conv", f"{block.kernel_size}x{block.kernel_size}{stride}"
        case FusedIBSpec():
            kernel = f"{block.kernel_size}x{block.kernel_size}{stride}"
            name, twice = ("GatedIB", "twice ") if isinstance(block, GatedIBSpec) else ("FusedIB", "")
            return name, f"{kernel} to {twice}{block.expanded_channels}, 1x1 to {block.out_channels}"
        case PoolSpec():
            return "Pool", f"{block.pool} {block.kernel_size}x{block.kernel_size}{stride}"
        case UIBSpec():
            kernels = [k for k in (block.start_dw_kernel_size, block.middle_dw_kernel_size) if k]
            depthwise = " and ".join(f"{k}x{k}" for k in kernels) or "no"
            return "UIB", f"{depthwise} depthwise{stride}, {block.expanded_channels}, {block.out_channels}"
        case SESpec():
            return "SE", f"ratio {block.squeeze_ratio:g}"
        case MobileMQASpec():
            return "MobileMQA", f"{block.num_heads} heads of {block.key_dim}"
    raise TypeError(f"No picture of {block!r}.")


def _head(spec: NetworkSpec, size: Size, stage: int) -> Layer:
    if not isinstance(spec.head, GridHeadSpec):
        return Layer("Head", f"mean, {spec.head.hidden_features} hidden", "classes", stage)
    head, grid = spec.head, min(spec.head.grid, *size)
    constants = head.features_dim - head.image_features
    more = f", {constants} constants" if constants else ""
    return Layer("Head", f"{grid}x{grid} grid, one layer{more}", f"{head.features_dim} features", stage)


def _map(channels: int, size: Size) -> str:
    return f"{channels} x {size[0]} x {size[1]}"


def draw(spec: NetworkSpec, in_channels: int, image_size: int, path: Path) -> None:
    """Draw the layers from the image down to the features, the maps between them."""
    boxes = layers(spec, image_size)
    height = (HEIGHT + GAP) * len(boxes) + GAP + 0.5
    figure = Figure(figsize=(WIDTH + 1.6, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-1.3, WIDTH + 0.3), ylim=(-height + 0.35, 0.35))
    axes.axis("off")
    axes.text(WIDTH / 2, 0.1, f"image {_map(in_channels, (image_size, image_size))}", ha="center", va="center")
    for index, layer in enumerate(boxes):
        _draw_layer(axes, layer, -GAP - 0.1 - index * (HEIGHT + GAP))
    save_figure(figure, path, dpi=110)


def _draw_layer(axes: Axes, layer: Layer, top: float) -> None:
    colour = f"C{layer.stage + 1}"
    rounded = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((0, top - HEIGHT), WIDTH, HEIGHT, boxstyle=rounded, fc=colour, alpha=0.25))
    axes.annotate("", (WIDTH / 2, top), (WIDTH / 2, top + GAP - 0.14), arrowprops={"arrowstyle": "->", "color": "0.4"})
    axes.text(WIDTH / 2, top - 0.2, layer.name, ha="center", va="center", weight="bold")
    axes.text(WIDTH / 2, top - 0.44, layer.detail, ha="center", va="center", size="small")
    axes.text(-0.1, top - HEIGHT / 2, layer.output, ha="right", va="center", size="small")


def main(args: list[str] | None = None) -> None:
    """Parse flags and draw."""
    config = parse(DrawConfig, args)
    with user_errors():
        spec = get_spec(config.encoder)
        check_file_name(config.encoder)
        check_positive(in_channels=config.in_channels, image_size=config.image_size)
        make_folder(config.results_dir)
    path = config.results_dir / f"{config.encoder}.png"
    draw(spec, config.in_channels, config.image_size, path)
    print(shown(path))


if __name__ == "__main__":
    main()
