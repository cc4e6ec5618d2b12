"""The flags of the classification command, and what of them a run folder keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from agents.runs.config import SEED, check_device
from agents.runs.folder import read_config
from experiments.classification.sources import OnCorrupt
from mnv4_rl.checks import Interval, check_positive, check_ranges
from mnv4_rl.models.registry import get_spec

_SHARE = Interval(0, 1, includes_high=False)
_RANGES = {
    "epochs": Interval(1),
    "warmup_epochs": Interval(0),
    "batch_size": Interval(2),  # BatchNorm on a 1x1 map has nothing to normalise in a batch of one
    "learning_rate": Interval(0),
    "weight_decay": Interval(0),
    "label_smoothing": _SHARE,
    "dropout": _SHARE,
    "drop_path": _SHARE,
    "ema_decay": _SHARE,
    "shift": Interval(0, 0.5),
    "mix_prob": Interval(0, 1),
    "mixup_alpha": Interval(0),
    "cutmix_alpha": Interval(0),
    "seed": SEED,
}


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Train an image classifier; the run folder gets curves for TensorBoard, the best weights and the test accuracy."""

    model: str = "mobilenet_v4_nano"
    """Any name of mnv4_rl.list_models()."""
    data: str = "digits"
    """digits, or a folder: one subfolder of images a class (train/, val/ and test/ above them if you like), MNIST's IDX
    files, or CIFAR's files."""
    image_size: int | None = None
    """Side in pixels that images are resized to; the data's own by default."""
    on_corrupt: OnCorrupt = "refuse"
    """What to do with an image file that cannot be read: refuse with its name, or skip and count."""
    epochs: int = 30
    """Passes over the training images."""
    warmup_epochs: int = 2
    """Epochs of linear warm-up; the cosine to 0 follows."""
    batch_size: int = 64
    """Images an update."""
    learning_rate: float = 0.003
    """AdamW's peak."""
    weight_decay: float = 0.05
    """AdamW's, on weights only (not on norms and biases)."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    dropout: float = 0.0
    """Before the classifier."""
    drop_path: float = 0.0
    """Peak rate of stochastic depth."""
    ema_decay: float = 0.99
    """Of the averaged weights that are evaluated and kept; 0 for none."""
    shift: float = 0.0625
    """Largest random shift, as a share of the image."""
    mix_prob: float = 0.5
    """Probability of mixing a batch by mixup or cutmix."""
    mixup_alpha: float = 0.2
    """Beta parameter of mixup, 0 for none."""
    cutmix_alpha: float = 1.0
    """Beta parameter of cutmix, 0 for none."""
    seed: int = 0
    """Seed of weights, splits, order and augmentation."""
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

    def check(self) -> None:
        """Refuse flags that cannot work.

        Raises:
            ValueError: Naming the flag, what came and what is allowed.
        """
        get_spec(self.model)
        check_device(self.device)
        check_ranges(self, _RANGES)
        if self.image_size is not None:
            check_positive(image_size=self.image_size)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs}); lower "
                "--warmup-epochs or train longer."
            )

    def to_yaml(self) -> dict[str, object]:
        """What config.yml holds: all but the session's own flags."""
        return {name: value for name, value in asdict(self).items() if name not in OF_THE_SESSION}


# What a resumed run takes from the command line; all else is in its folder.
OF_THE_SESSION = ("run_dir", "resume", "device", "threads", "result_file")


def resumed(config: ClassifyConfig, folder: Path) -> ClassifyConfig:
    """The settings of the run in a folder, with this session's own flags.

    Raises:
        ValueError: If the folder holds no run of this command, or a flag was given that the run has already fixed.
    """
    for field in fields(config):
        if field.name not in OF_THE_SESSION and getattr(config, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            raise ValueError(f"The run in {folder} has fixed its settings; leave {flag} out beside --resume.")
    saved = read_config(folder)
    if saved.keys() != config.to_yaml().keys():
        raise ValueError(f"{folder}/config.yml is not a configuration of this command; start a new run.")
    return replace(config, **saved)
