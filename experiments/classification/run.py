"""Trainer + run folder -> metrics, curves, the best weights, a state to continue from.

config.yml        every setting as used
command.txt       the line that started the run (and versions.txt what it ran on)
metrics.csv       one row an epoch
events.out.*      the same for TensorBoard, and a few augmented images
state.pt          weights, optimiser and history after the last whole epoch, for --resume
best.safetensors  weights of the best validation epoch, with best.json saying how to feed them
test.json         accuracy on the test images, and confusion.csv, confusion.png

Files that change are written beside and renamed, so one is always whole.
"""

from __future__ import annotations

import io
import json
import sys
import time

import numpy as np
import psutil
import torch as th
from torch.utils.tensorboard.summary import image as image_summary
from tqdm import tqdm

from agents.runs.event_file import EventFile, bytes_until, event_files
from agents.runs.folder import RunFolder
from experiments.classification.augment import augment_images
from experiments.classification.training import Evaluation, Trainer
from mnv4_rl.safe_files import cut_file, write_csv, write_file
from mnv4_rl.weights import load_weights, save_weights

Row = dict[str, float]
_TAGS = {"train_loss": "train/loss", "validation_loss": "validation/loss", "learning_rate": "train/learning_rate",
         "validation_accuracy": "validation/accuracy"}  # fmt: skip


class ClassificationRun:
    """Trains to the last epoch and leaves everything in a folder.

    Args:
        folder: The run folder, which belongs to this process.
        trainer: What is trained.

    Attributes:
        history: One row an epoch, as in metrics.csv.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer) -> None:
        self.folder, self.path, self.trainer = folder, folder.path, trainer
        self.history: list[Row] = []
        self._seconds_before = (0.0, 0.0)

    def save_state(self) -> None:
        """Write state.pt."""
        buffer = io.BytesIO()
        th.save({**self.trainer.state(), "history": self.history}, buffer)
        write_file(self.path / "state.pt", buffer.getvalue())

    def load_state(self) -> None:
        """Continue from state.pt; nothing but tensors and plain values is unpickled.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is broken or of another model or data.
        """
        path = self.path / "state.pt"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {self.path} has nothing to resume. Start a new run instead.")
        try:
            state = th.load(path, map_location="cpu", weights_only=True)
            self.trainer.load_state(state)
            self.history = state["history"]
        except ValueError:
            raise
        except Exception as error:  # torch raises many kinds for a broken archive
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path} cannot be resumed from ({reason}); start a new run.") from None
        if self.history:
            self._seconds_before = (self.history[-1]["wall_seconds"], self.history[-1]["cpu_seconds"])

    def seconds(self) -> tuple[float, float]:
        """Wall and CPU seconds: of this process since it began, and of the training that it continues."""
        wall, cpu = self._seconds_before
        return wall + time.time() - psutil.Process().create_time(), cpu + time.process_time()

    @property
    def best(self) -> Row:
        """The epoch with the highest validation accuracy, the last among equals."""
        return max(reversed(self.history), key=lambda row: row["validation_accuracy"])

    def train(self) -> None:
        """Train the epochs that are left, saving after each. Ctrl-C leaves the last whole epoch's files in place."""
        trainer = self.trainer
        for path in event_files(self.path):  # what a session that was stopped had logged of an epoch it did not keep
            cut_file(path, bytes_until(path, trainer.epochs_done), below=self.path)
        writer = EventFile(self.path)
        with self._bar() as bar:
            rng = np.random.default_rng(trainer.config.seed)
            examples = trainer.dataset.train[rng.permutation(len(trainer.dataset.train))[:16]].pixels
            shown = augment_images(examples, trainer.config, trainer.dataset.mirrors, rng)
            pictures = image_summary("train/augmented", shown, dataformats="NCHW")
            writer.add_summary(pictures, trainer.epochs_done)
            while trainer.epochs_done < trainer.config.epochs:
                self.history.append(self._epoch(bar))
                self._log(writer, bar)
                if self.history[-1] is self.best:
                    self.save_best()
                self.save_state()

    def test(self) -> Evaluation:
        """The best epoch's weights on the test images."""
        load_weights(self.trainer.kept, self.path / "best.safetensors")
        return self.trainer.evaluate(self.trainer.dataset.test)

    def save_best(self) -> None:
        """Write the evaluated weights and what one needs to use them."""
        trainer, dataset = self.trainer, self.trainer.dataset
        mean, deviation = (tuple(moment.flatten().tolist()) for moment in (trainer.mean, trainer.deviation))
        about = {
            "model": trainer.config.model,
            "in_channels": dataset.in_channels,
            "image_size": dataset.image_size,
            "class_names": dataset.class_names,
            "mean": mean,
            "std": deviation,
            **{name: self.history[-1][name] for name in ("epoch", "validation_loss", "validation_accuracy")},
        }
        save_weights(trainer.kept, self.path / "best.safetensors", (mean, deviation))
        write_file(self.path / "best.json", json.dumps(about, indent=1).encode())

    def _epoch(self, bar: tqdm) -> Row:
        """Train an epoch, and say how it went."""
        trainer, started = self.trainer, time.perf_counter()
        loss = trainer.train_epoch(bar.update)
        rate = trainer.n_batches * trainer.batch_size / (time.perf_counter() - started)
        validation = trainer.evaluate(trainer.dataset.validation)
        wall, cpu = self.seconds()
        return {
            "epoch": trainer.epochs_done,
            "learning_rate": trainer.learning_rate(trainer.epochs_done * trainer.n_batches - 1),
            "train_loss": loss,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "images_per_second": round(rate, 1),
            "wall_seconds": round(wall, 2),
            "cpu_seconds": round(cpu, 2),
        }

    def _log(self, writer: EventFile, bar: tqdm) -> None:
        row = self.history[-1]
        writer.add({_TAGS.get(name, f"time/{name}"): value for name, value in row.items()}, int(row["epoch"]))
        write_csv(self.path / "metrics.csv", self.history)
        accuracy = f"{100 * row['validation_accuracy']:.2f} %"
        bar.set_postfix_str(f"epoch {int(row['epoch'])}, loss {row['train_loss']:.3f}, validation {accuracy}")

    def _bar(self) -> tqdm:
        """Images seen of all there will be, with the rate and the time left."""
        an_epoch = self.trainer.n_batches * self.trainer.batch_size
        pause = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file needs no animation
        return tqdm(
            total=self.trainer.config.epochs * an_epoch,
            initial=self.trainer.epochs_done * an_epoch,
            unit="img",
            mininterval=pause,
            dynamic_ncols=True,
        )
