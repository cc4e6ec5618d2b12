"""The extractors by themselves: shapes, layouts, scales, what they refuse."""

from __future__ import annotations

import io
import re
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mnv4_rl import MNV4CombinedExtractor, MNV4Extractor, create_model, list_models
from mnv4_rl.baselines import ImpalaCNN


def uint8_box(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def float_box(*shape: int, high: float = 1.0, low: float = 0.0) -> spaces.Box:
    return spaces.Box(low, high, shape, np.float32)


def random_images(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randint(0, 256, shape, dtype=th.uint8, generator=th.Generator().manual_seed(seed))


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Shapes


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(8, 100), st.integers(8, 100)),
    channels=st.integers(1, 12),
    features_dim=st.integers(2, 8),
    batch=st.integers(1, 3),
    channels_last=st.booleans(),
)
def test_every_image_gives_finite_features(
    size: tuple[int, int], channels: int, features_dim: int, batch: int, channels_last: bool
) -> None:
    shape = (*size, channels) if channels_last else (channels, *size)
    extractor = MNV4Extractor(float_box(*shape), features_dim, channels_last=channels_last)
    features = extractor(th.rand(batch, *shape))
    assert features.shape == (batch, extractor.features_dim) == (batch, features_dim)
    assert extractor.image_shape == (channels, *size)
    assert features.isfinite().all()


@pytest.mark.parametrize("size", [(8, 8), (9, 131), (210, 160), (512, 512)], ids=str)
def test_small_large_and_long_images_give_features(size: tuple[int, int]) -> None:
    extractor = MNV4Extractor(uint8_box(3, *size))
    with th.inference_mode():
        features = extractor(random_images(1, 3, *size))
    assert features.shape == (1, 512)
    assert features.isfinite().all()


def test_parameters_do_not_grow_with_the_image_once_the_map_exceeds_the_grid() -> None:
    counts = {size: count_parameters(MNV4Extractor(uint8_box(3, *size))) for size in [(96, 96), (131, 97), (512, 512)]}
    assert len(set(counts.values())) == 1, counts
    assert count_parameters(MNV4Extractor(uint8_box(3, 64, 64))) < counts[96, 96]  # a smaller map


@pytest.mark.parametrize("grid", [1, 2, 6])
def test_grid_sets_the_positions_the_head_reads(grid: int) -> None:
    extractor = MNV4Extractor(uint8_box(4, 84, 84), features_dim=16, variant="rl_s", grid=grid)
    assert extractor.network.head.fc.in_features == 48 * grid**2


def test_position_changes_the_features_unless_the_grid_is_one() -> None:
    def distance(grid: int) -> float:
        th.manual_seed(0)
        extractor = MNV4Extractor(uint8_box(1, 128, 128), grid=grid)
        picture = th.zeros(2, 1, 128, 128)
        picture[0, 0, 48:64, 48:64] = picture[1, 0, 64:80, 48:64] = 1.0  # one position of the map further down
        first, second = extractor(picture).detach()
        return float((first - second).norm())

    assert distance(6) > 5 * distance(1)


# Layouts


def test_channels_last_images_give_the_features_of_their_channels_first_twin() -> None:
    last = MNV4Extractor(float_box(20, 16, 3), features_dim=8)
    first = MNV4Extractor(float_box(3, 20, 16), features_dim=8)
    first.load_state_dict(last.state_dict())
    images = th.rand(2, 20, 16, 3)
    assert last.channels_last and not first.channels_last
    assert th.equal(last(images), first(images.permute(0, 3, 1, 2)))


def test_the_layout_can_be_stated_where_the_smallest_axis_misleads() -> None:
    many_channels = float_box(32, 8, 8)
    with pytest.raises(ValueError, match="channels_last=True"):
        MNV4Extractor(many_channels)
    assert MNV4Extractor(many_channels, channels_last=False).image_shape == (32, 8, 8)
    assert MNV4Extractor(float_box(8, 16, 12), channels_last=True).image_shape == (12, 8, 16)


# Scale


