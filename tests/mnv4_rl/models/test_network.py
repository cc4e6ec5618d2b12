"""Spec -> network: any image size, the head's grid, what forward refuses, how it starts."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mnv4_rl import create_model
from mnv4_rl.models.blocks import Pool
from mnv4_rl.models.mobilenet_v4 import mobilenet_v4_spec
from mnv4_rl.models.network import PooledHead, build, build_block
from mnv4_rl.models.registry import get_spec, list_models
from mnv4_rl.models.specs import (
    ConvSpec,
    FusedIBSpec,
    GatedIBSpec,
    GridHeadSpec,
    MobileMQASpec,
    NetworkSpec,
    PoolSpec,
    SESpec,
    StartSpec,
    StemSpec,
    UIBSpec,
)
from mnv4_rl.models.start import _left_of_stem, plain_pictures

# Every kind of block, strided where it may be, on channels that 8 does not divide.
EVERY_BLOCK = NetworkSpec(
    name="every_block",
    family="rl",
    stem=StemSpec(out_channels=6, kernel_size=4, stride=2),
    stages=(
        (ConvSpec(out_channels=6), FusedIBSpec(out_channels=10, expanded_channels=12)),
        (GatedIBSpec(out_channels=10, expanded_channels=5, stride=1), PoolSpec(stride=1), PoolSpec(pool="average")),
        (
            UIBSpec(out_channels=12, expanded_channels=14, start_dw_kernel_size=3, middle_dw_kernel_size=5, stride=2),
            UIBSpec(out_channels=12, expanded_channels=14),
            SESpec(),
        ),
        (MobileMQASpec(num_heads=3, key_dim=5, kv_stride=2),),
    ),
    head=GridHeadSpec(features_dim=9, grid=3, squeeze_channels=4),
    norm="group",
    inner_norm="group",
    activation="relu",
    layer_scale=0.1,
    image_size=32,
)
TINY_SYSTEM = mobilenet_v4_spec(
    name="tiny",
    base_channels=8,
    expanded_channels=12,
    squeeze_ratio=0.25,
    fused_ibs=2,
    uib_and_extra_dws=1,
    se_and_uibs=1,
    se_and_mqas=1,
    num_heads=2,
    hidden_dim_classifier=16,
    dropout=0.2,
    kv_stride=2,
)


@given(
    spec=st.sampled_from([EVERY_BLOCK, TINY_SYSTEM, get_spec("rl_s")]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    in_channels=st.integers(1, 12),
    sized=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_any_height_width_and_channels_give_finite_classes(spec, height, width, in_channels, sized):
    model = build(spec, in_channels, num_classes=3, image_size=(height, width) if sized else None).eval()
    with th.inference_mode():
        y = model(th.rand(2, in_channels, height, width))
    assert y.shape == (2, 3)
    assert y.isfinite().all()


@pytest.mark.parametrize("spec", [EVERY_BLOCK, TINY_SYSTEM, get_spec("rl_s")], ids=lambda spec: spec.name)
def test_forward_is_stem_then_stages_then_head(spec):
    model = build(spec, 3, 4).eval()
    x = th.rand(2, 3, 20, 30)
    assert th.equal(model(x), model.head(model.stages(model.stem(x))))


@pytest.mark.parametrize("spec", [EVERY_BLOCK, TINY_SYSTEM, get_spec("rl_s")], ids=lambda spec: spec.name)
def test_memory_format_does_not_change_the_output(spec):
    model = build(spec, 3, 4).eval().double()
    x = th.rand(2, 3, 20, 30, dtype=th.float64)
    last = x.to(memory_format=th.channels_last)
    th.testing.assert_close(model(last), model(x), atol=1e-10, rtol=0)


# Heads


def test_grid_head_does_not_grow_with_the_image():
    spec = get_spec("rl_s")
    parameters = {
        size: sum(p.numel() for p in build(spec, 4, 0, (size, size)).parameters()) for size in (36, 84, 96, 200)
    }
    assert parameters[84] == parameters[96] == parameters[200] > parameters[36]


def test_grid_head_keeps_position_and_pooled_head_forgets_it():
    grid, pooled = build(get_spec("rl_s"), 1, 0).eval(), build(TINY_SYSTEM, 1, 0).eval()
    maps = {model: th.rand(1, model.spec.out_channels, 6, 6) for model in (grid, pooled)}
    assert not th.allclose(grid.head(maps[grid]), grid.head(maps[grid].flip(3)))
    assert th.allclose(pooled.head(maps[pooled]), pooled.head(maps[pooled].flip(3)), atol=1e-5)


def test_grid_head_averages_larger_maps():
    head = build(replace(get_spec("rl_s"), stages=()), 1, 0, (24, 24)).head  # 24 -> 6x6
    small = th.rand(1, 16, 6, 6)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert head.grid == (6, 6)
    th.testing.assert_close(head(large), head(small), atol=1e-5, rtol=0)


def test_grid_follows_an_image_that_is_not_square():
    assert build(get_spec("rl_s"), 3, 0, (84, 20)).head.grid == (6, 2)


def test_pooled_head_has_dropout_before_the_classifier():
    head = build(TINY_SYSTEM, 3, 4).head
    assert isinstance(head, PooledHead)
    assert head.dropout.p == 0.2
    nn.init.ones_(head.classifier.weight)
    assert len({head.train()(th.ones(1, 8, 2, 2)).sum().item() for _ in range(8)}) > 1


# Initial values


@pytest.mark.parametrize("name", list_models())
def test_classifier_starts_small_and_biases_at_zero(name):
    model = build(get_spec(name), 3, 1000)
    assert model.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    linear = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
    assert linear
    assert not any(m.bias.any() for m in linear)


WITH_ATTENTION = replace(
    get_spec("rl_s"), name="with_attention", stages=(*get_spec("rl_s").stages, (MobileMQASpec(num_heads=4, key_dim=8),))
)


@pytest.mark.parametrize("spec", [*map(get_spec, list_models("rl")), WITH_ATTENTION], ids=lambda spec: spec.name)
def test_blocks_without_norms_start_with_unit_variance_on_plain_pictures(spec):
    pictures = th.tensor(plain_pictures(4))
    model = build(spec, 4, 0)
    x = model.stem(pictures)
    assert x.std().item() == pytest.approx(1.0, rel=1e-3)
    for block in (block for stage in model.stages for block in stage):
        if not isinstance(block, Pool):  # has no weights to scale
            added = block(x) - x if block.has_skip else block(x)
            target = spec.start.skip_gain * x.std().item() if block.has_skip else 1.0
            assert added.std().item() == pytest.approx(target, rel=1e-3)
        x = block(x)


def convolutions(model):
    return [m for m in (*model.stem.modules(), *model.stages.modules()) if isinstance(m, nn.Conv2d)]


def with_start(spec, **kwargs):
    return replace(spec, start=replace(spec.start, **kwargs))


def test_equalised_convolutions_compute_what_they_did_and_learn_equally_fast():
    spec = get_spec("rl_s")
    models = []
    for weight_rms in (None, 0.06):
        th.manual_seed(0)
        models.append(build(with_start(spec, weight_rms=weight_rms), 4, 0))
    drawn, equal = models
    images = th.randint(0, 256, (3, 4, 84, 84), dtype=th.uint8)
    for pictures in (images, images / 255):
        th.testing.assert_close(drawn(pictures), equal(pictures), rtol=1e-4, atol=1e-4)
    before = [m.weight.detach().clone() for m in convolutions(equal)]
    optimizer = th.optim.Adam(equal.parameters(), lr=1e-3)
    equal(images).square().sum().backward()
    optimizer.step()
    for convolution, weight in zip(convolutions(equal), before, strict=True):
        moved = (convolution.weight - weight).square().mean().sqrt().item()
        assert moved == pytest.approx(1e-3, rel=0.3)  # nearly the same share of every layer's weights


@pytest.mark.parametrize("in_channels", [1, 2, 3, 4, 12])
def test_equalised_weights_are_of_nearly_one_size_and_gains_the_same_with_every_seed(in_channels):
    gains = set()
    for seed in range(20):
        th.manual_seed(seed)
        model = build(get_spec("rl_s"), in_channels, 0)
        sizes = [m.weight.square().mean().sqrt().item() for m in convolutions(model)]
        assert len(sizes) == 11
        assert all(0.8 < size / 0.06 < 1.2 for size in sizes)
        gains.add(tuple(m.gain.item() for m in convolutions(model)))
    assert len(gains) == 1


def test_equalised_weights_are_of_nearly_one_size_behind_a_gate_too():
    gated = (GatedIBSpec(out_channels=32, expanded_channels=32),)
    model = build(replace(get_spec("rl_s"), stages=(gated, *get_spec("rl_s").stages[1:])), 4, 0)
    sizes = [m.weight.square().mean().sqrt().item() for m in convolutions(model)]
    assert all(0.5 < size / 0.06 < 2 for size in sizes), sizes
    assert 0.5 < model.forward_features(th.tensor(plain_pictures(4))).std() < 2.5


@pytest.mark.parametrize("name", list_models("rl"))
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_parameters_alone_carry_what_a_network_computes(name, in_channels):
    source, target, images = build(get_spec(name), in_channels, 0), build(get_spec(name), in_channels, 0), None
    images = th.randint(0, 256, (4, in_channels, 84, 84), dtype=th.uint8)
    assert not th.equal(source(images), target(images))
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(source.parameters()), target.parameters())
    assert th.equal(source(images), target(images))
    mixed = build(get_spec(name), in_channels, 0)
    mixed.load_state_dict(dict(source.named_parameters()), strict=False)
    assert th.equal(source(images), mixed(images))


def test_gains_of_a_file_are_kept():
    model, other = build(get_spec("rl_s"), 4, 0), build(get_spec("rl_s"), 4, 0)
    state = {name: 1.1 * value if name.endswith(".gain") else value for name, value in model.state_dict().items()}
    other.load_state_dict(state)
    assert all(th.equal(other.state_dict()[name], value) for name, value in state.items())


def test_a_start_draws_no_more_from_the_global_generator_than_the_weights_need():
    states = []
    for start in (get_spec("rl_s").start, StartSpec()):
        th.manual_seed(0)
        build(replace(get_spec("rl_s"), start=start), 4, 0)
        states.append(th.get_rng_state())
    assert th.equal(*states)


def test_gains_are_saved_with_the_weights():
    th.manual_seed(0)
    saved = build(get_spec("rl_s"), 4, 0)
    th.manual_seed(1)
    loaded = build(get_spec("rl_s"), 4, 0)
    loaded.load_state_dict(saved.state_dict())
    images = th.rand(2, 4, 84, 84)
    assert th.equal(saved(images), loaded(images))


def change_of_features(spec, pictures, without):
    """How far the features are from those of the pictures without a ball, as a share of their length."""
    shares = []
    for seed in range(3):
        th.manual_seed(seed)
        model = build(spec, 4, 0)
        features = model(pictures)
        shares.append(((features - model(without)).norm() / features.norm()).item())
    return sum(shares) / len(shares)


@pytest.mark.parametrize("background", [0.0, 0.4])
def test_a_small_ball_that_moves_fills_the_features(background):
    without = th.full((1, 4, 84, 84), background)
    without[..., :10, :] = 0.7  # a wall
    pictures = without.clone()
    for frame in range(4):
        pictures[0, frame, 40 + 2 * frame : 42 + 2 * frame, 50 + frame : 52 + frame] = 0.9
    spec = get_spec("rl_s")
    spec = replace(spec, head=replace(spec.head, constant_share=0.0))  # the features that depend on the picture
    assert change_of_features(spec, pictures, without) > 0.3
    assert change_of_features(with_start(spec, static_gain=None), pictures, without) < 0.15


def test_what_stands_still_is_muted_but_not_gone():
    spec, still = get_spec("rl_s"), th.full((1, 4, 84, 84), 0.4)
    still[..., 40:44, 50:60] = 0.9
    model = build(spec, 4, 0)
    assert model(still).std() > 0.1 * spec.head.gain
    assert build(spec, 1, 0)(still[:, :1]).std() > 0.1 * spec.head.gain  # nothing in common with another channel


@pytest.mark.parametrize(("in_channels", "frame_channels"), [(4, 1), (12, 3), (3, 3)])
def test_gains_count_on_what_is_left_of_filters_whose_frames_are_muted(in_channels, frame_channels):
    drawn = np.random.default_rng(0).normal(size=(20_000, in_channels // frame_channels, frame_channels))
    muted = drawn - (1 - 0.3) * drawn.mean(1, keepdims=True) if in_channels > frame_channels else drawn
    share = math.sqrt((muted**2).mean() / (drawn**2).mean())
    network = SimpleNamespace(in_channels=in_channels, frame_channels=frame_channels)
    assert _left_of_stem(network, 0.3) == pytest.approx(share, rel=0.005)


# Colour is not time


@pytest.mark.parametrize(
    ("in_channels", "frame_channels"), [(1, 1), (2, 1), (3, 3), (4, 1), (5, 1), (6, 3), (8, 1), (9, 3), (12, 3)]
)
def test_multiples_of_three_channels_are_taken_for_rgb(in_channels, frame_channels):
    assert build(get_spec("rl_s"), in_channels, 0).frame_channels == frame_channels


@pytest.mark.parametrize("frames", [2, 4])
@pytest.mark.parametrize("colours", [1, 3])
def test_what_frames_have_in_common_is_muted_colour_by_colour(frames, colours):
    def drawn(static_gain):
        th.manual_seed(0)
        start = StartSpec(static_gain=static_gain)
        stem = build(replace(get_spec("rl_s"), start=start), frames * colours, 0, frame_channels=colours).stem
        weight = stem.conv.conv.weight.unflatten(1, (frames, colours))
        return weight / weight.std(1).mean()  # calibration scales all filters alike

    whole, muted = drawn(1.0), drawn(0.3)
    th.testing.assert_close(muted.mean(1), 0.3 * whole.mean(1))  # a mean for each colour
    th.testing.assert_close(muted - muted.mean(1, keepdim=True), whole - whole.mean(1, keepdim=True))


def brightness_beside_colour(frame_channels):
    """How strongly a stem of three channels answers noise that they share, as a share of noise in which two differ."""
    th.manual_seed(0)
    noise = th.randn(1, 1, 84, 84)
    brightness, colour = noise.repeat(1, 3, 1, 1), noise * th.tensor([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1)
    stems = [build(get_spec("rl_s"), 3, 0, frame_channels=frame_channels).stem for _ in range(5)]
    answers = [(stem(brightness).std() / stem(colour).std()).item() for stem in stems]
    return sum(answers) / len(answers)


def test_brightness_of_one_rgb_frame_is_not_muted():
    assert brightness_beside_colour(3) == pytest.approx(math.sqrt(3 / 2), rel=0.1)  # as much as its power says
    assert brightness_beside_colour(1) == pytest.approx(0.3 * math.sqrt(3 / 2), rel=0.1)


def test_frames_must_divide_the_channels():
    with pytest.raises(ValueError, match="frame_channels"):
        build(get_spec("rl_s"), 4, 0, frame_channels=3)


def test_features_end_in_constants():
    spec = get_spec("rl_s")
    features = build(spec, 4, 0)(th.rand(3, 4, 84, 84))
    image_features, constants = features.split([spec.head.image_features, 128], 1)
    assert (constants == spec.head.constant).all()
    assert (image_features.std(0) > 0).all()


@pytest.mark.parametrize("features_dim, constants", [(1, 0), (3, 0), (4, 1), (64, 16)])
def test_constants_are_a_share_of_any_width(features_dim, constants):
    head = replace(get_spec("rl_s").head, features_dim=features_dim)
    features = build(replace(get_spec("rl_s"), head=head), 4, 0)(th.rand(2, 4, 84, 84))
    assert features.shape == (2, features_dim)
    assert (features == head.constant).all(0).sum() == constants


def test_constants_are_not_many_times_as_long_as_what_depends_on_the_image():
    spec = get_spec("rl_s")
    features = build(spec, 4, 0)(th.rand(3, 4, 84, 84))
    image_features, constants = features.split([spec.head.image_features, 128], 1)
    assert (constants.norm(dim=1) < 5 * image_features.norm(dim=1)).all()  # one constant of their sum: 45 times


def common_share_of_drift(spec):
    """How much of what noise does to a policy's logits it does in all states alike, between 0 and 1."""
    th.manual_seed(0)
    with th.no_grad():  # states that look different
        features = build(spec, 4, 0)(nn.functional.interpolate(th.rand(512, 4, 7, 7), size=84))
    actor = nn.Linear(features.shape[1], 4)
    before = actor(features).detach()
    optimizer = th.optim.Adam(actor.parameters(), lr=2.5e-4)
    for states in th.randperm(512).split(32):  # an agent that was never rewarded: its advantages are noise
        actions, advantages = th.randint(4, (32,)), th.randn(32)
        logits = actor(features[states]).log_softmax(1)
        optimizer.zero_grad()
        (-advantages * logits[th.arange(32), actions]).mean().backward()
        optimizer.step()
    drift = (actor(features) - before).detach()  # (512, 4)
    return (drift.mean(0).square().sum() / drift.square().sum(1).mean()).item()


