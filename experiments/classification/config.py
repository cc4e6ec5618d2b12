"""The flags of the classification command, and what of them a run folder keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from experiments.classification.recipes import Overrides, Recipe
from experiments.classification.sources import OnCorrupt


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Train an image classifier; the run folder gets curves for TensorBoard, the best weights and the test accuracy."""

    model: str = "mobilenet_v4_nano"
    """Any name of mnv4_rl.list_models()."""
    data: str = "digits"
    """digits, or a folder: one subfolder of images a class (train/, val/ and test/ above them if you like), MNIST's IDX
    files, or CIFAR's files."""
    recipe: str | None = None
    """digits, scratch, scratch_mix, or the paper's paper_conv_s, _m, _l, paper_hybrid_m, _l; fits the data by
    default."""
    overrides: Annotated[Overrides, tyro.conf.arg(name="")] = field(default_factory=Overrides)
    """Settings that differ from the recipe's."""
    seed: int = 0
    """Seed of weights, splits, order and augmentation."""
    image_size: int | None = None
    """Side in pixels that images are resized to; the data's own by default."""
    on_corrupt: OnCorrupt = "refuse"
    """What to do with an image file that cannot be read: refuse with its name, or skip and count."""
    run_dir: Path | None = None
    """Folder for everything the run writes; a new one under runs/ by default."""
    resume: Path | None = None
    """Run folder to continue; every other setting but device, threads and result-file is that run's."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads of PyTorch; all cores by default."""
    result_file: Path | None = None
    """CSV to add the result to, with a .md and the confusion picture beside it."""


# What a resumed run takes from the command line; all else is in its folder.
OF_THE_SESSION = ("resume", "device", "threads", "result_file")
_KEPT = ("model", "data", "recipe", "seed", "image_size", "on_corrupt")


def to_yaml(config: ClassifyConfig, recipe: Recipe) -> dict[str, Any]:
    """What config.yml holds; :func:`read_config` is its inverse."""
    return {**{name: getattr(config, name) for name in _KEPT}, "settings": asdict(recipe)}


def read_config(path: Path) -> tuple[dict[str, Any], Recipe]:
    """Settings of the run in a folder: fields of :class:`ClassifyConfig`, and the recipe as it was used.

    Raises:
        FileNotFoundError: If there is no config.yml.
        ValueError: If it is not one of this command's.
    """
    file = path / "config.yml"
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no run (no config.yml); name the folder of a run of this command.")
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {name: saved[name] for name in _KEPT}, Recipe(**saved["settings"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a configuration of this command ({error!r}); start a new run.") from None


def check_only_session(config: ClassifyConfig) -> None:
    """Refuse flags beside --resume that the run has already fixed.

    Raises:
        ValueError: Naming the first of them.
    """
    default = ClassifyConfig()
    for field_ in fields(config):
        if field_.name not in OF_THE_SESSION and getattr(config, field_.name) != getattr(default, field_.name):
            what = "recipe's settings" if field_.name == "overrides" else f"--{field_.name.replace('_', '-')}"
            raise ValueError(f"The run in {config.resume} has fixed its settings; leave {what} out beside --resume.")
