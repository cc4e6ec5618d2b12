"""Models of timm as encoders: pixels -> timm's last map, or the features it pools -> the head of our own encoders.

timm needs no torchvision for that, so none is asked for: ``pip install timm`` brings one that may replace your torch.
"""

from __future__ import annotations

import difflib
import enum
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import torch as th
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnv4_rl.checks import did_you_mean
from mnv4_rl.models.layers import make_norm
from mnv4_rl.models.network import GridHead
from mnv4_rl.models.specs import Size, TimmSpec
from mnv4_rl.models.start import draw

TIMM_INSTALL_LINE = "pip install pyyaml huggingface_hub && pip install --no-deps timm"


def import_timm() -> Any:
    """timm, with a stand-in for torchvision while it is imported where there is none that works.

    Raises:
        ModuleNotFoundError: If timm is not installed; the message has the install line.
    """
    try:
        with _torchvision():
            import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"timm's models need {error.name}; install them with: {TIMM_INSTALL_LINE}") from error
    return timm


@contextmanager
def _torchvision() -> Iterator[None]:
    """torchvision, or for as long as this lasts the names that timm takes from it at its import."""
    stand_ins = {}
    if "timm" not in sys.modules:
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):  # RuntimeError: built for another torch
            stand_ins = _stand_ins()
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


_Interpolation = enum.Enum("_Interpolation", ["NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS"])


def _stand_ins() -> dict[str, ModuleType]:
    """What timm takes from torchvision: transforms of its data sets, and a frozen norm that no model of it has."""

    def module(name: str, **contents: object) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(contents)
        return made

    functional = module("torchvision.transforms.functional", InterpolationMode=_Interpolation)
    transforms = module("torchvision.transforms", functional=functional, ToTensor=object)
    names = ("CIFAR100", "CIFAR10", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder")
    datasets = module("torchvision.datasets", **dict.fromkeys(names, object))
    misc = module("torchvision.ops.misc", FrozenBatchNorm2d=type("FrozenBatchNorm2d", (nn.Module,), {}))
    ops = module("torchvision.ops", misc=misc)
    package = module("torchvision", transforms=transforms, datasets=datasets, ops=ops, __path__=[])
    return {made.__name__: made for made in (package, transforms, functional, datasets, ops, misc)}


def timm_config(model: str) -> Any:
    """What timm knows of a model's trained weights: where they are, mean and deviation of their images.

    Raises:
        ValueError: If timm has no such model, or no such weights of it; the message has the close matches.
        ModuleNotFoundError: As :func:`import_timm`.
    """
    timm = import_timm()
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.lower().replace("-", "_"), timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(
            f"timm {timm.__version__} has no model {name!r}.{did_you_mean(close)} timm.list_models() has all of them."
        )
    config = timm.get_pretrained_cfg(name)
    if tag:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        if tag not in tags:
            raise ValueError(f"timm has no weights {tag!r} of {name}; it has {', '.join(tags) or 'none'}.")
        config = timm.get_pretrained_cfg(model)
    return config


class TimmTrunk(nn.Module):
    """A model of timm up to its last map, or to its pooled features as a map of one position.

    It is always in eval mode: SB3 collects in eval mode and updates in train mode, and BatchNorm and dropout would make
    two policies of that.

    Args:
        spec: Which.
        in_channels: Image channels.
        image_size: Height and width that a transformer is built for; convolutional models take every size.
        state: Trained weights under timm's names; None for random ones.

    Shape:
        (N, in_channels, H, W) float, as the weights know images -> (N, channels, H', W').
    """

    def __init__(
        self, spec: TimmSpec, in_channels: int, image_size: Size, state: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        fixed = timm_config(spec.model).fixed_input_size
        kwargs: dict[str, Any] = {"in_chans": in_channels, **({"img_size": image_size} if fixed else {})}
        if state is not None:
            kwargs |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}}
        self.model, self.is_map = _create(spec, kwargs)
        if not spec.batch_norm:
            _swap_batch_norm(self.model)
        self.train()

    def train(self, mode: bool = True) -> TimmTrunk:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """The last map, channels first."""
        if not self.is_map:
            return self.model(x)[:, :, None, None]
        last = self.model(x)[-1]
        return last.permute(0, 3, 1, 2) if _is_channels_last(self.model) else last


def _create(spec: TimmSpec, kwargs: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The model, and whether it puts out maps."""
    timm = import_timm()
    if spec.head.grid > 1:
        with suppress(RuntimeError, AttributeError, NotImplementedError):  # it has none
            return timm.create_model(spec.model, features_only=True, out_indices=(-1,), **kwargs), True
    return timm.create_model(spec.model, num_classes=0, **kwargs), False


def _is_channels_last(model: Any) -> bool:
    return str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")


@th.no_grad()
def _swap_batch_norm(module: nn.Module) -> None:
    """GroupNorm for every BatchNorm, with the activation that timm keeps in it."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            norm = make_norm("group", child.num_features)
            if child.affine:
                norm.weight.copy_(child.weight)  # type: ignore[operator]  # some start at 0
            behind = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
            setattr(module, name, nn.Sequential(norm, *behind) if behind else norm)
        else:
            _swap_batch_norm(child)


class TimmNetwork(nn.Module):
    """A model of timm behind the interface of :class:`mnv4_rl.models.network.Network`: trunk, head.

    Args:
        spec: Which model, and the head.
        in_channels: Image channels.
        image_size: Height and width that the head is sized for.

    Attributes:
        map_size: Height and width of the last map at that size.

    Shape:
        (N, in_channels, H, W) float -> (N, features_dim).

    Raises:
        ValueError: For a model that timm has not, or that cannot read such images.
        ModuleNotFoundError: Without timm.
    """

    def __init__(self, spec: TimmSpec, in_channels: int, image_size: Size) -> None:
        super().__init__()
        self.spec, self.in_channels, self.image_size = spec, in_channels, image_size
        timm_config(spec.model)  # an unknown name is no matter of the image
        try:
            self.trunk = TimmTrunk(spec, in_channels, image_size)
            with th.no_grad():
                last = self.trunk(th.zeros(1, in_channels, *image_size))
        except Exception as error:  # timm's models share no class of errors
            raise ValueError(
                f"timm's {spec.model} cannot read images of {in_channels} channels and {image_size[0]}x{image_size[1]} "
                f"({type(error).__name__}: {str(error)[:200]}); resize them to what it was made for, "
                f"{_usual_size(spec)}, or take another model."
            ) from error
        self.map_size = (last.shape[2], last.shape[3])
        self.head = GridHead(last.shape[1], spec.head, self.map_size, 0)
        draw(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels to features."""
        return self.head(self.trunk(x))


def _usual_size(spec: TimmSpec) -> str:
    return "x".join(map(str, timm_config(spec.model).input_size[1:]))
