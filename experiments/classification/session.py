"""Flags -> a run, new or continued; a finished run -> what the screen and the results table say."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as th

from agents.runs.config import SEED
from agents.runs.folder import RunFolder, replayable_command
from experiments.classification.config import OF_THE_SESSION, ClassifyConfig, check_only_session, read_config, to_yaml
from experiments.classification.images import Dataset
from experiments.classification.recipes import Recipe, get_recipe
from experiments.classification.report import accuracy_text, wilson_interval
from experiments.classification.run import ClassificationRun
from experiments.classification.sources import load_dataset
from experiments.classification.training import Evaluation, Trainer
from experiments.cli.results import shown
from mnv4_rl import create_model
from mnv4_rl.checks import check_positive, check_range
from mnv4_rl.models.registry import get_spec


def start(config: ClassifyConfig) -> tuple[ClassifyConfig, ClassificationRun]:
    """A new run; its folder is made after everything has been checked.

    Returns:
        The flags with what the data decide filled in, and the run.

    Raises:
        ValueError: For flags or data that cannot work.
        OSError: For files that are missing or a folder that already holds a run.
    """
    get_spec(config.model)
    check_range("seed", config.seed, SEED)
    if config.recipe:
        get_recipe(config.recipe, config.overrides)
    dataset = _load(config)
    data = config.data if config.data == "digits" else str(Path(config.data).expanduser().absolute())
    config = replace(config, data=data, recipe=config.recipe or dataset.recipe, image_size=dataset.image_size)
    recipe = get_recipe(str(config.recipe), config.overrides)
    trainer = _trainer(config, recipe, dataset)
    folder = RunFolder(config.run_dir or default_run_dir(config, dataset))
    run = ClassificationRun(folder, trainer)
    run.save_state()
    folder.describe(to_yaml(config, recipe), shlex.join(["python", *sys.argv]))
    return config, run


def resume(config: ClassifyConfig, folder: Path) -> tuple[ClassifyConfig, ClassificationRun]:
    """The run in a folder, where it was left.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: For a flag that the run has already fixed, changed data, or a folder that is not this command's.
    """
    check_only_session(config)
    path = folder.expanduser().absolute()
    saved, recipe = read_config(path)
    session = {name: getattr(config, name) for name in OF_THE_SESSION}
    config = replace(config, **{**saved, **session})
    trainer = _trainer(config, recipe, _load(config))
    with ExitStack() as unless_loaded:  # a state that cannot be loaded leaves the folder to others
        run = ClassificationRun(unless_loaded.enter_context(RunFolder(path, resume=True)), trainer)
        run.load_state()
        unless_loaded.pop_all()
    return config, run


def _load(config: ClassifyConfig) -> Dataset:
    if config.image_size is not None:
        check_positive(image_size=config.image_size)
    return load_dataset(config.data, config.seed, config.image_size, config.on_corrupt)


def _trainer(config: ClassifyConfig, recipe: Recipe, dataset: Dataset) -> Trainer:
    auto = "cuda" if th.cuda.is_available() else "cpu"
    th.manual_seed(config.seed)
    network = create_model(config.model, dataset.in_channels, len(dataset.class_names), dataset.image_size)
    return Trainer(network, dataset, recipe, config.seed, th.device(config.device.replace("auto", auto)))


def default_run_dir(config: ClassifyConfig, dataset: Dataset) -> Path:
    """runs/<data>__classify__<model>__s<seed>__<date>_<time>."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return Path("runs") / f"{dataset.name}__classify__{config.model}__s{config.seed}__{stamp}"


def heading(config: ClassifyConfig, run: ClassificationRun) -> str:
    """What is about to happen."""
    trainer, recipe = run.trainer, run.trainer.recipe
    batch = f"batches of {trainer.batch_size}"
    if trainer.batch_size < recipe.batch_size:
        batch += f" (all training images; the recipe's {recipe.batch_size:,} and its learning rate are for more)"
    return (
        f"{config.model} ({_parameters(run):,} parameters) on {trainer.dataset.name}: {trainer.dataset.describe()}\n"
        f"recipe {config.recipe}: epochs {trainer.epochs_done + 1} to {recipe.epochs}, {batch}, {trainer.device}\n"
        f"{places(run)}"
    )


def interrupted(run: ClassificationRun) -> str:
    """What is saved, and how to go on."""
    again = f"python experiments/classify.py --resume {shlex.quote(shown(run.path))}"
    return (
        f"interrupted; the state after {run.saved_epochs()} of {run.trainer.recipe.epochs} epochs is in "
        f"{shown(run.path / 'state.pt')}\n"
        f"go on with   {again}"
    )


def summary(run: ClassificationRun, evaluation: Evaluation) -> str:
    """How it ended, and where the results are."""
    best = run.best
    assert best is not None
    wall, cpu = run.seconds()
    return (
        f"finished {run.trainer.epochs_done} epochs, {wall:.0f} s ({cpu:.0f} CPU s); best epoch {best['epoch']:.0f} "
        f"with {100 * best['validation_accuracy']:.2f} % of the validation images\n"
        f"test         {accuracy_text(evaluation)}\n"
        f"weights      {shown(run.path / 'best.safetensors')}\n"
        f"confusion    {shown(run.path / 'confusion.png')}\n"
        f"{places(run)}"
    )


def places(run: ClassificationRun) -> str:
    """Where the folder and its curves are."""
    return f"run folder   {shown(run.path)}\ncurves       tensorboard --logdir {shown(run.path.parent)}"


def result_row(config: ClassifyConfig, run: ClassificationRun, evaluation: Evaluation) -> dict[str, Any]:
    """A row of the results table; the seconds are the whole command's, imports and test included."""
    best = run.best
    assert best is not None
    low, high = wilson_interval(evaluation.correct, len(evaluation.labels))
    wall, cpu = run.seconds()
    return {
        "model": config.model,
        "parameters": _parameters(run),
        "data": run.trainer.dataset.name,
        "image_size": config.image_size,
        "recipe": config.recipe,
        "seed": config.seed,
        "epochs": run.trainer.recipe.epochs,
        "best_epoch": int(best["epoch"]),
        "test_images": len(evaluation.labels),
        "test_accuracy": round(evaluation.accuracy, 6),
        "interval_low": round(low, 4),
        "interval_high": round(high, 4),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": th.get_num_threads(),
        **_origin(run.path),
    }


def _origin(folder: Path) -> dict[str, str]:
    """Commit and command that started the run, from its folder: a resumed run is still that run."""
    lines = (folder / "versions.txt").read_text(encoding="utf-8").splitlines()
    known = dict(line.split(": ", 1) for line in lines)
    return {"commit": known["commit"], "command": replayable_command(folder)}


def _parameters(run: ClassificationRun) -> int:
    return sum(p.numel() for p in run.trainer.network.parameters())