@pytest.mark.parametrize("shape", [(4, 84, 84), (32, 24, 3)], ids=["channels first", "channels last"])
def test_uint8_gives_the_features_of_scaled_floats_and_leaves_its_input_alone(shape: tuple[int, ...]) -> None:
    extractor = MNV4Extractor(uint8_box(*shape), features_dim=32)
    images = random_images(2, *shape)
    scaled = images.float() / 255.0
    kept = images.clone(), scaled.clone()
    th.testing.assert_close(extractor(images), extractor(scaled), rtol=1e-5, atol=1e-6)
    assert th.equal(images, kept[0]) and th.equal(scaled, kept[1])


def test_unscaled_floats_are_refused_at_the_first_batch_with_any_light() -> None:
    extractor = MNV4Extractor(uint8_box(3, 16, 16))
    extractor(th.zeros(1, 3, 16, 16))  # a black picture says nothing about its scale
    with pytest.raises(ValueError, match=r"values up to 200, but expects them divided by 255.*normalize_images=False"):
        extractor(th.full((1, 3, 16, 16), 200.0))


@pytest.mark.parametrize("kind", [MNV4Extractor, partial(ImpalaCNN, features_dim=32)], ids=["mnv4", "impala"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 16, 3), (4, 3, 16, 16)], ids=str)
def test_float_images_far_above_their_space_are_warned_of_once(kind: Any, shape: tuple[int, ...]) -> None:
    extractor, images = kind(float_box(*shape)), th.full((1, *shape), 200.0)
    extractor(th.zeros_like(images))
    with pytest.warns(UserWarning, match="values up to 200"):
        extractor(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor(images)
        kind(float_box(*shape))(images / 200)
        kind(float_box(*shape), normalized_image=True)(images)


def test_normalized_image_trusts_the_numbers() -> None:
    wide = float_box(3, 16, 16, low=-10.0, high=10.0)
    assert MNV4Extractor(wide, normalized_image=True)(th.full((1, 3, 16, 16), 5.0)).isfinite().all()
    MNV4Extractor(uint8_box(3, 16, 16), normalized_image=True)(th.full((1, 3, 16, 16), 5.0))


# Registry


@pytest.mark.parametrize("variant", list_models())
def test_every_variant_is_an_extractor_without_modes(variant: str) -> None:
    with th.device("meta"):  # the architecture without the arithmetic: the largest variants cost nothing
        extractor = MNV4Extractor(uint8_box(3, 32, 32), features_dim=7, variant=variant)
        assert extractor(th.empty(2, 3, 32, 32, dtype=th.uint8)).shape == (2, 7)
    modes = [
        module for module in extractor.modules() if isinstance(module, nn.modules.batchnorm._NormBase | nn.Dropout)
    ]
    assert modes == []
    assert [name for name, _ in extractor.named_buffers() if not name.endswith(".gain")] == []  # gains are constants


@pytest.mark.parametrize("variant", list_models("rl"))
def test_train_and_eval_mode_agree(variant: str) -> None:
    extractor = MNV4Extractor(uint8_box(3, 40, 40), variant=variant)
    images = random_images(2, 3, 40, 40)
    assert th.equal(extractor.train()(images), extractor.eval()(images))


# Dict observations


def mixed_space() -> spaces.Dict:
    return spaces.Dict(
        camera=uint8_box(3, 24, 24), depth=float_box(20, 16, 1), speed=float_box(2, high=9.0), gear=spaces.Discrete(5)
    )


def mixed_batch() -> dict[str, th.Tensor]:
    gear = th.nn.functional.one_hot(th.tensor([[1], [3]]), 5).float()
    return dict(
        camera=th.rand(2, 3, 24, 24), depth=th.rand(2, 20, 16, 1), speed=th.tensor([[1.0, 2], [3, 4]]), gear=gear
    )


def test_combined_features_are_the_images_features_and_the_flat_rest() -> None:
    extractor = MNV4CombinedExtractor(mixed_space(), cnn_output_dim=8, variant="rl_s", grid=2)
    batch = mixed_batch()
    features = extractor(batch)
    parts = {"camera": 8, "depth": 8, "gear": 5, "speed": 2}  # gymnasium sorts the keys it gets as arguments
    assert list(extractor.extractors) == list(mixed_space().spaces)
    offset = 0
    for key in extractor.extractors:
        own = features[:, offset : offset + parts[key]]
        expected = extractor.extractors[key](batch[key]) if parts[key] == 8 else batch[key].flatten(1)
        assert th.equal(own, expected), key
        offset += parts[key]
    assert extractor.features_dim == features.shape[1] == offset


def test_combined_refuses_what_it_cannot_read() -> None:
    with pytest.raises(TypeError, match=r"needs a Dict space, got Box.*use MNV4Extractor"):
        MNV4CombinedExtractor(uint8_box(3, 16, 16))
    with pytest.raises(ValueError, match=r"No entry of Dict.*is an image.*CombinedExtractor for vectors"):
        MNV4CombinedExtractor(spaces.Dict(speed=float_box(2)))
    with pytest.raises(ValueError, match=r"Observation 'depth': A float image must have bounds within \[-1, 1\]"):
        MNV4CombinedExtractor(spaces.Dict(camera=uint8_box(3, 16, 16), depth=float_box(1, 16, 16, high=50.0)))
    with pytest.raises(ValueError, match=r"cnn_output_dim must be a whole number of at least 1, got 0"):
        MNV4CombinedExtractor(mixed_space(), cnn_output_dim=0)
    with pytest.raises(TypeError, match="varient"):
        MNV4CombinedExtractor(mixed_space(), varient="rl_s")
    with pytest.raises(TypeError, match=r"features_dim is of a single image.* pass cnn_output_dim=64"):
        MNV4CombinedExtractor(mixed_space(), features_dim=64)


def test_a_dict_may_have_any_keys() -> None:
    """Robots' are called "observation.image"; torch's modules may have no dots, nor the names of its own attributes."""
    names = ("observation.image", "type", "training", "", "items", "a/b", "plain")
    space = spaces.Dict({name: uint8_box(3, 16, 16) for name in names})
    extractor = MNV4CombinedExtractor(space, cnn_output_dim=8, variant="rl_s")
    batch = {name: th.rand(2, 3, 16, 16) for name in names}
    parts = zip(space.spaces, extractor.extractors.values(), strict=True)
    assert th.equal(extractor(batch), th.cat([part(batch[name]) for name, part in parts], dim=1))
    assert "plain" in extractor.extractors and "a/b" in extractor.extractors


def test_widths_are_pythons_numbers() -> None:
    """torch.nn.LSTM takes no other."""
    space = spaces.Dict(camera=uint8_box(3, 16, 16), gears=spaces.MultiDiscrete([2, 3]))
    assert type(MNV4CombinedExtractor(space, cnn_output_dim=8).features_dim) is int


def test_what_is_told_by_key_is_told_of_that_image_alone() -> None:
    space = spaces.Dict(board=float_box(12, 8, 8, high=9.0), camera=uint8_box(12, 24, 24), tail=uint8_box(3, 8, 8))
    told = {"channels_last": {"board": True}, "normalized_image": {"board": True}, "frame_channels": {"camera": 1}}
    board, camera, tail = MNV4CombinedExtractor(space, 8, **told).extractors.values()
    assert board.image_shape == (8, 12, 8)
    assert (camera.network.frame_channels, tail.network.frame_channels) == (1, 3)
    assert camera(random_images(1, 12, 24, 24) / 255).isfinite().all()
    untold = MNV4CombinedExtractor(spaces.Dict(camera=space["camera"]), 8).extractors["camera"]
    assert untold.network.frame_channels == 3


@pytest.mark.parametrize(
    ("shape", "frame_channels"), [((3, 40, 40, 1), 1), ((4, 3, 40, 40), 3), ((6, 40, 40, 2), 2), ((3, 40, 40), 3)]
)
def test_a_stack_says_how_many_channels_a_frame_has(shape: tuple[int, ...], frame_channels: int) -> None:
    """Three grey frames are no RGB picture, though they have as many channels."""
    extractor = MNV4Extractor(spaces.Box(0, 255, shape, np.uint8), 8)
    assert extractor.network.frame_channels == frame_channels


@pytest.mark.parametrize("variant", ["rl_s", "rl_s2", "mnv4_conv_s"])
def test_one_feature_would_be_blind(variant: str) -> None:
    with pytest.raises(ValueError, match="features_dim must be at least 2, got 1: a norm over one feature is blind"):
        MNV4Extractor(uint8_box(3, 32, 32), 1, variant=variant)


def test_what_is_told_of_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"channels_last is told for \['boards', 'speed'\], of this Dict the im"):
        MNV4CombinedExtractor(mixed_space(), channels_last={"boards": True, "speed": True})


