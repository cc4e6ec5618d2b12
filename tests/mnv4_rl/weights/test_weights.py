"""Weight files: bit for bit in and out, and every wrong file refused with the model and the disk left as they were."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mnv4_rl import __version__, create_model, list_models
from mnv4_rl.models.network import Network, build
from mnv4_rl.models.paper import TIMM_NAMES
from mnv4_rl.models.pyramid import FeaturePyramid
from mnv4_rl.models.registry import SPECS, get_spec
from mnv4_rl.models.spec_json import spec_from_dict, spec_to_dict
from mnv4_rl.models.timm_network import import_timm
from mnv4_rl.models.width import scale_width
from mnv4_rl.weights.files import TIMM_TAGS, find_weights, read_weights
from mnv4_rl.weights.loading import (
    adapt_stem,
    load_pretrained,
    load_timm_state_dict,
    load_weights,
    save_weights,
    to_timm_state_dict,
)
from tests.mnv4_rl.weights.timm_reference import timm_model
from tests.variants import BY_SIZE

TINY = scale_width(get_spec("mnv4_conv_s"), 0.35)  # the smallest of timm's networks


def tiny(in_channels: int = 3, num_classes: int = 7) -> Network:
    return build(TINY, in_channels, num_classes)


def copy_of(model: nn.Module) -> dict[str, th.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_equal_bits(state: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> None:
    assert list(state) == list(other)
    for key, tensor in state.items():
        assert tensor.dtype == other[key].dtype and th.equal(tensor, other[key]), key


def save_timm_file(path: Path, model: Network) -> Path:
    """A file as timm writes it: its names, no metadata of ours."""
    state = {key: tensor.clone() for key, tensor in to_timm_state_dict(model).items()}
    if path.suffix == ".safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        th.save(state, path)
    return path


@pytest.mark.parametrize("name", BY_SIZE)
def test_every_registered_model_round_trips_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, other = create_model(name, 4, 5), create_model(name, 4, 5)
    for key, tensor in model.state_dict().items():
        tensor.copy_(th.full_like(tensor, 3) if "num_batches" in key else th.randn_like(tensor))
    save_weights(model, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    assert_equal_bits(model.state_dict(), other.state_dict())


def test_a_pyramid_and_a_channels_last_model_round_trip(tmp_path: Path) -> None:
    pyramid = create_model("rl_s", features_only=True).to(memory_format=th.channels_last)
    save_weights(pyramid, tmp_path / "a.safetensors")
    other = create_model("rl_s", features_only=True)
    load_weights(other, tmp_path / "a.safetensors")
    assert_equal_bits(pyramid.state_dict(), other.state_dict())


def test_a_file_knows_its_architecture_and_version(tmp_path: Path) -> None:
    save_weights(tiny(), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["mnv4_rl"] == __version__
    assert spec_from_dict(json.loads(metadata["spec"])) == TINY


@pytest.mark.parametrize("name", list_models())
def test_specs_survive_json(name: str) -> None:
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(SPECS[name])))) == SPECS[name]


def test_a_row_of_numpys_numbers_is_written_as_any_other():
    row = replace(TINY, image_size=np.int64(32), head=replace(TINY.head, hidden_features=np.int32(8)))
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(row)))) == row


@pytest.mark.parametrize("name", ["rl_s", "rl_m", "mnv4_conv_s"])
def test_a_spec_with_the_loose_fields_of_version_0_1_0_is_read(name: str) -> None:
    data = spec_to_dict(get_spec(name))
    start = data.pop("start") or {"skip_gain": 1.0, "static_gain": None, "weight_rms": None}
    data |= {key: start[key] for key in ("skip_gain", "static_gain", "weight_rms")}
    assert spec_from_dict(data) == get_spec(name)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"class": "Popen"}, "'Popen' is none of .*ConvSpec"),
        ({"class": ["StemSpec"]}, "is none of .*ConvSpec"),
        ({"class": "StemSpec"}, "StemSpec.out_channels: Field required"),
        ({"colour": "red"}, "NetworkSpec.colour: Extra"),
        ({"norm": "instance"}, "NetworkSpec.norm: .*'batch'.*got 'instance'"),
        ({"image_size": 84.0}, "NetworkSpec.image_size: .*integer"),
        ({"image_size": True}, "NetworkSpec.image_size: .*integer"),
        ({"image_size": 10**6}, "65,536, got 1000000"),
        ({"layer_scale": float("nan")}, "65,536, got nan"),
        ({"stages": [spec_to_dict(TINY)["stages"][0]] * 501}, "at most 1,000 blocks, got 1,002"),
        ({"stages": [[spec_to_dict(TINY)["head"]]]}, "NetworkSpec.stages"),
    ],
)
def test_data_that_is_no_spec_is_refused(change: dict[str, object], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        spec_from_dict(spec_to_dict(TINY) | change)
    with pytest.raises(ValueError, match="Not the spec of a network"):
        spec_from_dict([])  # type: ignore[arg-type]


def write_truncated(path: Path) -> None:
    save_weights(tiny(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def write_text(path: Path) -> None:
    path.write_text("not a weight file, " * 100)


def write_empty(path: Path) -> None:
    path.touch()


def write_timm(path: Path) -> None:
    save_timm_file(path, tiny())


def write_other_architecture(path: Path) -> None:
    save_weights(build(scale_width(get_spec("mnv4_conv_s"), 0.4), 3, 7), path)


def write_other_classes(path: Path) -> None:
    save_weights(tiny(num_classes=8), path)


def write_other_dtype(path: Path) -> None:
    save_weights(tiny().double(), path)


def write_missing_key(path: Path) -> None:
    model = tiny()
    model.head.classifier = nn.Identity()
    save_weights(model, path)


def write_extra_key(path: Path) -> None:
    model = tiny()
    model.head.extra = nn.Linear(2, 2)
    save_weights(model, path)


def write_unreadable_spec(path: Path) -> None:
    save_file({"a": th.zeros(1)}, path, {"mnv4_rl": "99.0", "spec": "{"})


WRONG_FILES = {
    write_truncated: "truncated or not a safetensors file",
    write_text: "truncated or not a safetensors file",
    write_empty: "truncated or not a safetensors file",
    write_timm: "was not written by save_weights.*pretrained=path",
    write_other_architecture: "another architecture: mnv4_conv_s_040, which differs from this mnv4_conv_s_035 in name",
    write_other_classes: r"shape of head.classifier.weight torch.Size\(\[8, 1280\]\) instead of",
    write_other_dtype: "dtype of stem.conv.conv.weight torch.float64 instead of torch.float32",
    write_missing_key: "missing head.classifier.weight, head.classifier.bias",
    write_extra_key: "unexpected head.extra.bias, head.extra.weight",
    write_unreadable_spec: f"written by mnv4_rl 99.0, is none that {__version__} reads",
}


@pytest.mark.parametrize("write", WRONG_FILES, ids=lambda write: write.__name__)
def test_a_wrong_file_says_why_and_leaves_the_model_as_it_was(write, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    model = tiny()
    before = copy_of(model)
    with pytest.raises(ValueError, match=WRONG_FILES[write]):
        load_weights(model, tmp_path / "a.safetensors")
    assert_equal_bits(model.state_dict(), before)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file '.*gone.safetensors'"):
        load_weights(tiny(), tmp_path / "gone.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    save_weights(build(TINY, 1, 0), path)
    return path.read_bytes()


@settings(max_examples=20, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_no_truncated_file_is_ever_loaded(saved: bytes, tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    path.write_bytes(saved[: int(len(saved) * cut)])
    with pytest.raises(ValueError, match="truncated"):
        read_weights(path)
    path.unlink()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_existing_file(failing: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    model = tiny()
    save_weights(model, path)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(tiny(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_go_to_safetensors_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written to a \.safetensors file"):
        save_weights(tiny(), tmp_path / "a.pth")


def test_a_state_dict_that_does_not_fit_leaves_the_model_as_it_was() -> None:
    model = tiny()
    before = copy_of(model)
    state = {key: tensor.clone() for key, tensor in to_timm_state_dict(tiny()).items()}
    state["blocks.2.1.se.conv.weight"] = state.pop("blocks.4.0.conv.weight")
    state["conv_stem.weight"] = th.zeros(32, 4, 3, 3)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_timm_state_dict(model, state)
    for phrase in ("missing stages.4.0.conv.weight", "unexpected blocks.2.1.se.conv.weight", "Size([32, 4, 3, 3])"):
        assert phrase in str(error.value)
    assert_equal_bits(model.state_dict(), before)


@pytest.mark.parametrize("spec", [get_spec("rl_s"), get_spec("mobilenet_v4_nano"), TINY.without_batch_norm()])
def test_models_timm_does_not_have_are_refused(spec) -> None:
    with pytest.raises(ValueError, match="Use save_weights and load_weights"):
        to_timm_state_dict(build(spec, 3, 10))


# --- pretrained weights ---


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_timm_file_starts_a_model(suffix: str, tmp_path: Path) -> None:
    trained = tiny()
    path = save_timm_file(tmp_path / f"mobilenetv4_conv_small_035{suffix}", trained)
    model = create_model(TINY, num_classes=7, pretrained=path)
    assert_equal_bits(model.state_dict(), trained.state_dict())


def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path: Path) -> None:
    trained = tiny()
    th.save({"epoch": 3, "state_dict": to_timm_state_dict(trained)}, tmp_path / "a.pth")
    model = create_model(TINY, num_classes=7, pretrained=str(tmp_path / "a.pth"))
    assert_equal_bits(model.state_dict(), trained.state_dict())


def test_a_file_of_our_own_starts_a_model(tmp_path: Path) -> None:
    trained = create_model("mobilenet_v4_nano", num_classes=10)
    save_weights(trained, tmp_path / "a.safetensors")
    model = create_model("mobilenet_v4_nano", num_classes=10, pretrained=tmp_path / "a.safetensors")
    assert_equal_bits(model.state_dict(), trained.state_dict())


@pytest.mark.parametrize("num_classes", [0, 3])
def test_other_classes_keep_a_fresh_classifier(num_classes: int, tmp_path: Path) -> None:
    trained = tiny(num_classes=7)
    path = save_timm_file(tmp_path / "a.safetensors", trained)
    model = tiny(num_classes=num_classes)
    before = copy_of(model)
    fresh = load_pretrained(model, path)
    assert fresh == (["head.classifier.weight", "head.classifier.bias"] if num_classes else [])
    for key, tensor in model.state_dict().items():
        assert th.equal(tensor, (before if key in fresh else trained.state_dict())[key]), key


def test_a_pyramid_takes_stem_and_stages(tmp_path: Path) -> None:
    trained = tiny()
    pyramid = create_model(TINY, pretrained=save_timm_file(tmp_path / "a.safetensors", trained), features_only=True)
    x = th.rand(2, 3, 64, 64)
    assert th.equal(pyramid.eval()(x)[-1], trained.eval().stages(trained.stem(x)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_the_stem_is_adapted_as_timm_does(channels: int, tmp_path: Path) -> None:
    trained = tiny()
    path = save_timm_file(tmp_path / "a.safetensors", trained)
    model = create_model(TINY, channels, 7, pretrained=path)
    assert model.state_dict()["stem.conv.conv.weight"].shape == (32, channels, 3, 3)
    try:
        import_timm()
        from timm.models import adapt_input_conv
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    expected = adapt_input_conv(channels, trained.state_dict()["stem.conv.conv.weight"])
    assert th.equal(model.state_dict()["stem.conv.conv.weight"], expected)


def test_a_grey_picture_looks_the_same_to_a_stem_for_one_channel() -> None:
    weight = th.randn(8, 3, 3, 3)
    grey = th.rand(1, 1, 9, 9)
    in_colour = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    assert th.allclose(nn.functional.conv2d(grey, adapt_stem(weight, 1)), in_colour, atol=1e-5)


def test_a_timm_checkpoint_with_adapted_stem_gives_timms_numbers(tmp_path: Path) -> None:
    reference = timm_model("mobilenetv4_conv_small_035", in_chans=4, num_classes=5).eval()
    save_file(reference.state_dict(), tmp_path / "a.safetensors")
    model = create_model(TINY, 4, 5, pretrained=tmp_path / "a.safetensors").eval()
    x = th.rand(2, 4, 48, 48)
    assert th.allclose(model(x), reference(x), rtol=1e-5, atol=1e-4)


PRETRAINED_MISTAKES = {
    write_truncated: "truncated or not a safetensors file",
    write_text: "truncated or not a safetensors file",
    write_other_architecture: "mnv4_conv_s_040, which differs from this mnv4_conv_s_035 in stages",
}


@pytest.mark.parametrize("write", PRETRAINED_MISTAKES, ids=lambda write: write.__name__)
def test_a_wrong_pretrained_file_leaves_the_model_as_it_was(write, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    model = tiny()
    before = copy_of(model)
    with pytest.raises(ValueError, match=PRETRAINED_MISTAKES[write]):
        load_pretrained(model, tmp_path / "a.safetensors")
    assert_equal_bits(model.state_dict(), before)


def test_a_timm_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save_timm_file(tmp_path / "a.safetensors", build(scale_width(get_spec("mnv4_conv_s"), 0.5), 3, 7))
    with pytest.raises(ValueError, match=r"does not fit mnv4_conv_s_035: shape of stages\.1\.0\.conv"):
        create_model(TINY, pretrained=path)
    with pytest.raises(ValueError, match="timm has no rl_s"):
        create_model("rl_s", pretrained=path)


class Innocent:
    """Stands for any object whose pickle could run code when it is read."""


@pytest.mark.parametrize("content", [{"state_dict": Innocent()}, {"epoch": 3}, [1, 2]])
def test_a_pickle_of_anything_but_tensors_is_refused(content: object, tmp_path: Path) -> None:
    th.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"could run code|holds no state dict"):
        create_model(TINY, pretrained=tmp_path / "a.pth")


# --- where pretrained weights come from ---


@pytest.mark.parametrize(
    "path",
    [
        "mobilenetv4_conv_aa_large.e230_r448_in12k_ft_in1k.safetensors",
        "mobilenetv4_conv_blur_medium.e500_r224_in1k/model.safetensors",
        "models--timm--mobilenetv4_conv_aa_large.e600_r384_in1k/snapshots/0/model.safetensors",
    ],
)
def test_an_anti_aliased_checkpoint_is_refused_by_name(path: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    save_timm_file(file, tiny())
    with pytest.raises(ValueError, match=r"holds weights of mobilenetv4_conv_(aa_large|blur_medium).*anti-aliased"):
        create_model(TINY, pretrained=file)


def test_an_anti_aliased_repository_is_refused_before_any_download() -> None:
    with pytest.raises(ValueError, match="anti-aliased"):
        create_model("mnv4_conv_m", pretrained="timm/mobilenetv4_conv_blur_medium.e500_r224_in1k")


def test_the_config_beside_a_hub_file_names_its_architecture(tmp_path: Path) -> None:
    path = save_timm_file(tmp_path / "model.safetensors", tiny())
    (tmp_path / "config.json").write_text('{"architecture": "mobilenetv4_conv_aa_medium"}')
    with pytest.raises(ValueError, match="holds weights of mobilenetv4_conv_aa_medium"):
        create_model(TINY, pretrained=path)
    (tmp_path / "config.json").write_text("no json")
    create_model(TINY, pretrained=path)


def test_a_plain_file_in_a_folder_of_filtered_ones_is_not_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mobilenetv4_conv_aa_medium"
    folder.mkdir()
    create_model(TINY, pretrained=save_timm_file(folder / "mobilenetv4_conv_small_035.safetensors", tiny()))


def test_true_fetches_timms_default_weights(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def hf_hub_download(*args: str) -> str:
        asked.append(args)
        return str(save_timm_file(tmp_path / "model.safetensors", create_model("mnv4_conv_s")))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    create_model("mnv4_conv_s", pretrained=True)
    create_model("mnv4_conv_s", pretrained="timm/mobilenetv4_conv_small.e3600_r256_in1k")
    assert asked == [
        ("timm/mobilenetv4_conv_small.e2400_r224_in1k", "model.safetensors"),
        ("timm/mobilenetv4_conv_small.e3600_r256_in1k", "model.safetensors"),
    ]


@pytest.mark.parametrize("name", TIMM_TAGS)
def test_default_weights_are_those_that_timm_takes_by_default(name: str) -> None:
    try:
        timm = import_timm()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert timm.get_pretrained_cfg(TIMM_NAMES[name]).tag == TIMM_TAGS[name]


def test_without_the_hubs_client_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install huggingface_hub, or fetch https://.*pass its path"):
        find_weights(True, "mnv4_hybrid_m")


def test_offline_the_message_says_what_to_fetch(monkeypatch) -> None:
    def hf_hub_download(*_: str) -> str:
        raise RuntimeError("Name or service not known")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    with pytest.raises(
        ConnectionError, match=r"ix_e600_r384_in1k/resolve/main/model.safetensors on a machine"
    ) as error:
        find_weights(True, "mnv4_hybrid_l")
    assert "pretrained='mobilenetv4_hybrid_large.ix_e600_r384_in1k.safetensors'" in str(error.value)


def test_variants_without_published_weights_say_so() -> None:
    with pytest.raises(ValueError, match="No pretrained weights are published for 'rl_s'; they are for mnv4_conv_s"):
        create_model("rl_s", pretrained=True)


def test_a_missing_pretrained_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file 'nowhere\.safetensors'"):
        create_model("mnv4_conv_s", pretrained="nowhere.safetensors")


# --- pyramids of the other families ---


@pytest.mark.parametrize("name", list_models())
def test_every_variant_has_a_pyramid(name: str) -> None:
    with th.device("meta"):
        model = create_model(name, in_channels=4, features_only=True).eval()
        maps = model(th.zeros(1, 4, 84, 61, device="meta"))
    assert isinstance(model, FeaturePyramid)
    assert [m.shape[1] for m in maps] == list(model.channels)
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-84 // r), -(-61 // r)) for r in model.reductions]
    assert list(model.reductions) == sorted(set(model.reductions))


def test_the_families_have_their_own_strides() -> None:
    with th.device("meta"):
        reductions = {name: create_model(name, features_only=True).reductions for name in ("rl_s", "mobilenet_v4_nano")}
    assert reductions == {"rl_s": (4, 8, 16), "mobilenet_v4_nano": (1, 2, 4)}
