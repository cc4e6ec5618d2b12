"""What PyTorch offers for a model, on fresh extractors: no check of pixels or weights stands in its way."""

from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.tensorboard import SummaryWriter

from mnv4_rl import MNV4Extractor, create_model
from mnv4_rl.baselines import ImpalaCNN
from mnv4_rl.weights.loading import save_weights

ATARI = spaces.Box(0, 255, (4, 42, 42), np.uint8)
RGB = spaces.Box(0, 255, (3, 40, 50), np.uint8)
MAKERS = {
    "default": partial(MNV4Extractor, ATARI, 32),
    "channels_last": partial(MNV4Extractor, spaces.Box(0, 1, (40, 50, 3), np.float32), 32),
    "stack": partial(MNV4Extractor, spaces.Box(0, 255, (4, 3, 40, 40), np.uint8), 32),
    "matrix": partial(MNV4Extractor, spaces.Box(0, 255, (40, 40), np.uint8), 32),
    "attention": partial(MNV4Extractor, RGB, 32, "mobilenet_v4_nano"),
    "impala": partial(ImpalaCNN, ATARI, 32),
}

pytestmark = [pytest.mark.filterwarnings(f"ignore::{w}") for w in ("DeprecationWarning", "torch.jit.TracerWarning")]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "trained.safetensors"
    save_weights(create_model("mnv4_conv_s", 3, 10), path)
    return partial(MNV4Extractor, RGB, 32, "mnv4_conv_s", pretrained=str(path))


QUICK = ("default", "pretrained")


@pytest.fixture(
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in (*MAKERS, "pretrained")]
)
def extractor(request, pretrained):
    """A fresh one: nothing has passed through it yet."""
    th.manual_seed(0)
    return pretrained() if request.param == "pretrained" else MAKERS[request.param]()


def observations(extractor, dtype=th.float32):
    th.manual_seed(1)
    shape = (2, *extractor._observation_space.shape)
    return th.rand(shape) if dtype == th.float32 else th.randint(0, 256, shape, dtype=dtype)


def assert_same(found, expected):
    th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_trace_with_its_check_and_tensorboards_graph(extractor, tmp_path):
    batch = observations(extractor)
    assert_same(th.jit.trace(extractor, batch)(batch), extractor(batch))
    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(extractor, batch)


def test_script_and_fx(extractor):
    for graph in (th.jit.script(extractor), th.fx.symbolic_trace(extractor)):
        for dtype in (th.float32, th.uint8):
            batch = observations(extractor, dtype)
            assert_same(graph(batch), extractor(batch))


def test_export(extractor):
    batch = observations(extractor)
    assert_same(th.export.export(extractor, (batch,)).module()(batch), extractor(batch))


@pytest.mark.slow
def test_compile_whole(extractor):
    batch = observations(extractor)
    assert_same(th.compile(extractor, backend="eager", fullgraph=True)(batch), extractor(batch))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(extractor, reentrant):
    batch = observations(extractor).requires_grad_()
    checkpoint(extractor, batch, use_reentrant=reentrant).sum().backward()
    assert batch.grad.any()


def test_map_over_images(extractor):
    batch = observations(extractor)
    assert_same(th.func.vmap(lambda image: extractor(image[None])[0])(batch), extractor(batch))


def test_meta_device(extractor):
    assert extractor.to("meta")(observations(extractor).to("meta")).shape == (2, 32)


def test_fake_tensors_and_a_default_device_without_numbers():
    with FakeTensorMode():
        extractor = MNV4Extractor(ATARI)
        assert extractor(observations(extractor)).shape == (2, 512)
    with th.device("meta"):
        extractor = MNV4Extractor(ATARI)
        assert extractor(observations(extractor)).shape == (2, 512)


def test_the_checks_come_back_afterwards():
    extractor = MNV4Extractor(ATARI, 32)
    batch = 255 * observations(extractor)
    th.jit.trace(extractor, batch, check_trace=False)
    th.export.export(extractor, (batch,))
    with pytest.raises(ValueError, match="divided by 255"):
        extractor(batch)