def test_refusals_of_a_dicts_image_say_how_it_alone_is_told() -> None:
    planes = spaces.Dict(board=float_box(12, 8, 8), camera=uint8_box(3, 24, 24))
    with pytest.raises(ValueError, match=r"Observation 'board': .*For this key alone: channels_last=\{'board': ...\}"):
        MNV4CombinedExtractor(planes)
    assert MNV4CombinedExtractor(planes, channels_last={"board": False}).extractors["board"].image_shape == (12, 8, 8)


# What is refused: what came, what is allowed, what to do; tests/mnv4_rl/test_observations.py has the spaces


@pytest.mark.parametrize("space", [None, (3, 16, 16), "image"])
def test_what_is_no_space_is_refused(space: object) -> None:
    with pytest.raises(TypeError, match=rf"must be a gymnasium space, got {type(space).__name__}"):
        MNV4Extractor(space)


REFUSED_ARGUMENTS = {
    "features_dim 0": (dict(features_dim=0), r"features_dim must be a whole number of at least 1, got 0"),
    "features_dim -1": (dict(features_dim=-1), r"features_dim must be .* got -1"),
    "features_dim 3.5": (dict(features_dim=3.5), r"features_dim must be .* got 3.5"),
    "grid 0": (dict(grid=0), r"grid must be a whole number of at least 1, got 0"),
    "variant typo": (dict(variant="rl-s"), r"There is no model called 'rl-s'. Did you mean 'rl_s'"),
    "timm's name": (dict(variant="mobilenetv4_conv_small"), r"timm's name for the paper's model.*'mnv4_conv_s'"),
    "layout twice": (dict(channels_last=True), r"come first: shape \(3, 16, 16\)"),
}


