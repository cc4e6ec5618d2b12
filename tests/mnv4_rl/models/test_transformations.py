"""What PyTorch offers for a model, on every registered one: trace, script, compile, export, differentiate, map."""

from functools import partial

import pytest
import torch as th
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from mnv4_rl import create_model
from mnv4_rl.models.layers import averages
from mnv4_rl.models.registry import get_spec, list_models

SIZE = (41, 50)  # strides divide neither side, the grid divides no map
QUICK = "rl_s"

# TorchScript is on its way out, and says so; a trace says of each size that it stays fixed.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{w}") for w in ("DeprecationWarning", "torch.jit.TracerWarning")]


def images(model, batch=2, dtype=th.float32):
    th.manual_seed(1)  # the same every time
    shape = (batch, model.in_channels, *SIZE)
    return th.rand(shape) if dtype == th.float32 else th.randint(0, 256, shape, dtype=dtype)


def make(name, **kwargs):
    th.manual_seed(0)
    return create_model(name, 4 if get_spec(name).family == "rl" else 3, 3, **kwargs).eval()


def assert_same(found, expected):
    th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def is_traced_with_its_check(model):
    assert_same(th.jit.trace(model, images(model))(images(model, 3)), model(images(model, 3)))


def is_scripted(model):
    scripted = th.jit.script(model)
    for dtype in (th.float32, th.uint8):
        batch = images(model, dtype=dtype)
        assert_same(scripted(batch), model(batch))


def is_followed_by_fx(model):
    graph = th.fx.symbolic_trace(model)
    for dtype in (th.float32, th.uint8):
        batch = images(model, dtype=dtype)
        assert_same(graph(batch), model(batch))
    smaller = images(model)[..., :20]
    assert_same(graph(smaller), model(smaller))  # sizes are not fixed


def is_exported(model):
    batch = th.export.Dim("batch", min=1)
    program = th.export.export(model, (images(model),), dynamic_shapes=({0: batch},))
    assert_same(program.module()(images(model, 3)), model(images(model, 3)))


def is_compiled_whole(model):
    th.compiler.reset()  # what other models were compiled for counts towards a limit
    assert_same(th.compile(model, backend="eager", fullgraph=True)(images(model)), model(images(model)))


def runs_on_shapes_alone(model):
    with th.device("meta"):
        assert make(model.spec.name)(images(model)).shape == (2, 3)
    with FakeTensorMode():
        fake = make(model.spec.name)
        assert fake(images(model)).shape == fake(images(model, dtype=th.uint8)).shape == (2, 3)


def is_checkpointed(model):
    batch = images(model).requires_grad_()
    checkpoint(model, batch, use_reentrant=False).sum().backward()
    assert batch.grad.any()


def tells_hooks_what_layers_put_out(model):
    seen = []
    for layer in model.modules():
        layer.register_forward_hook(lambda _, inputs, output: seen.append((output, output.detach().clone())))
        if isinstance(layer, nn.Conv2d):
            layer.register_full_backward_hook(lambda layer, inputs, outputs: None)
    model(images(model).requires_grad_()).sum().backward()
    assert all(th.equal(output, at_first) for output, at_first in seen)


def has_gradients_a_sample(model):
    model.double()  # gradients of deep untrained networks are large differences
    parameters = dict(model.named_parameters())

    def loss(weights, image):
        return functional_call(model, weights, (image[None],)).square().sum()

    for dtype in (th.float32, th.uint8):
        batch = images(model, dtype=dtype)
        batch = batch if dtype == th.uint8 else batch.double()
        found = vmap(grad(loss), (None, 0))(parameters, batch)
        for index, image in enumerate(batch):
            expected = th.autograd.grad(loss(parameters, image), list(parameters.values()))
            for one, other in zip(found.values(), expected, strict=True):
                th.testing.assert_close(one[index], other, rtol=0, atol=2e-3 * other.abs().max().item() + 1e-6)