def test_without_rewards_a_policy_drifts_in_all_states_alike():
    spec = get_spec("rl_s")
    assert common_share_of_drift(spec) > 0.95
    assert common_share_of_drift(replace(spec, head=replace(spec.head, constant_share=0.0))) < 0.85


def test_the_stem_may_have_a_norm_of_its_own():
    spec = replace(get_spec("rl_s"), norm="layer", start=None)
    assert isinstance(build(spec, 4, 0).stem.conv.norm, nn.LayerNorm)
    spec = replace(spec, stem=replace(spec.stem, norm="none"))
    assert isinstance(build(spec, 4, 0).stem.conv.norm, nn.Identity)


# Errors


@pytest.mark.parametrize("shape", [(3, 84, 84), (2, 1, 84, 84), (2, 84, 84, 3), (5,)])
def test_forward_refuses_what_is_no_batch_of_its_images(shape):
    model = build(TINY_SYSTEM, 3, 2)
    message = r"tiny expects images \(N, 3, H, W\), got shape .*batch dimension with x\[None\]"
    with pytest.raises(ValueError, match=message) as error:
        model(th.zeros(shape))
    assert str(tuple(shape)) in str(error.value)


def test_a_row_nobody_builds_is_a_type_error():
    with pytest.raises(TypeError, match="No block is built from 'conv'"):
        build_block("conv", 3, TINY_SYSTEM)


def test_an_image_of_absurdly_many_channels_is_refused_before_pictures_of_it_are_drawn():
    with pytest.raises(ValueError, match="in_channels"):
        build(get_spec("rl_s"), 65_536, 0, (16, 16))


@pytest.mark.parametrize("size", [np.int64(40), (np.int64(40), 40)], ids=["side", "height and width"])
def test_numpys_whole_numbers_make_the_same_network(size):
    model = create_model("rl_s2", np.int64(4), np.int64(10), size, frame_channels=np.int64(1))
    plain = create_model("rl_s2", 4, 10, 40, frame_channels=1)
    assert [weight.shape for weight in model.parameters()] == [weight.shape for weight in plain.parameters()]
    th.jit.script(model)


def test_dense_filters_start_without_a_mean_and_depthwise_ones_keep_theirs():
    means = {True: [], False: []}
    for layer in convolutions(build(get_spec("rl_s"), 4, 0)):
        share = layer.weight.mean((1, 2, 3)).abs().mean() / layer.weight.square().mean().sqrt()
        means[layer.groups == 1].append(share.item())
    assert (len(means[True]), len(means[False])) == (9, 2)
    assert max(means[True]) < 1e-3 and min(means[False]) > 0.1