@pytest.mark.parametrize(("kwargs", "message"), REFUSED_ARGUMENTS.values(), ids=REFUSED_ARGUMENTS)
def test_wrong_arguments_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNV4Extractor(uint8_box(3, 16, 16), **kwargs)


def test_numpys_whole_numbers_are_as_good_as_pythons() -> None:
    image = uint8_box(3, 16, 16)
    for extractor in (
        MNV4Extractor(image, np.int64(8), grid=np.int64(2), frame_channels=np.int32(3)),
        MNV4CombinedExtractor(spaces.Dict(camera=image), np.uint8(8)),
    ):
        assert extractor.features_dim == 8 and type(extractor.features_dim) is int
        th.jit.script(extractor)
    with pytest.raises(ValueError, match=r"features_dim must be a whole number of at least 1, got np\.True_"):
        MNV4Extractor(image, np.bool_(True))


def test_a_batch_of_another_shape_is_refused() -> None:
    extractor = MNV4Extractor(uint8_box(3, 16, 16))
    with pytest.raises(ValueError, match=re.escape("expects images (N, 3, H, W), got shape (1, 4, 16, 16)")):
        extractor(random_images(1, 4, 16, 16))


# Deployment


def through_a_file(model, save, load):
    """A model as it comes back from a file."""
    file = io.BytesIO()
    save(model, file)
    file.seek(0)
    return load(file)


@pytest.mark.parametrize("dtype", [th.uint8, th.float32], ids=str)
def test_an_exported_and_a_traced_extractor_give_the_same_features(dtype: th.dtype) -> None:
    extractor = MNV4Extractor(uint8_box(3, 64, 64), features_dim=16).eval()
    images = random_images(2, 3, 64, 64)
    example, other = [batch if dtype == th.uint8 else batch / 255.0 for batch in (images, images.flip(0))]
    exported = through_a_file(th.export.export(extractor, (example,)), th.export.save, th.export.load).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing freezes the checks of shapes, which is what is wanted
        traced = through_a_file(th.jit.trace(extractor, example), th.jit.save, th.jit.load)
    assert th.equal(exported(other), extractor(other))
    assert th.equal(traced(other), extractor(other))


def test_frames_of_no_channels_and_weights_without_a_name_are_refused():
    image = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    with pytest.raises(ValueError, match="frame_channels"):
        MNV4Extractor(image, frame_channels=0)
    with pytest.raises(ValueError, match="pretrained must be the path of a file"):
        MNV4Extractor(image, pretrained="")
    with pytest.raises((ValueError, OSError)):
        create_model("rl_s", pretrained="")
