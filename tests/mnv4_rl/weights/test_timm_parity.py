"""The paper models against timm's: the same names, the same numbers, forwards, backwards and in training."""

import pytest
import torch as th
from torch import nn

from mnv4_rl import create_model
from mnv4_rl.models.network import Network, build
from mnv4_rl.models.paper import TIMM_NAMES
from mnv4_rl.models.pyramid import FeaturePyramid
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.specs import NetworkSpec
from mnv4_rl.models.width import scale_width
from mnv4_rl.weights import load_timm_state_dict, to_timm_state_dict
from tests.mnv4_rl.weights.timm_reference import timm_model

MAX_DIFFERENCE = 1e-9
NARROW = (("mnv4_conv_s", 0.35), ("mnv4_conv_s", 0.5), ("mnv4_hybrid_m", 0.75), ("mnv4_hybrid_l", 0.75))
SPECS = {spec.name: spec for spec in map(get_spec, ("mnv4_conv_s", "mnv4_conv_m", "mnv4_conv_l"))}
SPECS |= {spec.name: spec for spec in map(get_spec, ("mnv4_hybrid_m", "mnv4_hybrid_l"))}
SPECS |= {spec.name: spec for spec in (scale_width(get_spec(name), width) for name, width in NARROW)}


def scramble(model: nn.Module) -> nn.Module:
    """Give every tensor values that matter: a layer scale of 1e-5 or fresh statistics would hide mistakes."""
    generator = th.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.dim() == 1:
            tensor.normal_(0.5, 0.2, generator=generator)
    return model


def pair(spec: NetworkSpec, in_channels: int = 3, num_classes: int = 10) -> tuple[nn.Module, Network]:
    """timm's model and ours with its weights, in float64."""
    reference = timm_model(TIMM_NAMES[spec.name], in_chans=in_channels, num_classes=num_classes).double()
    model = build(spec, in_channels, num_classes).double()
    load_timm_state_dict(model, scramble(reference).state_dict())
    return reference, model


def images(height: int, width: int, channels: int = 3) -> th.Tensor:
    return th.randn(2, channels, height, width, generator=th.Generator().manual_seed(1), dtype=th.float64)


def max_difference(a: th.Tensor, b: th.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def assert_same_numbers(spec: NetworkSpec, sizes: list[tuple[int, int]]) -> None:
    reference, model = pair(spec)
    reference.eval(), model.eval()
    with th.no_grad():
        for size in sizes:
            expected = reference(images(*size))
            assert float(expected.std()) > 1e-3  # else equality would say nothing
            assert max_difference(model(images(*size)), expected) < MAX_DIFFERENCE
        reference.train(), model.train()
        assert max_difference(model(images(*sizes[0])), reference(images(*sizes[0]))) < MAX_DIFFERENCE
    ours, theirs = to_timm_state_dict(model), reference.state_dict()
    for name in (name for name in theirs if "running" in name or "num_batches" in name):
        assert max_difference(ours[name].double(), theirs[name].double()) < MAX_DIFFERENCE, name


@pytest.mark.parametrize("name", SPECS)
def test_small_and_odd_images_give_timms_numbers_in_eval_and_train_mode(name: str) -> None:
    assert_same_numbers(SPECS[name], [(48, 48), (33, 57)])


@pytest.mark.parametrize("name", ["mnv4_conv_s", "mnv4_conv_m", "mnv4_hybrid_m"])
def test_images_of_the_papers_size_give_timms_numbers(name: str) -> None:
    assert_same_numbers(SPECS[name], [(SPECS[name].image_size,) * 2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnv4_conv_l", "mnv4_hybrid_l"])
def test_images_of_the_papers_size_give_timms_numbers_for_the_large(name: str) -> None:
    assert_same_numbers(SPECS[name], [(384, 384), (257, 301)])


@pytest.mark.parametrize("name", ["mnv4_conv_s", "mnv4_hybrid_m"])
def test_gradients_are_timms(name: str) -> None:
    reference, model = pair(SPECS[name])
    for network in (reference, model):
        network(images(64, 64)).square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for ours, parameter in zip(gradients, reference.parameters(), strict=True):
        assert max_difference(ours, parameter.grad) < 1e-6 * (1 + float(parameter.grad.abs().max()))


@pytest.mark.parametrize("name", SPECS)
def test_names_order_and_shapes_are_timms(name: str) -> None:
    with th.device("meta"):
        theirs = timm_model(TIMM_NAMES[name]).state_dict()
        ours = to_timm_state_dict(build(SPECS[name], 3, 1000))
    assert list(ours) == list(theirs)
    assert [tensor.shape for tensor in ours.values()] == [tensor.shape for tensor in theirs.values()]


@pytest.mark.parametrize("name", ["mnv4_conv_s", "mnv4_hybrid_m"])
def test_there_and_back_is_bit_for_bit(name: str) -> None:
    _, model = pair(SPECS[name])
    reference = timm_model(TIMM_NAMES[name], num_classes=10).double()
    reference.load_state_dict(to_timm_state_dict(model), strict=True)
    again = build(SPECS[name], 3, 10).double()
    load_timm_state_dict(again, reference.state_dict())
    for key, tensor in model.state_dict().items():
        assert th.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["mnv4_conv_s", "mnv4_conv_l", "mnv4_hybrid_m", "mnv4_hybrid_l"])
def test_the_pyramid_is_timms(name: str) -> None:
    reference = scramble(timm_model(TIMM_NAMES[name], features_only=True)).double().eval()
    model = create_model(name, features_only=True).double().eval()
    assert isinstance(model, FeaturePyramid)
    load_timm_state_dict(model, reference.state_dict())
    assert list(model.channels) == reference.feature_info.channels()
    assert list(model.reductions) == reference.feature_info.reduction() == [2, 4, 8, 16, 32]
    with th.no_grad():
        maps, expected = model(images(64, 40)), reference(images(64, 40))
    assert len(maps) == len(expected) == 5
    for ours, theirs in zip(maps, expected, strict=True):
        assert max_difference(ours, theirs) < MAX_DIFFERENCE


def test_features_without_a_classifier_are_timms() -> None:
    reference, model = pair(SPECS["mnv4_conv_s"], in_channels=4, num_classes=0)
    with th.no_grad():
        ours, theirs = model.eval()(images(48, 48, channels=4)), reference.eval()(images(48, 48, channels=4))
    assert ours.shape == (2, 1280)
    assert max_difference(ours, theirs) < MAX_DIFFERENCE
