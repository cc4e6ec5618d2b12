"""The layers and blocks, each against a reference written out here or a property of the paper's block."""

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mnv4_rl.models.blocks import SE, UIB, ExtraDW, FusedIB, GatedIB, MobileMQA, Pool, Stem
from mnv4_rl.models.layers import (
    ChannelLayerNorm,
    ConvNorm,
    LayerScale,
    SamePadConv2d,
    group_size,
    make_activation,
    make_conv,
    make_norm,
)
from mnv4_rl.models.specs import ACTIVATIONS, NORMS
from mnv4_rl.models.start import draw

MEMORY_FORMATS = (th.contiguous_format, th.channels_last)
ATTENTION_SETTINGS = [(kv_heads, kv_stride) for kv_heads in (1, 4) for kv_stride in (1, 2)]


@pytest.fixture(autouse=True)
def _seed():
    th.manual_seed(0)


# Layers


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 2)])
def test_even_kernel_equals_conv_on_the_image_padded_on_both_sides(size, memory_format):
    conv = SamePadConv2d(3, 5, 4, 4).double()
    reference = nn.Conv2d(3, 5, 4, stride=4).double()
    reference.load_state_dict(conv.state_dict())
    x = th.randn(2, 3, *size, dtype=th.float64).to(memory_format=memory_format)
    padded = th.zeros(2, 3, -(-size[0] // 4) * 4, -(-size[1] // 4) * 4, dtype=th.float64)
    top, left = (-size[0] % 4) // 2, (-size[1] % 4) // 2
    padded[:, :, top : top + size[0], left : left + size[1]] = x
    th.testing.assert_close(conv(x), reference(padded), atol=1e-10, rtol=0)


@settings(deadline=None)  # a loaded machine is no failure
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kernel_size=st.integers(1, 8),
    stride=st.integers(1, 5),
)
def test_every_convolution_keeps_ceil_of_size_over_stride(height, width, kernel_size, stride):
    conv = make_conv(1, 2, kernel_size, stride, groups=1, bias=False)
    assert conv(th.zeros(1, 1, height, width)).shape == (1, 2, -(-height // stride), -(-width // stride))


def test_same_pad_conv_pads_with_zeros_around_the_image():
    conv = SamePadConv2d(1, 1, kernel_size=4, stride=1, bias=False)
    nn.init.ones_(conv.weight)
    # A 4x4 window over a single lit pixel: one padded row above and left, two below and right.
    assert conv(th.ones(1, 1, 1, 1)).item() == 1
    x = th.zeros(1, 1, 5, 5)
    x[0, 0, 0, 0] = 1
    assert conv(x)[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
def test_channel_layer_norm_normalises_each_position_alone(memory_format):
    norm = ChannelLayerNorm(6).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    x = th.randn(2, 6, 3, 4, dtype=th.float64).to(memory_format=memory_format)
    centred = x - x.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    expected = unit * norm.weight[:, None, None] + norm.bias[:, None, None]
    th.testing.assert_close(norm(x), expected, atol=1e-10, rtol=0)
    th.testing.assert_close(norm(x[:, :, 0, 0]), expected[:, :, 0, 0], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(8, 8), (64, 8), (1280, 8), (1, 1), (2, 2), (7, 7), (13, 13), (12, 6), (10, 10), (20, 10)],
)
def test_group_size_is_eight_or_the_nearest_divisor(channels, expected):
    assert group_size(channels) == expected


@settings(deadline=None)
@given(channels=st.integers(1, 500))
def test_group_norm_is_built_for_any_channels(channels):
    size = group_size(channels)
    assert channels % size == 0
    assert size == 8 or channels % 8
    assert make_norm("group", channels).num_groups == channels // size


def test_layer_scale_scales_each_channel():
    scale = LayerScale(3, 0.5)
    x = th.randn(2, 3, 4, 5)
    assert th.equal(scale(x), 0.5 * x)
    with th.no_grad():
        scale.gamma.copy_(th.tensor([1.0, 0.0, 2.0]))
    assert th.equal(scale(x), th.stack([x[:, 0], 0 * x[:, 1], 2 * x[:, 2]], 1))


def test_conv_norm_has_a_bias_exactly_where_no_norm_follows_unless_told():
    assert ConvNorm(2, 3, norm="group").conv.bias is None
    assert ConvNorm(2, 3, norm="none").conv.bias is not None
    assert ConvNorm(2, 3, norm="group", bias=True).conv.bias is not None


@pytest.mark.parametrize(("make", "argument"), [(lambda n: make_norm(n, 8), "norm"), (make_activation, "activation")])
def test_wrong_norm_and_activation_get_the_allowed_names(make, argument):
    with pytest.raises(ValueError, match=f"{argument} must be one of .*, got 'instance'"):
        make("instance")


# Stem, FusedIB, UIB


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_block_takes_every_norm_and_activation(norm, activation):
    blocks = nn.Sequential(
        Stem(3, 8, norm=norm, activation=activation),
        FusedIB(8, 12, 16, norm=norm, activation=activation),
        GatedIB(12, 12, 8, stride=1, norm=norm, activation=activation),
        UIB(12, 12, 24, 3, 5, norm=norm, activation=activation),
        SE(12, activation=activation),
        MobileMQA(12, 3, norm=norm),
    )
    y = blocks(th.randn(2, 3, 9, 7))
    assert y.shape == (2, 12, 5, 4)
    y.square().sum().backward()  # in-place activations must not break autograd
    assert all(p.grad is not None and p.grad.isfinite().all() for p in blocks.parameters())


def test_stem_brings_maps_into_channels_last_once_and_may_do_without_an_activation():
    x = th.randn(2, 4, 16, 16)
    for kernel_size, stride in [(4, 4), (3, 2)]:
        y = Stem(4, 8, kernel_size, stride)(x)
        assert y.is_contiguous(memory_format=th.channels_last)
    assert Stem(1, 8, activation=None, norm="none")(th.randn(1, 1, 6, 6)).min() < 0


@pytest.mark.parametrize(
    "make",
    [
        lambda i, o, s: FusedIB(i, o, 12, 3, s, "none"),
        lambda i, o, s: GatedIB(i, o, 12, 3, s, "none"),
        lambda i, o, s: UIB(i, o, 12, 3, 3, s, "none"),
    ],
)
@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "has_skip"),
    [(8, 8, 1, True), (8, 8, 2, False), (8, 4, 1, False), (4, 8, 2, False)],
)
def test_skip_exists_iff_the_stride_is_one_and_the_channels_match(make, in_channels, out_channels, stride, has_skip):
    block = make(in_channels, out_channels, stride)
    nn.init.zeros_(block.project.conv.weight)
    nn.init.zeros_(block.project.conv.bias)
    x = th.randn(2, in_channels, 6, 6)
    expected = x if has_skip else th.zeros(2, out_channels, 6 // stride, 6 // stride)
    assert th.equal(block(x), expected)


def test_a_gate_multiplies_what_its_sibling_expands():
    block, x = GatedIB(3, 5, 4, stride=2, norm="none"), th.randn(2, 3, 7, 7)
    a, b = (F.conv2d(x, conv.weight, conv.bias, 2, 1) for conv in (block.expand.conv, block.gate.conv))
    th.testing.assert_close(block(x), block.project(a.relu() * b))


def test_both_branches_of_a_gate_have_the_inner_norm():
    block = GatedIB(8, 8, 16, norm="none", inner_norm="group")
    norms = [type(conv.norm) for conv in (block.expand, block.gate, block.project)]
    assert norms == [nn.GroupNorm, nn.GroupNorm, nn.Identity]


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_pools_keep_a_position_for_every_stride_and_see_nothing_outside(size):
    x = -1 - th.rand(2, 3, size, size)  # a border of zeros would be the largest, and shrink the mean
    for pool, reduce in (("max", th.amax), ("average", th.mean)):
        y = Pool(pool)(x)
        assert y.shape == (2, 3, -(-size // 2), -(-size // 2))
        th.testing.assert_close(y[:, :, 0, 0], reduce(x[:, :, :2, :2], (2, 3)))
    assert th.equal(Pool(kernel_size=1, stride=1)(x), x)


def test_simplex_shares_one_among_every_eight_channels_of_a_vector_or_a_map():
    for x in (th.randn(2, 24), th.randn(2, 24, 3, 5)):
        y = make_activation("simplex")(x)
        th.testing.assert_close(y.unflatten(1, (3, 8)).sum(2), th.ones_like(y[:, :3]))
        th.testing.assert_close(y[:, 8:16], x[:, 8:16].softmax(1))
    assert make_activation("simplex")(th.randn(2, 7)).sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("make", [lambda: FusedIB(8, 8, 12, 3, 1, "none"), lambda: UIB(8, 8, 12, 3, 3, 1, "none")])
def test_projection_is_linear(make):
    block, x = make(), th.randn(2, 8, 5, 5)
    nn.init.zeros_(block.project.conv.bias)
    before = block(x) - x
    assert before.min() < 0 < before.max()
    with th.no_grad():
        block.project.conv.weight.neg_()
    th.testing.assert_close(block(x) - x, -before, atol=1e-5, rtol=0)


def test_start_depthwise_has_no_activation_and_the_middle_one_has():
    block = UIB(8, 8, 16, 3, 5)
    assert isinstance(block.start_dw.activation, nn.Identity)
    assert isinstance(block.middle_dw.activation, nn.ReLU)
    assert isinstance(block.expand.activation, nn.ReLU)
    assert isinstance(block.project.activation, nn.Identity)
    assert block.start_dw(th.randn(4, 8, 5, 5)).min() < 0


@pytest.mark.parametrize(
    ("start", "middle", "modules"),
    [
        (5, 3, ["start_dw", "expand", "middle_dw", "project"]),  # ExtraDW
        (0, 3, ["expand", "middle_dw", "project"]),  # inverted bottleneck
        (5, 0, ["start_dw", "expand", "project"]),  # ConvNext-like
        (0, 0, ["expand", "project"]),  # FFN
    ],
)
def test_uib_has_the_convolutions_of_its_setting(start, middle, modules):
    block = UIB(8, 8, 16, start, middle)
    assert [name for name, child in block.named_children() if isinstance(child, ConvNorm)] == modules
    for name, kernel, channels in (("start_dw", start, 8), ("middle_dw", middle, 16)):
        if kernel:
            conv = getattr(block, name).conv
            assert (conv.kernel_size, conv.groups, conv.out_channels) == ((kernel, kernel), channels, channels)


@pytest.mark.parametrize(("start", "middle", "strided"), [(3, 5, "middle_dw"), (0, 5, "middle_dw"), (3, 0, "start_dw")])
def test_uib_stride_sits_on_the_middle_depthwise_where_there_is_one(start, middle, strided):
    block = UIB(4, 6, 8, start, middle, stride=2)
    strides = {name: child.conv.stride for name, child in block.named_children() if isinstance(child, ConvNorm)}
    assert {name for name, stride in strides.items() if stride == (2, 2)} == {strided}
    assert block(th.randn(1, 4, 7, 5)).shape == (1, 6, 4, 3)


def test_uib_equals_its_formula():
    block = UIB(6, 6, 12, 3, 5, norm="none", activation="silu", layer_scale=0.5).double()
    x = th.randn(2, 6, 5, 4, dtype=th.float64)
    f, silu = nn.functional.conv2d, nn.functional.silu
    c = {name: getattr(block, name).conv for name in ("start_dw", "expand", "middle_dw", "project")}
    y = f(x, c["start_dw"].weight, c["start_dw"].bias, padding=1, groups=6)
    y = silu(f(y, c["expand"].weight, c["expand"].bias))
    y = silu(f(y, c["middle_dw"].weight, c["middle_dw"].bias, padding=2, groups=12))
    y = x + 0.5 * f(y, c["project"].weight, c["project"].bias)
    th.testing.assert_close(block(x), y, atol=1e-10, rtol=0)


def test_extra_dw_equals_uib_with_both_kernels():
    by_name, by_kernels = ExtraDW(6, 6, 12, norm="group"), UIB(6, 6, 12, 5, 3, norm="group")
    by_kernels.load_state_dict(by_name.state_dict())
    x = th.randn(2, 6, 5, 5)
    assert th.equal(by_name(x), by_kernels(x))


# SE


def test_se_gates_channels_by_numbers_between_zero_and_one():
    block, x = SE(8, squeeze_ratio=0.5), th.randn(3, 8, 4, 4)
    nn.init.normal_(block.excite.weight)
    gate = block(x) / x
    assert 0 < gate.min() < 0.5 < gate.max() < 1
    th.testing.assert_close(gate, gate[:, :, :1, :1].expand_as(gate))  # one number a channel


def test_se_keeps_at_least_one_hidden_channel():
    assert SE(3, squeeze_ratio=0.25).squeeze.out_channels == 1
    assert SE(48, squeeze_ratio=0.25).squeeze.out_channels == 12


# MobileMQA


def reference_attention(block, x):
    """Multi-query attention with every index written out; no shape is merged."""

    def project(conv, y, *split):
        y = th.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], y)
        if conv.bias is not None:
            y = y + conv.bias[:, None, None]
        return y.unflatten(1, split).flatten(-2)  # (N, heads, D, positions)

    heads, kv_heads, dim = block.num_heads, block.kv_heads, block.key_dim
    y = block.norm(x)
    q = project(block.query, y, heads, dim)
    k = project(block.key, block.key_reduction(y), kv_heads, dim)
    v = project(block.value, block.value_reduction(y), kv_heads, dim)
    results = []
    for head in range(heads):
        shared = 0 if kv_heads == 1 else head
        logits = th.einsum("ndl,ndm->nlm", q[:, head], k[:, shared]) / dim**0.5
        weights = logits.exp() / logits.exp().sum(2, keepdim=True)  # each query's weights over positions sum to 1
        results.append(th.einsum("nlm,ndm->ndl", weights, v[:, shared]))
    y = th.cat(results, 1).unflatten(2, x.shape[2:])
    if isinstance(block.output, nn.Conv2d):
        y = project(block.output, y, x.shape[1]).unflatten(2, x.shape[2:])
    return x + block.layer_scale(y)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kv_heads", "kv_stride"), ATTENTION_SETTINGS)
def test_attention_equals_the_reference(kv_heads, kv_stride, bias, memory_format):
    block = MobileMQA(8, 4, 6, kv_heads, kv_stride, bias=bias, layer_scale=0.7, norm="group").double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = th.randn(2, 8, 5, 4, dtype=th.float64).to(memory_format=memory_format)
    th.testing.assert_close(block(x), reference_attention(block, x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kv_stride", [1, 2])
def test_attention_of_the_readme_family_equals_the_reference(kv_stride):
    block = MobileMQA(
        8, 4, None, 4, kv_stride, kv_depthwise=False, bias=True, output_projection=False, norm="none"
    ).double()
    x = th.randn(2, 8, 3, 5, dtype=th.float64)
    th.testing.assert_close(block(x), reference_attention(block, x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize(("kv_heads", "kv_stride"), ATTENTION_SETTINGS)
def test_attention_runs_on_a_fused_kernel_on_the_cpu(kv_heads, kv_stride, memory_format):
    block = MobileMQA(16, 4, kv_heads=kv_heads, kv_stride=kv_stride)
    x = th.randn(2, 16, 6, 5).to(memory_format=memory_format)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # any other kernel would raise "No available kernel"
        block(x).sum().backward()


def test_attention_relates_positions():
    """One position's value reaches every other one; attending over channels or within a position would not."""
    block = MobileMQA(8, 2, norm="none").double()
    x = th.randn(1, 8, 4, 4, dtype=th.float64)
    changed = x.clone()
    changed[:, :, 0, 0] += 1
    moved = (block(changed) - block(x)).abs().amax(1)[0]
    assert moved.min() > 1e-6


def test_attention_without_a_reduction_treats_positions_as_a_set():
    block = MobileMQA(8, 2, norm="layer").double()
    x = th.randn(1, 8, 3, 4, dtype=th.float64)
    order = th.randperm(12)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    th.testing.assert_close(block(shuffled), block(x).flatten(2)[:, :, order].view_as(x), atol=1e-10, rtol=0)


def test_shared_keys_and_values_are_one_head_wide():
    shared, apart = MobileMQA(24, 4, kv_heads=1), MobileMQA(24, 4, kv_heads=4)
    assert (shared.key.out_channels, shared.value.out_channels, shared.query.out_channels) == (6, 6, 24)
    assert (apart.key.out_channels, apart.value.out_channels) == (24, 24)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3)])
@pytest.mark.parametrize(("kv_heads", "kv_stride"), ATTENTION_SETTINGS)
def test_attention_keeps_tiny_maps(kv_heads, kv_stride, size):
    block = MobileMQA(8, 4, kv_heads=kv_heads, kv_stride=kv_stride).eval()
    assert block(th.randn(2, 8, *size)).shape == (2, 8, *size)


# Initialisation


@pytest.mark.parametrize("conv", [nn.Conv2d(64, 64, 5, groups=64), nn.Conv2d(32, 64, 3), nn.Linear(64, 64)])
def test_the_draw_keeps_he_variance_at_any_width_depthwise_included(conv):
    draw(nn.ModuleDict({"layer": conv}))
    fan_in = conv.weight[0].numel()
    assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    assert not conv.bias.any()


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stem(0, 8), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: Pool("min"), "pool must be one of max, average, got 'min'"),
        (lambda: Pool(kernel_size=2), "kernel_size must be an odd number"),
        (lambda: FusedIB(8, 8, 16, kernel_size=4), "kernel_size must be an odd number such as 3 or 5, got 4"),
        (lambda: UIB(8, 8, 16, start_dw_kernel_size=2), "start_dw_kernel_size must be 0 .* or an odd number.*got 2"),
        (lambda: UIB(8, 8, 16, middle_dw_kernel_size=-1), "middle_dw_kernel_size must be 0 .* got -1"),
        (lambda: UIB(8, 8, 16, stride=2), "stride 2 needs a depthwise convolution to carry it: set"),
        (lambda: UIB(8, 8, 0), "expanded_channels must be a whole number of at least 1, got 0"),
        (lambda: SE(8, squeeze_ratio=0), r"squeeze_ratio must lie in \(0, 1\], got 0"),
        (lambda: SE(8, squeeze_ratio=1.5), r"squeeze_ratio must lie in \(0, 1\], got 1.5"),
        (lambda: SE(0), "channels must be a whole number of at least 1, got 0"),
        (
            lambda: MobileMQA(24, 5),
            "num_heads=5 does not divide the 24 channels.*allowed here: 1, 2, 3, 4, 6, 8, 12, 24",
        ),
        (lambda: MobileMQA(24, 4, kv_heads=2), r"kv_heads must be 1 or num_heads \(4\), got 2"),
        (lambda: MobileMQA(24, 4, kv_stride=0), "kv_stride must be a whole number of at least 1, got 0"),
        (lambda: MobileMQA(24, 4, 8, output_projection=False), r"must equal channels \(24\), got 4 \* 8 = 32; set"),
    ],
)
def test_wrong_arguments_say_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
