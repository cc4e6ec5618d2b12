"""The stem on uint8 images: the numbers of ``float() / 255``, with a quarter of the image kept for backward."""

import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.torch_layers import NatureCNN

from mnv4_rl import create_model
from mnv4_rl.extractors import MNV4Extractor
from mnv4_rl.models.blocks import Stem
from mnv4_rl.models.complexity import saved_bytes, saved_per_image

ATARI = spaces.Box(0, 255, (4, 84, 84), "uint8")


def pixels(*shape, seed=0):
    return th.randint(0, 256, shape, dtype=th.uint8, generator=th.Generator().manual_seed(seed))


def output_and_gradients(model, images):
    """Output and the gradients of a loss that no layer is blind to."""
    model.zero_grad(set_to_none=True)
    output = model(images)
    (output.float() * th.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    return [output.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def assert_all_close(found, expected, tolerance=1e-4):
    """Within a share of the largest value: rounding is relative to what was summed, not to the sum."""
    for one, other in zip(found, expected, strict=True):
        th.testing.assert_close(one, other, rtol=0, atol=tolerance * (float(other.abs().max()) + 1e-6))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(5, 24), st.integers(5, 24)),
    channels=st.integers(1, 6),
    kernel_size=st.integers(1, 8),
    stride=st.integers(1, 5),
    norm=st.sampled_from(["none", "batch", "group", "layer"]),
    activation=st.sampled_from([None, "relu", "gelu"]),
)
def test_uint8_gives_output_and_gradients_of_scaled_doubles(size, channels, kernel_size, stride, norm, activation):
    th.manual_seed(0)
    stem = Stem(channels, 8, kernel_size, stride, norm, activation).double()
    images = pixels(2, channels, *size)
    found, expected = (output_and_gradients(stem, x) for x in (images, images.double() / 255))
    assert_all_close(found, expected, 1e-9)


def test_autograd_keeps_the_bytes_of_the_image():
    stem = Stem(4, 8, 4, 4, "none", None)
    images = pixels(2, 4, 32, 32)
    assert saved_bytes(stem, images) == images.numel()
    assert saved_bytes(stem, images / 255) == 4 * images.numel()


def test_rl_s_keeps_no_more_of_an_image_for_backward_than_naturecnn():
    images = pixels(2, 4, 84, 84)
    ours = MNV4Extractor(ATARI, variant="rl_s")
    floats, bytes_ = saved_bytes(ours, images / 255), saved_bytes(ours, images)
    assert floats - bytes_ == 3 * images.numel()
    assert saved_per_image(ours, images) <= saved_per_image(NatureCNN(ATARI), images / 255)


def test_frozen_stem_keeps_nothing_and_a_lone_bias_still_learns():
    stem = Stem(4, 8, 4, 4, "none", None).requires_grad_(False)
    images = pixels(2, 4, 16, 16)
    assert not stem(images).requires_grad
    stem.conv.conv.bias.requires_grad_(True)
    assert_all_close(output_and_gradients(stem, images), output_and_gradients(stem, images / 255), 1e-5)
    assert stem.conv.conv.weight.grad is None


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_is_recorded_where_gradients_are_off(grad):
    with th.set_grad_enabled(grad):
        assert create_model("rl_s", in_channels=4, num_classes=3)(pixels(1, 4, 36, 36)).requires_grad is grad


def test_bf16_autocast_rounds_no_more_than_it_does_with_a_float_image():
    th.manual_seed(0)
    stem = Stem(4, 16, 4, 4, "none", None)
    images = pixels(8, 4, 36, 36)
    exact = output_and_gradients(stem, images.float() / 255)
    with th.autocast("cpu", th.bfloat16):
        found = output_and_gradients(stem, images)
        of_floats = output_and_gradients(stem, images.float() / 255)
    assert found[0].dtype == th.bfloat16 and found[1].dtype == th.float32
    for ours, theirs, whole in zip(found, of_floats, exact, strict=True):
        assert (ours.float() - whole).norm() < 1.2 * (theirs.float() - whole).norm() < 0.03 * whole.norm()


def test_image_is_in_channels_last_memory_format_before_it_is_float():
    stem, seen = Stem(4, 8, 4, 4, "none", None), []
    stem.conv.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stem(pixels(2, 4, 16, 16))
    assert seen[0].dtype == th.uint8 and seen[0].is_contiguous(memory_format=th.channels_last)


def test_functional_calls_give_the_same_gradients():
    model, images = create_model("rl_s", in_channels=4, num_classes=3), pixels(2, 4, 36, 36)
    target = th.linspace(-1, 1, 6).reshape(2, 3)
    weights = dict(model.named_parameters())
    gradients = th.func.grad(lambda w: (th.func.functional_call(model, w, (images,)) * target).sum())(weights)
    assert_all_close(gradients.values(), output_and_gradients(model, images)[1:])


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_gradients():
    """The compiler's own front end and differentiation, without its code generator."""
    model, images = create_model("rl_s", in_channels=4, num_classes=3), pixels(2, 4, 36, 36)
    compiled = th.compile(model, backend="aot_eager", fullgraph=True)
    assert_all_close(output_and_gradients(compiled, images), output_and_gradients(model, images))
