"""Rows of data: what they say of themselves, what they refuse, and how the registry answers a wrong name."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from mnv4_rl.checks import check_heads
from mnv4_rl.models.network import build
from mnv4_rl.models.registry import SPECS, get_spec, list_models
from mnv4_rl.models.specs import (
    ConvSpec,
    FusedIBSpec,
    GatedIBSpec,
    GridHeadSpec,
    MobileMQASpec,
    PooledHeadSpec,
    PoolSpec,
    SESpec,
    StartSpec,
    StemSpec,
    UIBSpec,
    round_channels,
)


@pytest.mark.parametrize("name", list_models())
def test_row_is_registered_under_its_own_name_and_cannot_change(name):
    spec = get_spec(name)
    assert spec.name == name
    with pytest.raises(FrozenInstanceError):
        spec.norm = "none"


@pytest.mark.parametrize("name", list_models())
def test_row_foretells_the_last_map(name):
    spec = get_spec(name)
    with th.device("meta"):
        model = build(spec, in_channels=3, num_classes=0).eval()
        for size in ((1, 1), (17, 40), (84, 84)):
            maps = model.stages(model.stem(th.empty(1, 3, *size)))
            assert maps.shape == (1, spec.out_channels, *spec.map_size(size))


@pytest.mark.parametrize("name", list_models())
def test_a_row_without_batch_norm_builds_no_batch_norm(name):
    spec = get_spec(name).without_batch_norm()
    with th.device("meta"):
        modules = list(build(spec, in_channels=3, num_classes=0).modules())
    assert not any(isinstance(module, th.nn.modules.batchnorm._BatchNorm) for module in modules)
    if "batch" not in (get_spec(name).norm, get_spec(name).inner_norm):
        assert spec is get_spec(name)


def test_batch_norm_is_swapped_for_groups_and_layer_scale_goes_with_it():
    spec = get_spec("rl_s")
    spec = replace(spec, start=None, norm="batch", inner_norm="none", layer_scale=1e-5).without_batch_norm()
    assert (spec.norm, spec.inner_norm, spec.layer_scale) == ("group", "none", None)


def test_batch_norm_of_the_stem_alone_is_swapped_too():
    spec = get_spec("rl_s")
    with_batch = replace(spec, stem=replace(spec.stem, norm="batch"))
    assert with_batch.without_batch_norm() == replace(spec, stem=replace(spec.stem, norm="group"))


@pytest.mark.parametrize(
    ("channels", "rounded"), [(8, 8), (3, 8), (12, 16), (11, 16), (20, 24), (96 * 0.75, 72), (960 * 0.35, 336)]
)
def test_round_channels_follows_the_mobilenets_rule(channels, rounded):
    assert round_channels(channels) == rounded


@given(channels=st.floats(1, 5000), divisor=st.integers(1, 64))
@settings(deadline=None)
def test_round_channels_is_a_multiple_near_what_was_asked(channels, divisor):
    rounded = round_channels(channels, divisor)
    assert rounded % divisor == 0
    assert rounded >= max(divisor, 0.9 * channels)
    assert rounded <= max(divisor, channels + divisor)


@given(channels=st.integers(1, 300), num_heads=st.integers(1, 300))
def test_heads_divide_the_channels_or_the_allowed_counts_are_listed(channels, num_heads):
    if channels % num_heads == 0:
        assert check_heads(channels, num_heads) * num_heads == channels
        return
    with pytest.raises(ValueError, match="does not divide the") as error:
        check_heads(channels, num_heads)
    allowed = [int(n) for n in str(error.value).split("allowed here: ")[1].rstrip(".").split(", ")]
    assert allowed == [n for n in range(1, channels + 1) if channels % n == 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StemSpec(out_channels=0), "out_channels must be a whole number of at least 1, got 0"),
        (lambda: StemSpec(out_channels=True), "out_channels must be a whole number of at least 1, got True"),
        (lambda: StemSpec(out_channels=8.0), r"out_channels must be a whole number of at least 1, got 8\.0"),
        (lambda: ConvSpec(out_channels=8, kernel_size=2), "kernel_size must be an odd number such as 3 or 5, got 2"),
        (lambda: FusedIBSpec(out_channels=8, expanded_channels=8, kernel_size=0), "must be an odd number.*got 0"),
        (lambda: UIBSpec(out_channels=8, expanded_channels=8, stride=2), "stride 2 needs a depthwise convolution"),
        (lambda: PoolSpec(pool="min"), "pool must be one of max, average, got 'min'"),
        (lambda: PoolSpec(kernel_size=2), "kernel_size must be an odd number"),
        (lambda: GatedIBSpec(out_channels=8, expanded_channels=0), "expanded_channels must be a whole number"),
        (lambda: SESpec(squeeze_ratio=-0.1), r"squeeze_ratio must lie in \(0, 1\], got -0.1"),
        (lambda: SESpec(squeeze_ratio=float("nan")), r"squeeze_ratio must lie in \(0, 1\], got nan"),
        (lambda: MobileMQASpec(num_heads=4, key_dim=8, kv_heads=3), r"kv_heads must be 1 or num_heads \(4\), got 3"),
        (
            lambda: PooledHeadSpec(hidden_features=8, hidden_bias=True, dropout=1.0),
            r"dropout must lie in \[0, 1\), got 1.0",
        ),
        (lambda: GridHeadSpec(grid=0), "grid must be a whole number of at least 1, got 0"),
        (lambda: GridHeadSpec(gain=0.0), r"gain must lie in \(0, inf\), got 0.0"),
        (lambda: GridHeadSpec(constant=-1.0), r"constant must lie in \[0, inf\), got -1.0"),
        (lambda: GridHeadSpec(constant_share=1.0), r"constant_share must lie in \[0, 1\), got 1.0"),
        (lambda: StartSpec(static_gain=1.5), r"static_gain must lie in \[0, 1\], got 1.5"),
        (lambda: StartSpec(weight_rms=-1.0), r"weight_rms must lie in \(0, inf\), got -1.0"),
        (lambda: StartSpec(skip_gain=0), r"skip_gain must lie in \(0, inf\), got 0"),
        (lambda: StartSpec(skip_gain="1"), r"skip_gain must lie in \(0, inf\), got '1'"),
        (lambda: StartSpec(weight_rms=float("nan")), "weight_rms must lie in"),
        (lambda: replace(get_spec("rl_s"), norm="group"), "for networks without norms"),
        (lambda: replace(get_spec("mnv4_conv_s"), start=StartSpec()), "for networks without norms"),
        (lambda: replace(get_spec("rl_s"), layer_scale=0.0), "layer_scale must lie in"),
        (lambda: GridHeadSpec(norm="batch"), "no train and eval mode"),
        (lambda: GridHeadSpec(norm="instance"), "norm must be one of none, batch, group, layer, got 'instance'"),
        (lambda: GridHeadSpec(activation="tanh"), "activation must be one of relu, silu, gelu, simplex, got 'tanh'"),
        (lambda: replace(get_spec("rl_s"), inner_norm="x"), "inner_norm must be one of .*, got 'x'"),
        (lambda: replace(get_spec("rl_s"), image_size=0), "image_size must be a whole number of at least 1, got 0"),
    ],
)
def test_broken_row_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "field",
    [
        {"stages": (("conv",),)},
        {"stages": [(ConvSpec(out_channels=8),)]},
        {"stages": ([ConvSpec(out_channels=8)],)},
        {"stages": (ConvSpec(out_channels=8),)},
        {"stages": ((StemSpec(out_channels=8),),)},
        {"stem": ConvSpec(out_channels=8)},
        {"head": "grid"},
        {"head": None},
        {"start": {"skip_gain": 0.5}},
        {"name": 3},
    ],
    ids=str,
)
def test_a_piece_of_another_kind_is_refused(field):
    with pytest.raises(TypeError, match="must be a "):
        replace(get_spec("rl_s"), **field)


# Names


def test_list_models_lists_the_table_by_family():
    assert list_models() == list(SPECS)
    assert list_models("mobilenet_v4") == [
        *(f"mobilenet_v4_{size}" for size in ("nano", "small", "medium", "large", "hybrid_large"))
    ]
    assert "rl_s" in list_models("rl")
    assert sorted(name for family in ("mobilenet_v4", "paper", "rl") for name in list_models(family)) == sorted(SPECS)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("mobilenet_v4_nan", "mobilenet_v4_nano"),
        ("mobilenet-v4-small", "mobilenet_v4_small"),
        ("MobileNet_V4_Medium", "mobilenet_v4_medium"),
        ("mobilenetv4_nano", "mobilenet_v4_nano"),
        ("RL_S", "rl_s"),
        ("rls", "rl_s"),
    ],
)
def test_wrong_name_gets_the_close_match(wrong, meant):
    with pytest.raises(ValueError, match=f"no model called '{wrong}'. Did you mean .*'{meant}'"):
        get_spec(wrong)


def test_hopeless_name_gets_the_whole_list():
    with pytest.raises(ValueError, match=r"no model called 'resnet50'\. Known: ") as error:
        get_spec("resnet50")
    assert all(name in str(error.value) for name in list_models())


@pytest.mark.parametrize(("size", "ours"), [("hybrid_large", "mnv4_hybrid_l"), ("conv_small", "mnv4_conv_s")])
def test_timms_name_is_told_apart_from_the_mobilenet_v4_family(size, ours):
    message = f"timm's name for the paper's model, called '{ours}' here .*not 'mobilenet_v4_"
    with pytest.raises(ValueError, match=message):
        get_spec(f"mobilenetv4_{size}")


def test_a_name_that_is_no_string_is_a_type_error():
    with pytest.raises(TypeError, match="named by a string such as 'rl_s', got 3"):
        get_spec(3)


# Gain, constant, its share, activation of the head; skip gain, static gain, rms of the start: no weight holds them.
RELEASED = {
    "rl_s": (0.1, 0.4, 0.25, "silu", 0.5, 0.3, 0.06),
    "rl_m": (1.0, 0.4, 0.0, "silu", 0.5, None, None),
    "rl_s2": (0.3, 0.4, 0.25, "silu", 0.5, 0.3, 0.06),
    "rl_m2": (0.3, 0.4, 0.25, "silu", 0.5, 0.3, 0.06),
}


@pytest.mark.parametrize("name", list_models("rl"))
def test_released_rows_stay_as_they_are(name):
    head, start = get_spec(name).head, get_spec(name).start
    found = (head.gain, head.constant, head.constant_share, head.activation)
    assert (*found, start.skip_gain, start.static_gain, start.weight_rms) == RELEASED[name]
