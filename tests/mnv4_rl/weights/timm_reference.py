"""timm as the reference of the paper models, where it can be imported."""

import enum
import importlib.util
import sys
from types import ModuleType

import pytest
from torch import nn

INSTALL = "pip install --no-deps timm==1.0.31"


def stand_in_torchvision() -> dict[str, ModuleType]:
    """The names timm imports from torchvision at start; none takes part in a MobileNetV4.

    There is no torchvision to go with every build of torch, and timm's own requirement would replace torch.
    """

    def module(name: str, **contents: object) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(contents)
        return made

    interpolation = enum.Enum("InterpolationMode", ["NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS"])
    functional = module("torchvision.transforms.functional", InterpolationMode=interpolation)
    transforms = module("torchvision.transforms", functional=functional, ToTensor=object)
    names = ("CIFAR100", "CIFAR10", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder")
    datasets = module("torchvision.datasets", **dict.fromkeys(names, object))
    misc = module("torchvision.ops.misc", FrozenBatchNorm2d=type("FrozenBatchNorm2d", (nn.Module,), {}))
    ops = module("torchvision.ops", misc=misc)
    package = module("torchvision", transforms=transforms, datasets=datasets, ops=ops, __path__=[])
    return {made.__name__: made for made in (package, transforms, functional, datasets, ops, misc)}


def import_timm() -> ModuleType:
    """timm, with a stand-in for torchvision while it is being imported where there is none.

    Raises:
        ImportError: If timm is not installed or does not import.
    """
    stand_ins = {} if importlib.util.find_spec("torchvision") else stand_in_torchvision()
    sys.modules.update(stand_ins)
    try:
        import timm
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
    return timm


def timm_model(name: str, **kwargs: object) -> nn.Module:
    """A randomly initialised timm model; skips the test, saying why, where timm cannot be imported."""
    try:
        timm = import_timm()
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        pytest.skip(f"timm cannot be imported ({error}); to compare with it: {INSTALL}")
    return timm.create_model(name, **kwargs)
