"""Train an image classifier: any registered model on real images.

python experiments/classify.py --model mobilenet_v4_nano --data digits
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch as th

from agents.runs.folder import RunFolder, replayable_command
from agents.runs.output import courteous_output
from agents.runs.run import new_folder
from experiments.classification.config import ClassifyConfig, resumed
from experiments.classification.report import accuracy_text, add_result, interval, read_results, write_test
from experiments.classification.run import ClassificationRun
from experiments.classification.sources import load_dataset
from experiments.classification.training import Evaluation, Trainer
from experiments.cli.command import INTERRUPTED_CODE, USER_ERROR_CODE, parse, sigterm_as_interrupt, user_errors
from experiments.cli.results import places, script, shown, typed
from mnv4_rl.performance import tune


@courteous_output()
def main(args: list[str] | None = None) -> None:
    """Parse flags, train, look at the test images once, and say where everything is."""
    config = parse(ClassifyConfig, args)
    with user_errors():
        if config.result_file:
            read_results(config.result_file)
        run = prepare(config)
    with run.folder:
        print(heading(run))
        train(run)
        evaluation, dataset = run.test(), run.trainer.dataset
        of = f"{100 * evaluation.accuracy:.1f} % of {len(evaluation.labels):,} test images"
        write_test(run.path, evaluation, dataset.class_names, f"{run.trainer.config.model} on {dataset.name}: {of}")
        if config.result_file:
            add_result(config.result_file, result_row(run, evaluation), run.path / "confusion.png")
        print(summary(run, evaluation))


def prepare(config: ClassifyConfig) -> ClassificationRun:
    """A new run, whose folder is made after everything has been checked, or the one in a folder where it was left.

    Raises:
        ValueError: For flags or data that cannot work.
        OSError: For files that are missing or a folder that already holds a run.
    """
    if config.resume:
        config = resumed(config, config.resume)
    config.check()
    tune(config.threads)
    dataset = load_dataset(config.data, config.seed, config.image_size, config.on_corrupt)
    data = config.data if config.data == "digits" else str(Path(config.data).expanduser().absolute())
    config = replace(config, data=data, image_size=dataset.image_size)
    trainer = Trainer(config, dataset)
    with ExitStack() as unless_ready:  # a state that cannot be loaded leaves the folder to others
        name = f"{dataset.name}__classify__{config.model}__s{config.seed}"
        path = config.resume or config.run_dir or unless_ready.enter_context(new_folder(name))
        folder = unless_ready.enter_context(RunFolder(path, resume=config.resume is not None))
        run = ClassificationRun(folder, trainer)
        if config.resume:
            run.load_state()
        else:
            run.save_state()
            folder.describe(config.to_yaml(), shlex.join([sys.executable, *sys.argv]))
        unless_ready.pop_all()
    return run


def train(run: ClassificationRun) -> None:
    """Train to the end; leave with a line that says why and what is saved if that is not reached."""
    try:
        with sigterm_as_interrupt():
            run.train()
    except KeyboardInterrupt:
        epochs = th.load(run.path / "state.pt", map_location="cpu", weights_only=True)["epochs_done"]
        print(
            f"interrupted; the state after {epochs} of {run.trainer.config.epochs} epochs is in "
            f"{shown(run.path / 'state.pt')}\n"
            f"go on with   {script('classify')} --resume {typed(run.path)}"
        )
        sys.exit(INTERRUPTED_CODE)
    except FloatingPointError as error:
        print(f"error: {error} What was saved is in {shown(run.path)}.", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


def heading(run: ClassificationRun) -> str:
    """What is about to happen."""
    trainer, config = run.trainer, run.trainer.config
    batch = f"batches of {trainer.batch_size}"
    if trainer.batch_size < config.batch_size:
        batch += f" (all training images; {config.batch_size:,} and the learning rate are for more)"
    return (
        f"{config.model} ({parameters(run):,} parameters) on {trainer.dataset.name}: {trainer.dataset.describe()}\n"
        f"epochs {trainer.epochs_done + 1} to {config.epochs}, {batch}, {trainer.device}\n{places(run.path)}"
    )


def summary(run: ClassificationRun, evaluation: Evaluation) -> str:
    """How it ended, and where the results are."""
    wall, cpu = run.seconds()
    return (
        f"finished {run.trainer.epochs_done} epochs, {wall:.0f} s ({cpu:.0f} CPU s); best epoch "
        f"{run.best['epoch']:.0f} with {100 * run.best['validation_accuracy']:.2f} % of the validation images\n"
        f"test         {accuracy_text(evaluation)}\n"
        f"weights      {shown(run.path / 'best.safetensors')}\n"
        f"confusion    {shown(run.path / 'confusion.png')}\n"
        f"{places(run.path)}"
    )


def result_row(run: ClassificationRun, evaluation: Evaluation) -> dict[str, Any]:
    """A row of the results table; the seconds are the whole command's, imports and test included."""
    config, (low, high), (wall, cpu) = run.trainer.config, interval(evaluation), run.seconds()
    lines = (run.path / "versions.txt").read_text(encoding="utf-8").splitlines()
    return {
        "model": config.model,
        "parameters": parameters(run),
        "data": run.trainer.dataset.name,
        "image_size": config.image_size,
        "seed": config.seed,
        "epochs": config.epochs,
        "best_epoch": int(run.best["epoch"]),
        "test_images": len(evaluation.labels),
        "test_accuracy": round(evaluation.accuracy, 6),
        "interval_low": round(low, 4),
        "interval_high": round(high, 4),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": th.get_num_threads(),
        "commit": dict(line.split(": ", 1) for line in lines)["commit"],
        "command": replayable_command(run.path),
    }


def parameters(run: ClassificationRun) -> int:
    """Numbers that are learnt."""
    return sum(p.numel() for p in run.trainer.network.parameters())


if __name__ == "__main__":
    main()
