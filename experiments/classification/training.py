"""One training run: batches -> AdamW -> averaged weights -> accuracy. No files, no screen.

Every epoch seeds all of its choices (order, augmentation, dropout) from the run's seed and its own number, so an epoch
depends only on the weights it starts from: continuing a stopped run gives the weights of one that never stopped.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.classification.augment import augment_images, mix
from experiments.classification.images import Dataset, Images
from experiments.classification.recipes import Recipe
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
    """A network, its optimiser and its averaged weights on one data set.

    Args:
        network: A classifier for the data set's channels and classes.
        dataset: What to learn from.
        recipe: How.
        seed: Of the order of images, the augmentation and the dropout.
        device: Where the network runs; augmentation runs on the CPU.

    Attributes:
        epochs_done: Whole epochs trained.
        averaged: The network that is evaluated and kept: the moving average, or the trained network itself.
    """

    def __init__(self, network: Network, dataset: Dataset, recipe: Recipe, seed: int, device: th.device) -> None:
        self.network = network.to(device).to(memory_format=th.channels_last)  # type: ignore[call-overload]
        self.dataset, self.recipe, self.seed, self.device = dataset, recipe, seed, device
        set_drop_path(network, recipe.drop_path)
        if recipe.dropout is not None:
            set_dropout(network, recipe.dropout)
        self.averaged = copy.deepcopy(network) if recipe.ema_decay else network
        self.optimizer = th.optim.AdamW(
            parameter_groups(network, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.epsilon,
        )
        mean, deviation = dataset.statistics()
        self.mean = th.tensor(mean, device=device)[:, None, None]
        self.deviation = th.tensor(deviation, device=device)[:, None, None]
        self.epochs_done = 0

    @property
    def batch_size(self) -> int:
        """The recipe's, or all training images where they are fewer."""
        return min(self.recipe.batch_size, len(self.dataset.train))

    @property
    def n_batches(self) -> int:
        """Updates an epoch; what does not fill a batch waits for another epoch's order."""
        return len(self.dataset.train) // self.batch_size

    def train_epoch(self, on_batch: Callable[[int], object] = lambda n_images: None) -> float:
        """One pass over the training images.

        Args:
            on_batch: Called with the number of images after each update.

        Returns:
            Mean loss.

        Raises:
            FloatingPointError: If the loss is no longer a number.
        """
        th.manual_seed(_derived_seed(self.seed, self.epochs_done))
        rng = np.random.default_rng([self.seed, self.epochs_done])
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
        pixels = augment_images(images.pixels, self.recipe, self.dataset.mirrors, rng)
        targets = F.one_hot(images.labels, len(self.dataset.class_names)).float()
        return mix(self._normalised(pixels), targets.to(self.device), self.recipe, rng)

    @th.no_grad()
    def evaluate(self, images: Images) -> Evaluation:
        """Loss and predictions of the averaged network."""
        self.averaged.eval()
        batches = images.pixels.split(EVALUATION_BATCH)
        logits = th.cat([self.averaged(self._normalised(batch)).cpu() for batch in batches])
        return Evaluation(F.cross_entropy(logits, images.labels).item(), logits.argmax(1), images.labels)

    def state(self) -> dict[str, Any]:
        """Everything the next epoch depends on, for :func:`torch.save`."""
        return {
            "epochs_done": self.epochs_done,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": fingerprint(self.dataset),
        }

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
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs_done = state["epochs_done"]

    def learning_rate(self, step: int) -> float:
        """AdamW's learning rate at an update, counted from 0 over the whole run."""
        warmup, total = (self.n_batches * n for n in (self.recipe.warmup_epochs, self.recipe.epochs))
        return self.recipe.learning_rate * warmup_cosine(step, warmup, total)

    def _update(self, pixels: Tensor, targets: Tensor, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        loss = F.cross_entropy(self.network(pixels), targets, label_smoothing=self.recipe.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The loss became {value} in epoch {self.epochs_done + 1}; lower --learning-rate or lengthen "
                "--warmup-epochs."
            )
        if self.recipe.l2:
            loss = loss + self.recipe.l2 * sum(p.square().sum() for p in self.network.parameters() if p.dim() > 1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.recipe.ema_decay:
            update_average(self.averaged, self.network, self.recipe.ema_decay, step)
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


def set_dropout(network: nn.Module, rate: float) -> None:
    """Set the probability of every dropout layer; a head without one has none to set."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


@th.no_grad()
def update_average(averaged: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the network: ``decay`` of it stays, less in the first updates.

    Counters are copied. The start, min(decay, (1 + step) / (10 + step)), keeps the average from remembering the
    random weights for thousands of updates.

    Source:
        tf.train.ExponentialMovingAverage with num_updates.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def fingerprint(dataset: Dataset) -> dict[str, int]:
    """A checksum of each split's pixels and labels: enough to notice that files were added or changed."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {
        name: zlib.crc32(images.labels.numpy().data, zlib.crc32(images.pixels.contiguous().numpy().data))
        for name, images in splits.items()
    }


def _derived_seed(seed: int, epoch: int) -> int:
    """A seed for torch that differs between runs and epochs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
