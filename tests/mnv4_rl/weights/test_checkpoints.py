"""timm's training checkpoints as timm reads them, compiled models, and tensors that must not be copied."""

from argparse import Namespace

import pytest
import torch as th
from torch import nn

from mnv4_rl import create_model
from mnv4_rl.models.network import build
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.timm_network import import_timm
from mnv4_rl.models.width import scale_width
from mnv4_rl.weights import load_pretrained, load_weights, save_weights, to_timm_state_dict

TINY = scale_width(get_spec("mnv4_conv_s"), 0.35)
LATE = "blocks.4.0.conv.weight"


def tiny():
    return build(TINY, 3, 7)


def timm_state(model=None):
    return {key: tensor.clone() for key, tensor in to_timm_state_dict(model or tiny()).items()}


def same_state(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(th.equal(mine[key], theirs[key]) for key in mine)


def prefixed(state, prefix):
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda good, bad: {"state_dict_ema": good, "state_dict": bad},
        lambda good, bad: {"model_ema": good, "model": bad},
        lambda good, bad: {"state_dict_ema": None, "state_dict": good},
        lambda good, bad: {"model": good, "optimizer": {"state": {0: {"step": th.zeros(())}}}},
        lambda good, bad: {"state_dict": prefixed(good, "module.")},
        lambda good, bad: prefixed(good, "_orig_mod."),
        lambda good, bad: {"state_dict": prefixed(good, "_orig_mod.module.")},
        lambda good, bad: {"state_dict": prefixed(good, "module._orig_mod.")},
        lambda good, bad: {
            "state_dict": good,
            "epoch": 3,
            "args": Namespace(lr=0.1, model="x", aug=None, sizes=(1, 2)),
        },
    ],
)
def test_a_training_checkpoint_gives_the_weights_that_timm_takes(wrap, tmp_path):
    trained = tiny()
    th.save(wrap(timm_state(trained), timm_state()), tmp_path / "a.pth.tar")
    assert same_state(create_model(TINY, num_classes=7, pretrained=tmp_path / "a.pth.tar"), trained)


def test_timm_takes_the_same_ones(tmp_path):
    import_timm()
    from timm.models import _helpers as helpers

    th.save({"state_dict_ema": prefixed(timm_state(), "module."), "state_dict": timm_state()}, tmp_path / "a.pth")
    state = helpers.load_state_dict(str(tmp_path / "a.pth"))
    mine = timm_state(create_model(TINY, num_classes=7, pretrained=tmp_path / "a.pth"))
    assert mine.keys() == state.keys() and all(th.equal(mine[key], state[key]) for key in mine)


def compile_whole(model):
    return th.compile(model, backend="eager")


def compile_stages(model):
    model.stages = th.compile(model.stages, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compile_whole, compile_stages])
def test_weights_of_a_compiled_model_go_out_and_in(compiled, tmp_path):
    model, fresh, other = tiny(), tiny(), compiled(tiny())
    save_weights(compiled(model), tmp_path / "a.safetensors")
    load_weights(fresh, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    x = th.rand(1, 3, 64, 64)
    expected = model.eval()(x)
    assert th.equal(fresh.eval()(x), expected) and th.equal(other.eval()(x), expected)
    assert to_timm_state_dict(other).keys() == to_timm_state_dict(fresh).keys()


def spoil(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


ODD = {
    "nan": spoil(float("nan")),
    "infinite": spoil(float("inf")),
    "infinite as float": lambda tensor: spoil(1e300)(tensor.double()),
    "expanded": lambda tensor: tensor[:1].clone().expand_as(tensor),
    "expanded to terabytes": lambda tensor: th.zeros(1, 1, 1, 1).expand(2**20, 2**21, 1, 1),
    "overlapping": lambda tensor: th.zeros(10_000).as_strided(tensor.shape, (1, 1, 1, 1)),
    "sparse": lambda tensor: tensor.to_sparse(),
    "csr": lambda tensor: th.eye(3).to_sparse_csr(),
    "meta": lambda tensor: tensor.to("meta"),
    "quantised": lambda tensor: th.quantize_per_tensor(tensor, 0.1, 0, th.qint8),
    "complex": lambda tensor: tensor.to(th.complex64),
    "whole numbers": lambda tensor: tensor.int(),
    "eight bits": lambda tensor: tensor.to(th.float8_e4m3fn),
    "half as large": lambda tensor: tensor[: len(tensor) // 2],
    "no tensor": lambda tensor: tensor.tolist(),
    "none": lambda tensor: None,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("odd", ODD)
def test_a_tensor_that_cannot_be_copied_whole_leaves_the_model_as_it_was(odd, tmp_path):
    state = timm_state()
    state[LATE] = ODD[odd](state[LATE])  # everything before it fits
    th.save(state, tmp_path / "a.pth")
    model = tiny()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError):
        load_pretrained(model, tmp_path / "a.pth")
    assert all(th.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("odd", ["expanded", "expanded to terabytes", "sparse", "meta", "quantised", "complex", "nan"])
def test_an_odd_stem_is_refused_before_it_is_adapted_to_other_channels(odd, tmp_path):
    state = timm_state()
    state["conv_stem.weight"] = ODD[odd](state["conv_stem.weight"])
    th.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError):
        create_model(TINY, 4, 7, pretrained=tmp_path / "a.pth")


def test_two_weights_in_one_memory_are_copied_each(tmp_path):
    trained = tiny()
    state = timm_state(trained)
    shared = th.cat([tensor.flatten() for tensor in state.values() if tensor.dtype == th.float32])
    start = 0
    for key, tensor in state.items():
        if tensor.dtype == th.float32:
            state[key] = shared[start : start + tensor.numel()].view_as(tensor)
            start += tensor.numel()
    th.save(state, tmp_path / "a.pth")
    assert same_state(create_model(TINY, num_classes=7, pretrained=tmp_path / "a.pth"), trained)


def test_channels_last_and_half_precision_weights_are_taken(tmp_path):
    trained = tiny().to(memory_format=th.channels_last).half().float()
    th.save(timm_state(nn.Module.half(trained)), tmp_path / "a.pth")
    assert same_state(create_model(TINY, num_classes=7, pretrained=tmp_path / "a.pth"), trained.float())
