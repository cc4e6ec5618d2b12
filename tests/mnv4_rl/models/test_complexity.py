"""Counts against pinned numbers, against arithmetic by hand, and against torch's own counter."""

import json
from math import prod

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnv4_rl import create_model
from mnv4_rl.models.blocks import Attention
from mnv4_rl.models.complexity import measure, saved_bytes, saved_per_image
from mnv4_rl.models.registry import list_models
from tests.golden_numbers import COMPLEXITY, complexity

GOLDEN = json.loads(COMPLEXITY.read_text())
REGENERATE = "run `make golden` and review the diff"


@pytest.fixture(scope="module")
def nature_cnn():
    return NatureCNN(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8))


def on_meta(name, in_channels=3, num_classes=1000):
    with th.device("meta"):
        return create_model(name, in_channels, num_classes)


# Pinned numbers


def test_every_registered_variant_is_pinned():
    assert sorted(GOLDEN) == sorted(list_models()), REGENERATE


@pytest.mark.parametrize("name", list_models())
def test_variant_costs_what_is_pinned(name):
    assert complexity(name) == GOLDEN.get(name), REGENERATE


def test_pinned_atari_maps_are_those_of_the_design():
    shapes = GOLDEN["rl_s"]["stage_shapes"]["84"]
    assert [shape[1] for shape in list(shapes.values())[:-1]] == [21, 11, 6, 6]
    assert shapes["head"] == [512]


# Arithmetic


def test_nano_costs_what_arithmetic_says():
    """The README family's counting rules for base 24, expanded 64, squeezed 6, hidden 512, at 84x84 RGB."""
    b, e, q, hidden, classes = 24, 64, 6, 512, 1000
    full, half, quarter = 84 * 84, 42 * 42, 21 * 21
    weights = {
        "stem": 9 * 3 * b,
        "fused": 9 * b * e + e * b,
        "uib": 25 * b + b * e + e * b,
        "extra_dw": 25 * b + b * e + 9 * e + e * b,
        "se": b * q + q * b,
        "mqa": 3 * b * b,
        "head": b * hidden + hidden * classes,
    }
    norms = 2 * b + 2 * (2 * e + 2 * b) + 2 * (8 * b + 6 * e) + 3 * (4 * b + 2 * e) + 2 * hidden
    biases = 4 * (q + b) + 3 * b + hidden + classes
    counts = {"stem": 1, "fused": 2, "uib": 5, "extra_dw": 2, "se": 4, "mqa": 1, "head": 1}
    assert sum(counts[k] * weights[k] for k in counts) + norms + biases == 590_344

    fused = 9 * b * e * (half + quarter) + e * b * (half + quarter)
    at_quarter = 5 * weights["uib"] + 2 * weights["extra_dw"] + weights["mqa"]
    attention = 4 * quarter * quarter * (6 + 6)  # 4 heads of width 6
    macs = weights["stem"] * full + fused + at_quarter * quarter + 4 * weights["se"] + attention + weights["head"]
    cost = measure(on_meta("mobilenet_v4_nano"), 84)
    assert (cost.parameters, cost.macs) == (590_344, macs)


def test_nature_cnn_costs_9_3_million_macs(nature_cnn):
    cost = measure(nature_cnn, 84, in_channels=4)
    convs = prod((20, 20, 32, 8, 8, 4)) + prod((9, 9, 64, 4, 4, 32)) + prod((7, 7, 64, 3, 3, 64))
    assert [stage.macs for stage in cost.stages] == [convs, 3136 * 512]
    assert cost.macs == 9_342_976
    assert cost.stage_shapes == {"cnn": (3136,), "linear": (512,)}
    assert [stage.activation_bytes for stage in cost.stages] == [4 * (20 * 20 * 32 + 81 * 64 + 49 * 64), 4 * 512]
    assert [stage.parameters for stage in cost.stages] == [77_984, 1_606_144]


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), 6 * 4 * 3 * 4 * 9),  # 8x6 -> 4x3
        (nn.Conv2d(4, 8, 5, groups=4, padding=2), 8 * 8 * 6 * 1 * 25),
        (nn.Linear(6, 10), 4 * 8 * 6 * 10),  # acts on the last axis of (1, 4, 8, 6)
        (nn.BatchNorm2d(4), 0),
    ],
)
def test_a_single_layer_costs_its_rule(layer, macs):
    cost = measure(layer, (8, 6), in_channels=4)
    assert cost.macs == macs
    assert cost.parameters == sum(p.numel() for p in layer.parameters())


def test_attention_costs_queries_times_keys_times_both_widths():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()

        def forward(self, x):
            x = x.flatten(2)[:, None]  # one head, (1, 1, 4, 48)
            return self.attention(x, x[:, :, :3], x[:, :, :3])

    assert measure(Model(), (8, 6), in_channels=4).macs == 1 * 4 * 3 * (48 + 48)


