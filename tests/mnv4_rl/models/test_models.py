"""The named models: published counts, any image, every parameter alive, errors that help."""

import inspect

import pytest
import torch as th

import mnv4_rl
from mnv4_rl import create_model, models
from mnv4_rl.models import mobilenet_v4_custom
from mnv4_rl.models.registry import list_models

README_PARAMETERS = {
    "mobilenet_v4_nano": 590_344,
    "mobilenet_v4_small": 1_303_904,
    "mobilenet_v4_medium": 2_276_384,
    "mobilenet_v4_large": 9_740_680,
    "mobilenet_v4_hybrid_large": 35_886_888,
}


@pytest.fixture(scope="module", params=list_models())
def model(request):
    """One build a variant for all the tests that share it."""
    th.manual_seed(0)
    return create_model(request.param, num_classes=5).eval()


@pytest.mark.parametrize("name", README_PARAMETERS)
def test_parameters_are_exactly_those_published(name):
    with th.device("meta"):
        model = getattr(models, name)()
    assert sum(p.numel() for p in model.parameters()) == README_PARAMETERS[name]
    assert model.spec.name == name


def test_hybrid_large_has_32_heads():
    with th.device("meta"):
        model = models.mobilenet_v4_hybrid_large()
    assert {m.num_heads for m in model.modules() if hasattr(m, "num_heads")} == {32}


def test_nano_classifies_a_large_image():
    with th.inference_mode():
        assert models.mobilenet_v4_nano().eval()(th.rand(1, 3, 256, 256)).isfinite().all()


@pytest.mark.slow  # 16,384 positions attend to each other
@pytest.mark.parametrize("name", README_PARAMETERS)
def test_readme_models_classify_a_512_pixel_image(name):
    model = getattr(models, name)().eval()
    with th.inference_mode():
        assert model(th.rand(1, 3, 512, 512)).isfinite().all()


def test_gradient_reaches_every_parameter(model):
    model.train()(th.rand(4, 3, 33, 40)).square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.eval().zero_grad()
    # A key's bias adds one number to all of a query's logits, which softmax cancels: its gradient is rounding noise.
    assert [key for key in dead if not key.endswith(".key.bias")] == []


def test_uniform_pictures_give_finite_outputs(model):
    with th.inference_mode():
        for value in (0.0, 1.0, 255.0):
            assert model(th.full((1, 3, 20, 24), value)).isfinite().all()


def test_output_does_not_depend_on_the_rest_of_the_batch(model):
    x = th.rand(3, 3, 18, 21)
    with th.inference_mode():
        together, alone = model(x)[1:2], model(x[1:2])
    th.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*list_models("mobilenet_v4")[:2], *list_models("rl")])
def test_train_and_eval_mode_agree_on_everything_but_dropout(name):
    model = create_model(name, num_classes=7)
    x = th.rand(2, 3, 18, 21)
    for module in model.modules():
        if isinstance(module, th.nn.Dropout):
            module.p = 0.0
    with th.no_grad():
        assert th.equal(model.train()(x), model.eval()(x))


@pytest.mark.parametrize("name", list_models("rl"))
def test_rl_models_have_no_modes_at_all(name):
    modal = th.nn.Dropout | th.nn.modules.batchnorm._BatchNorm
    assert not any(isinstance(module, modal) for module in create_model(name).modules())


def test_dropout_drops_in_train_mode_only():
    model = mobilenet_v4_custom(num_classes=3, dropout=0.5)
    x = th.rand(2, 3, 16, 16)
    assert not th.equal(model.train()(x), model(x))
    assert th.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("name", list_models())
def test_without_classes_the_features_come_out(name):
    model = create_model(name, num_classes=0).eval()
    assert model(th.rand(1, 3, 24, 24)).shape == (1, model.head.out_features)


def test_custom_takes_the_readmes_arguments_and_defaults():
    defaults = {name: p.default for name, p in inspect.signature(mobilenet_v4_custom).parameters.items()}
    assert defaults == {
        "in_channels": 3,
        "num_classes": 1000,
        "base_channels": 16,
        "expanded_channels": 32,
        "squeeze_ratio": 0.25,
        "num_heads": 2,
        "hidden_dim_classifier": 64,
        "dropout": 0.2,
        "FusedIBs": 1,
        "UIB_and_ExtraDWs": 1,
        "SE_and_UIBs": 1,
        "SE_and_MobileMQAs": 1,
    }


def test_custom_with_nanos_sizes_is_nano():
    custom = mobilenet_v4_custom(3, 1000, 24, 64, 0.25, 4, 512, 0.2, 2, 2, 3, 1)
    nano = models.mobilenet_v4_nano()
    custom.load_state_dict(nano.state_dict())
    x = th.rand(1, 3, 20, 20)
    assert th.equal(custom.eval()(x), nano.eval()(x))


def test_custom_may_leave_every_stage_out():
    model = mobilenet_v4_custom(FusedIBs=0, UIB_and_ExtraDWs=0, SE_and_UIBs=0, SE_and_MobileMQAs=0)
    assert model.eval()(th.rand(1, 3, 5, 5)).shape == (1, 1000)


@pytest.mark.parametrize("base_channels", [1, 6, 7, 20])
def test_the_norm_adapts_to_channels_that_eight_does_not_divide(base_channels):
    model = mobilenet_v4_custom(base_channels=base_channels, expanded_channels=13, num_heads=1, num_classes=2)
    assert model.eval()(th.rand(2, 3, 9, 9)).isfinite().all()


def test_package_offers_the_models():
    assert mnv4_rl.create_model is create_model
    assert mnv4_rl.list_models is list_models


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_model("mobilenet_v4_tiny"), "no model called 'mobilenet_v4_tiny'"),
        (lambda: create_model("rl_s", in_channels=0), "in_channels must be a whole number of at least 1, got 0"),
        (lambda: create_model("rl_s", num_classes=-1), "num_classes must be a whole number of at least 1, got -1"),
        (lambda: create_model("rl_s", image_size=0), "height must be a whole number of at least 1, got 0"),
        (lambda: create_model("rl_s", image_size=(84, 0)), "width must be a whole number of at least 1, got 0"),
        (
            lambda: mobilenet_v4_custom(base_channels=16, num_heads=3),
            "num_heads=3 does not divide the 16 channels.*1, 2, 4, 8, 16",
        ),
        (lambda: mobilenet_v4_custom(squeeze_ratio=2), r"squeeze_ratio must lie in \(0, 1\], got 2"),
        (lambda: mobilenet_v4_custom(dropout=1), r"dropout must lie in \[0, 1\), got 1"),
        (lambda: mobilenet_v4_custom(FusedIBs=-1), "FusedIBs must be a whole number of at least 0, got -1"),
        (lambda: mobilenet_v4_custom(expanded_channels=0), "expanded_channels must be a whole number of at least 1"),
        (lambda: mobilenet_v4_custom(hidden_dim_classifier=0), "hidden_.* must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_arguments_say_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