def is_mapped_over_images_and_over_models(model):
    for dtype in (th.float32, th.uint8):
        batch = images(model, dtype=dtype)
        with th.no_grad():
            assert_same(vmap(lambda image: model(image[None])[0])(batch), model(batch))
    pair = [model, make(model.spec.name)]
    parameters, buffers = stack_module_state(pair)  # type: ignore[arg-type]
    batch = images(model)
    found = vmap(lambda p, b: functional_call(model, (p, b), (batch,)))(parameters, buffers)
    assert_same(found, th.stack([one(batch) for one in pair]))


def has_a_forward_mode(model):
    weights = {name: p.detach() for name, p in model.named_parameters()}
    tangents = {name: th.randn_like(p) * p.std().nan_to_num() for name, p in weights.items()}
    for batch in (images(model), images(model, dtype=th.uint8)):
        call = partial(functional_call, model, args=(batch,))
        _, by_function = jvp(call, (weights,), (tangents,))
        with forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(p, tangents[name]) for name, p in weights.items()}
            by_level = forward_ad.unpack_dual(call(dual)).tangent
        th.testing.assert_close(by_level, by_function, rtol=1e-3, atol=1e-3 * by_function.abs().max().item())
    batch = images(model)
    assert jacfwd(lambda scale: model(batch * scale))(th.ones(())).isfinite().all()


TRANSFORMATIONS = (
    is_traced_with_its_check, is_scripted, is_followed_by_fx, is_exported, is_compiled_whole, runs_on_shapes_alone,
    is_checkpointed, tells_hooks_what_layers_put_out, has_gradients_a_sample, is_mapped_over_images_and_over_models,
    has_a_forward_mode,
)  # fmt: skip


@pytest.mark.parametrize("transformation", TRANSFORMATIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    "name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_every_model(name, transformation):
    transformation(make(name))


@pytest.mark.parametrize("name", [QUICK, pytest.param("mnv4_conv_s", marks=pytest.mark.slow)])
def test_pyramids_are_followed_and_scripted(name):
    model = make(name, features_only=True)
    for graph in (th.fx.symbolic_trace(model), th.jit.script(model)):
        for found, expected in zip(graph(images(model)), model(images(model)), strict=True):
            assert_same(found, expected)


def test_a_default_device_without_numbers_does_no_harm():
    th.set_default_device("meta")
    try:
        model = create_model("rl_s", 4, 3)
        assert model(th.rand(2, 4, *SIZE)).device.type == "meta"
    finally:
        th.set_default_device("cpu")


@pytest.mark.parametrize("dtype", [th.float32, th.uint8], ids=str)
@pytest.mark.parametrize("size", [(96, 128), (100, 100), (128, 128), (210, 160)], ids=str)
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["rl_s", pytest.param("mobilenet_v4_nano", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_onnx_computes_the_same_at_any_size_and_batch(name, dynamo, size, dtype, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = create_model(name, 4, 3, image_size=size).eval(), tmp_path / "model.onnx"
    batch = th.randint(0, 256, (3, 4, *size), dtype=th.uint8)
    batch = batch if dtype == th.uint8 else batch / 255
    axes = {"dynamic_shapes": ({0: th.export.Dim("n", min=1)},)} if dynamo else {"dynamic_axes": {"images": {0: "n"}}}
    th.onnx.export(model, (batch[:2],), path, dynamo=dynamo, input_names=["images"], verbose=False, **axes)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for images_ in (batch, batch[:1]):
        (found,) = session.run(None, {"images": images_.numpy()})
        assert_same(th.from_numpy(found), model(images_).detach())


@pytest.mark.parametrize(("size", "grid"), [(7, 6), (13, 6), (6, 4), (5, 1)])
def testaverages_by_matrices_is_adaptiveaverages(size, grid):
    x = th.rand(2, 3, size, size + 1)
    found = averages(size, grid) @ x @ averages(size + 1, grid).T
    th.testing.assert_close(found, nn.functional.adaptive_avg_pool2d(x, grid), rtol=0, atol=1e-6)