@pytest.mark.parametrize("name", list_models())
def test_stages_add_up_to_the_model_and_to_torchs_flop_counter(name):
    model = on_meta(name)
    cost = measure(model, (61, 45))
    with FlopCounterMode(display=False) as counter, th.no_grad():
        model.eval()(th.empty(1, 3, 61, 45, device="meta"))
    assert cost.macs == counter.get_total_flops() / 2
    assert sum(stage.parameters for stage in cost.stages) == cost.parameters
    assert [stage.name for stage in cost.stages] == ["stem", *(f"stages.{i}" for i in range(len(model.stages))), "head"]
    assert cost.activation_bytes == sum(stage.activation_bytes for stage in cost.stages) > 0


def test_a_layer_that_runs_twice_counts_twice():
    layer = nn.Conv2d(4, 4, 1)
    assert measure(nn.Sequential(layer, layer), 8, 4).macs == 2 * measure(layer, 8, 4).macs


def test_measuring_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, 8, 3)
    saved_bytes(model, th.rand(2, 3, 8, 8))
    assert [module.training for module in model] == [True, True, False]
    assert all(th.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


# Layers nobody counts


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.ConvTranspose2d(3, 4, 3), "ConvTranspose2d"), (nn.PReLU(), "PReLU"), (nn.LSTM(8, 4), "LSTM")],
)
def test_an_unknown_layer_with_parameters_is_an_error(layer, name):
    with pytest.raises(TypeError, match=f"No rule counts the multiply-adds of '1', a {name}.*known are Conv2d"):
        measure(nn.Sequential(nn.Conv2d(3, 3, 1), layer), 8, 3)


def test_a_layer_used_behind_the_hooks_is_an_error():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            return nn.functional.linear(x, self.fc.weight)

    with pytest.raises(TypeError, match="never called fc"):
        measure(Functional(), 8, 3)


def test_a_model_that_does_not_say_its_channels_is_asked_for_them(nature_cnn):
    with pytest.raises(ValueError, match=r"NatureCNN does not say how many channels.*pass in_channels"):
        measure(nature_cnn, 84)


@pytest.mark.parametrize("size", [0, (8, -1)])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        measure(nn.Conv2d(3, 3, 1), size, 3)


# What backward needs


def test_saved_bytes_count_each_block_once_and_no_parameters():
    x = th.rand(3, 10)
    first, second = nn.Linear(10, 20), nn.Linear(20, 5)
    # The first layer saves x; ReLU saves its output, which is also what the second layer saves.
    assert saved_bytes(nn.Sequential(first, nn.ReLU(), second), x) == 4 * (3 * 10 + 3 * 20)
    assert saved_bytes(nn.Sequential(first, nn.Identity()), x) == 4 * 3 * 10
    assert saved_bytes(nn.Sequential(first).double(), x.double()) == 8 * 3 * 10


def test_saved_bytes_of_an_in_place_activation_are_its_outputs_alone():
    conv = nn.Conv2d(2, 4, 3, padding=1)
    x = th.rand(2, 2, 5, 5)
    one_map = 4 * 2 * 4 * 5 * 5
    assert saved_bytes(nn.Sequential(conv, nn.ReLU(inplace=True)), x) == 4 * x.numel() + one_map
    assert saved_bytes(nn.Sequential(conv, nn.SiLU()), x) == 4 * x.numel() + one_map


def test_dropout_saves_its_mask_in_train_mode_only():
    model = nn.Sequential(nn.Linear(10, 20), nn.Dropout(0.5))
    x = th.rand(3, 10)
    evaluated = saved_bytes(model.eval(), x)
    assert saved_bytes(model.train(), x) > evaluated == 4 * 3 * 10


def test_saved_bytes_grow_with_the_batch():
    model = create_model("rl_m", 4, 0)
    assert saved_bytes(model, th.rand(4, 4, 84, 84)) == 4 * saved_bytes(model, th.rand(1, 4, 84, 84))


def test_an_equalised_network_keeps_its_scaled_weights_once_a_batch():
    model = create_model("rl_s", 4, 0)
    one, two, four = (saved_bytes(model, th.rand(n, 4, 84, 84)) for n in (1, 2, 4))
    assert four - two == 2 * (two - one)
    assert saved_per_image(model, th.rand(3, 4, 84, 84)) == two - one
    convolutions = [m for m in (*model.stem.modules(), *model.stages.modules()) if isinstance(m, nn.Conv2d)]
    assert one - (two - one) == 4 * sum(m.weight.numel() for m in convolutions)
