"""The five paper models: exact sizes, the rows' structure, and their narrower versions."""

import re
from collections import Counter

import pytest
import torch as th
from torch import nn

from mnv4_rl import create_model, list_models
from mnv4_rl.models.complexity import measure
from mnv4_rl.models.network import build
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.specs import FusedIBSpec, MobileMQASpec, UIBSpec
from mnv4_rl.models.width import scale_width

# Parameters with 1000 classes and without the classifier; multiply-adds with 1000 classes at the paper's image size.
# The parameters are those of the authors' code (tensorflow/models, mobilenet_test.py, less the running statistics).
SIZES = {
    "mnv4_conv_s": (3_774_024, 2_493_024, 186_005_568),
    "mnv4_conv_m": (9_715_512, 8_434_512, 1_080_244_224),
    "mnv4_conv_l": (32_590_864, 31_309_864, 6_376_220_672),
    "mnv4_hybrid_m": (11_074_648, 9_793_648, 1_271_183_360),
    "mnv4_hybrid_l": (37_764_624, 36_483_624, 7_711_877_120),
}
IMAGE_SIZES = {"mnv4_conv_s": 224, "mnv4_conv_m": 256, "mnv4_conv_l": 384, "mnv4_hybrid_m": 256, "mnv4_hybrid_l": 384}
# timm 1.0.31's narrower variants: (variant, multiplier) -> parameters with 1000 classes, without, stage channels.
WIDTHS = {
    ("mnv4_conv_s", 0.35): (1_905_384, 624_384, (32, 16, 24, 32, 336)),
    ("mnv4_conv_s", 0.5): (2_238_952, 957_952, (32, 16, 32, 48, 480)),
    ("mnv4_hybrid_m", 0.75): (7_313_528, 6_032_528, (32, 40, 64, 120, 720)),
    ("mnv4_hybrid_l", 0.75): (22_754_984, 21_473_984, (24, 40, 72, 144, 720)),
}


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_family_is_the_papers_five() -> None:
    assert list_models("paper") == list(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_exact(name: str) -> None:
    with th.device("meta"):
        model = create_model(name)
        features = create_model(name, num_classes=0)
    counts = (count_parameters(model), count_parameters(features), measure(model, IMAGE_SIZES[name]).macs)
    assert counts == SIZES[name]
    assert get_spec(name).image_size == IMAGE_SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_any_size_gives_1280_features(name: str) -> None:
    with th.device("meta"):
        model = create_model(name, in_channels=1, num_classes=0).eval()
        for height, width in ((33, 57), (1, 1)):
            assert model(th.zeros(2, 1, height, width, device="meta")).shape == (2, 1280)


# The paper's names (section 3) by whether there is a start and a middle depthwise kernel.
NAMES = {(True, True): "ExtraDW", (False, True): "IB", (True, False): "ConvNext", (False, False): "FFN"}
# Blocks of the UIB stages by these names, from the paper's tables and the authors' code.
KINDS = {
    "mnv4_conv_s": {"ExtraDW": 3, "IB": 8, "ConvNext": 1},
    "mnv4_conv_m": {"ExtraDW": 13, "ConvNext": 4, "FFN": 4},
    "mnv4_conv_l": {"ExtraDW": 19, "ConvNext": 7},
    "mnv4_hybrid_m": {"ExtraDW": 13, "ConvNext": 5, "FFN": 4, "MobileMQA": 8},
    "mnv4_hybrid_l": {"ExtraDW": 19, "ConvNext": 8, "MobileMQA": 8},
}


@pytest.mark.parametrize("name", KINDS)
def test_rows_have_the_papers_blocks(name: str) -> None:
    blocks = list(get_spec(name).blocks())
    uibs = [block for block in blocks if isinstance(block, UIBSpec)]
    kinds = Counter(NAMES[uib.start_dw_kernel_size > 0, uib.middle_dw_kernel_size > 0] for uib in uibs)
    kinds.update("MobileMQA" for block in blocks if isinstance(block, MobileMQASpec))
    assert kinds == KINDS[name]


@pytest.mark.parametrize("name", SIZES)
def test_every_strided_uib_strides_in_the_middle(name: str) -> None:
    strided = [block for block in get_spec(name).blocks() if isinstance(block, UIBSpec) and block.stride == 2]
    assert strided and all(block.middle_dw_kernel_size for block in strided)


def test_only_hybrids_have_layer_scale_and_only_the_large_one_gelu() -> None:
    scaled = {name for name in SIZES if get_spec(name).layer_scale is not None}
    assert scaled == {"mnv4_hybrid_m", "mnv4_hybrid_l"}
    assert {name for name in SIZES if get_spec(name).activation == "gelu"} == {"mnv4_hybrid_l"}


@pytest.mark.parametrize(("name", "multiplier"), WIDTHS)
def test_narrow_sizes_are_exact(name: str, multiplier: float) -> None:
    spec = scale_width(get_spec(name), multiplier)
    with th.device("meta"):
        counts = count_parameters(build(spec, 3, 1000)), count_parameters(build(spec, 3, 0))
    stages = tuple(stage[-1].out_channels for stage in spec.stages[:3] + spec.stages[-1:] if stage)
    assert counts == WIDTHS[name, multiplier][:2]
    assert (spec.stem.out_channels, *stages) == WIDTHS[name, multiplier][2]
    assert spec.name == f"{name}_{round(multiplier * 100):03d}"


def test_wider_scales_the_stem_but_not_the_head() -> None:
    spec = scale_width(get_spec("mnv4_conv_m"), 1.5)
    assert spec.stem.out_channels == 48
    assert spec.head == get_spec("mnv4_conv_m").head
    assert spec.out_channels == 1440
    fused = spec.stages[0][0]
    assert isinstance(fused, FusedIBSpec)
    assert (fused.expanded_channels, fused.out_channels) == (4 * 48, 72)


def test_scaling_is_pure_and_one_changes_nothing() -> None:
    spec = get_spec("mnv4_hybrid_l")
    before = repr(spec)
    scale_width(spec, 0.75)
    assert repr(spec) == before
    assert scale_width(spec, 1) is spec


@pytest.mark.parametrize("multiplier", [0, -0.5, float("nan"), float("inf")])
def test_scaling_by_nonsense_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"positive number such as 0.5, got {multiplier!r}")):
        scale_width(get_spec("mnv4_conv_s"), multiplier)


def test_attention_tied_to_its_channels_is_not_scaled() -> None:
    with pytest.raises(ValueError, match="without an output projection cannot be scaled"):
        scale_width(get_spec("mobilenet_v4_nano"), 0.5)


def test_timm_names_lead_to_ours() -> None:
    with pytest.raises(ValueError, match="called 'mnv4_hybrid_m' here"):
        create_model("mobilenetv4_hybrid_medium")
