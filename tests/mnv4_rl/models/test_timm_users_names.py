"""What those who come from timm call: filters of names, features, maps by index, another classifier."""

import pytest
import torch as th

from mnv4_rl import create_model, list_models
from mnv4_rl.models.layers import DropPath
from mnv4_rl.models.registry import SPECS


def test_names_are_filtered_by_family_or_pattern():
    assert list_models("mnv4_*") == list_models("paper")
    assert list_models("*_hybrid_*") == [name for name in SPECS if "_hybrid_" in name]
    assert list_models("rl_s") == ["rl_s"]


@pytest.mark.parametrize("nothing", ["rl-s", "mobilenetv4_*", "readme", ""])
def test_a_filter_that_fits_nothing_is_refused_with_the_choices(nothing):
    with pytest.raises(ValueError, match="mobilenet_v4, paper, rl") as error:
        list_models(nothing)
    assert all(name in str(error.value) for name in SPECS)


@pytest.mark.parametrize(("name", "classes"), [("rl_s", 0), ("rl_m", 0), ("mnv4_conv_s", 1000)])
def test_only_image_models_have_classes_unless_asked(name, classes):
    with th.device("meta"):
        assert create_model(name).num_classes == classes
        assert create_model(name, num_classes=7).eval()(th.empty(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("name", ["rl_s", "mobilenet_v4_nano", "mnv4_conv_s"])
def test_features_and_another_classifier(name):
    model, x = create_model(name, num_classes=5).eval(), th.rand(2, 3, 40, 40)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert th.equal(model.head(features), model(x))
    rest = {key: tensor.clone() for key, tensor in model.double().state_dict().items() if "classifier" not in key}
    model.reset_classifier(9)
    assert all(th.equal(tensor, rest[key]) for key, tensor in model.state_dict().items() if "classifier" not in key)
    assert (model.num_classes, model(x.double()).shape) == (9, (2, 9))
    assert model.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    model.reset_classifier(0)
    assert model(x.double()).shape == (2, model.head.out_features) and model.num_classes == 0
    th.testing.assert_close(model.forward_features(x.double()).float(), features, rtol=1e-3, atol=1e-4)


def test_maps_by_index():
    whole = create_model("mnv4_conv_s", features_only=True).eval()
    some = create_model("mnv4_conv_s", features_only=True, out_indices=(1, -1)).eval()
    some.load_state_dict(whole.state_dict())
    x = th.rand(1, 3, 64, 64)
    assert [m.shape for m in some(x)] == [m.shape for m in (whole(x)[1], whole(x)[4])]
    assert (some.channels, some.reductions) == ((32, 960), (4, 32))


@pytest.mark.parametrize("indices", [(5,), (), (-6,), (1.0,)])
def test_a_map_that_is_not_there_is_refused(indices):
    with pytest.raises(ValueError, match="out_indices"):
        create_model("mnv4_conv_s", features_only=True, out_indices=indices)


def test_indices_need_maps():
    with pytest.raises(ValueError, match="features_only"):
        create_model("mnv4_conv_s", out_indices=(1,))


def test_stochastic_depth_by_argument():
    model = create_model("mobilenet_v4_nano", drop_path_rate=0.3)
    assert max(m.rate for m in model.modules() if isinstance(m, DropPath)) > 0.2
    with pytest.raises(ValueError, match="drop-path rate"):
        create_model("mobilenet_v4_nano", drop_path_rate=1.5)
