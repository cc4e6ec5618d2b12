"""One training run: batches -> AdamW -> averaged weights -> accuracy. No files, no screen.

Every epoch seeds all of its choices (order, augmentation, dropout) from the run's seed and its own number, so an epoch
depends only on the weights it starts from: continuing a stopped run gives the weights of one that never stopped.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch as th
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from experiments.classification.augment import augment_images, mix
from experiments.classification.config import ClassifyConfig
from experiments.classification.images import Dataset, Images
from mnv4_rl import create_model
from mnv4_rl.models.network import Network, set_drop_path

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """How a model does on some images.

    Attributes:
        loss: Mean cross-entropy, without label smoothing.
        predictions: (N,) int64, the most likely class of each image.
        labels: (N,) int64, the true ones.
    """

    loss: float
    predictions: Tensor
    labels: Tensor

    @property
    def correct(self) -> int:
        """Images whose class is predicted."""
        return int((self.predictions == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of images whose class is predicted, in [0, 1]."""
        return self.correct / len(self.labels)


class Trainer:
    """A fresh network, its optimiser and its averaged weights on one data set.

    Args:
        config: Model and settings.
        dataset: What to learn from.

    Attributes:
        epochs_done: Whole epochs trained.
        averaged: The moving average of the network's weights.
        kept: The network with these weights, which is evaluated and kept.
        mean, deviation: (C, 1, 1) each, of the training images.
    """

    def __init__(self, config: ClassifyConfig, dataset: Dataset) -> None:
        auto = "cuda" if th.cuda.is_available() else "cpu"
        self.config, self.dataset, self.device = config, dataset, th.device(config.device.replace("auto", auto))
        th.manual_seed(config.seed)
        network = create_model(config.model, dataset.in_channels, len(dataset.class_names), dataset.image_size)
        set_drop_path(network, config.drop_path)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
        self.network = network.to(self.device).to(memory_format=th.channels_last)  # type: ignore[call-overload]
        self.averaged = AveragedModel(network, avg_fn=moving_average(config.ema_decay), use_buffers=True)
        self.kept = cast(Network, self.averaged.module)
        self.optimizer = th.optim.AdamW(parameter_groups(network, config.weight_decay), lr=config.learning_rate)
        self.mean, self.deviation = (moment.to(self.device) for moment in dataset.statistics())
        self.batch_size = min(config.batch_size, len(dataset.train))
        self.n_batches = len(dataset.train) // self.batch_size  # an epoch; the rest waits for another epoch's order
        self.epochs_done = 0

    def train_epoch(self, on_batch: Callable[[int], object] = lambda n_images: None) -> float:
        """One pass over the training images.

        Args:
            on_batch: Called with the number of images after each update.

        Returns:
            Mean loss.

        Raises:
            FloatingPointError: If the loss is no longer a number.
        """
        seeds = np.random.SeedSequence([self.config.seed, self.epochs_done])
        th.manual_seed(int(seeds.generate_state(1)[0]))
        rng = np.random.default_rng(seeds)
        order = rng.permutation(len(self.dataset.train))[: self.n_batches * self.batch_size]
        self.network.train()
        total = 0.0
        for index, rows in enumerate(order.reshape(self.n_batches, self.batch_size)):
            pixels, targets = self.training_batch(rows, rng)
            total += self._update(pixels, targets, self.epochs_done * self.n_batches + index)
            on_batch(len(rows))
        self.epochs_done += 1
        return total / self.n_batches

    def training_batch(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augmented images (B, C, H, W), normalised, and targets (B, classes), both float on the device."""
        images = self.dataset.train[rows]
        pixels = augment_images(images.pixels, self.config, self.dataset.mirrors, rng)
        targets = F.one_hot(images.labels, len(self.dataset.class_names)).float()
        return mix(self._normalised(pixels), targets.to(self.device), self.config, rng)

    @th.no_grad()
    def evaluate(self, images: Images) -> Evaluation:
        """Loss and predictions of the averaged network."""
        self.kept.eval()
        batches = images.pixels.split(EVALUATION_BATCH)
        logits = th.cat([self.kept(self._normalised(batch)).cpu() for batch in batches])
        return Evaluation(F.cross_entropy(logits, images.labels).item(), logits.argmax(1), images.labels)

    def state(self) -> dict[str, Any]:
        """Everything the next epoch depends on, for :func:`torch.save`."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "averaged", "optimizer")}
        return {**parts, "epochs_done": self.epochs_done, "data": fingerprint(self.dataset)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state`.

        Raises:
            ValueError: If the data are not the ones the run started with.
        """
        if state["data"] != fingerprint(self.dataset):
            raise ValueError(
                f"The images of {self.dataset.name} are not those the run was started with; restore them, or start "
                "a new run."
            )
        for name in ("network", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.epochs_done = state["epochs_done"]

    def learning_rate(self, step: int) -> float:
        """AdamW's learning rate at an update, counted from 0 over the whole run."""
        warmup, total = (self.n_batches * n for n in (self.config.warmup_epochs, self.config.epochs))
        return self.config.learning_rate * warmup_cosine(step, warmup, total)

    def _update(self, pixels: Tensor, targets: Tensor, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        loss = F.cross_entropy(self.network(pixels), targets, label_smoothing=self.config.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The loss became {value} in epoch {self.epochs_done + 1}; lower --learning-rate or lengthen "
                "--warmup-epochs."
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        return value

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> float with mean 0 and deviation 1 a channel."""
        x = pixels.to(self.device).float().contiguous(memory_format=th.channels_last)
        return (x / 255 - self.mean) / self.deviation


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate: linear up to 1 over ``warmup`` updates, then a cosine down to 0 at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; norms, biases and scales (vectors) do not."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """How :class:`AveragedModel` averages: ``decay`` of the average stays, less in the first updates.

    min(decay, (1 + n) / (10 + n)) keeps the average from remembering the random weights. Counters are copied.

    Source:
        tf.train.ExponentialMovingAverage with num_updates.
    """

    def average(mean: Tensor, value: Tensor, n: Tensor | int) -> Tensor:
        n = int(n)
        return mean.lerp(value, 1 - min(decay, (1 + n) / (10 + n))) if mean.is_floating_point() else value

    return average


def fingerprint(dataset: Dataset) -> int:
    """A checksum of all pixels and labels: enough to notice that files were added or changed."""
    total = 0
    for images in (dataset.train, dataset.validation, dataset.test):
        total = zlib.crc32(images.labels.numpy().data, zlib.crc32(images.pixels.contiguous().numpy().data, total))
    return total
