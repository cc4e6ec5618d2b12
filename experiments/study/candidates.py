"""The encoders that were tried for ``rl_s`` and ``rl_m``: each a change to ``rl_s-as_drawn``.

Importing this module makes their names known to ``--encoder``. What they cost and reached is in
``experiments/results/encoder_study.md``, which ``experiments/encoder_study.py`` writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from agents.encoders import FEATURES_DIM, add_encoder
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.specs import (
    BlockSpec,
    FusedIBSpec,
    GridHeadSpec,
    MobileMQASpec,
    NetworkSpec,
    SESpec,
    StartSpec,
    StemSpec,
    UIBSpec,
)

PREFIX = "rl_s-"  # of every candidate's name
# rl_s as it was during the study: its initial weights were chosen last, on Breakout and Enduro.
BASE = replace(
    get_spec("rl_s"),
    name=f"{PREFIX}as_drawn",
    start=StartSpec(skip_gain=0.5),
    head=GridHeadSpec(activation="silu"),
)


@dataclass(frozen=True)
class Candidate:
    """One row of the study.

    Attributes:
        question: Which choice it is about.
        change: What differs from ``rl_s-as_drawn``: ``rl_s`` with its weights as drawn.
        spec: The row.
        verdict: What came of it, in a line; written after the measurements.
    """

    question: str
    change: str
    spec: NetworkSpec
    verdict: str


def stem(out_channels: int = 16, kernel_size: int = 4, stride: int = 4, **kwargs: Any) -> StemSpec:
    """rl_s's stem: 4x4 patches, 16 filters, no norm of its own, no activation."""
    return StemSpec(out_channels=out_channels, kernel_size=kernel_size, stride=stride, **{"activation": False} | kwargs)


def fused(out_channels: int, expanded_channels: int) -> FusedIBSpec:
    """A fused inverted bottleneck that halves the map."""
    return FusedIBSpec(out_channels=out_channels, expanded_channels=expanded_channels)


def uib(out_channels: int, expanded_channels: int, start: int = 0, middle: int = 0, stride: int = 1) -> UIBSpec:
    """A universal inverted bottleneck with depthwise kernels ``start`` and ``middle``."""
    return UIBSpec(
        out_channels=out_channels,
        expanded_channels=expanded_channels,
        start_dw_kernel_size=start,
        middle_dw_kernel_size=middle,
        stride=stride,
    )


FUSED_21, FUSED_11 = fused(32, 32), fused(48, 64)  # 21 -> 11 -> 6
UIB_6 = uib(48, 96, start=3)


def blocks(first: BlockSpec = FUSED_21, second: BlockSpec = FUSED_11, *last: BlockSpec) -> dict[str, Any]:
    """Three stages, the last rl_s's own two blocks unless others are given."""
    return {"stages": ((first,), (second,), last or (UIB_6, UIB_6))}


def head(**kwargs: Any) -> dict[str, Any]:
    """The head of rl_s-as_drawn with changes."""
    return {"head": replace(BASE.head, **kwargs)}


def start(**kwargs: Any) -> dict[str, Any]:
    """The start of rl_s-as_drawn with changes."""
    return {"start": StartSpec(**{"skip_gain": 0.5} | kwargs)}


# How rl_s's filters start: nearly blind to what stands still, and learning at one rate.
MOVING = start(static_gain=0.3, weight_rms=0.06)
LAYER_NORM, GROUP_NORM = ({"norm": norm, "start": None} for norm in ("layer", "group"))  # norms set the signal's size
ONE = 1 / FEATURES_DIM  # of all features
MQA = MobileMQASpec(num_heads=4, key_dim=12)
M_FUSED, M_UIB, M_MQA = (fused(48, 48), fused(64, 96)), uib(64, 192, start=3), MobileMQASpec(num_heads=4, key_dim=16)
INITIAL, STEM, EARLY, LATE, NORM, SHAPE, HEAD, MIX, LARGER = (
    "initial weights",
    "stem", "downsampling blocks", "last stage", "norm", "activation and residual", "head", "gating and attention",
    "rl_m",
)  # fmt: skip
# name, question, what differs, fields of the row that change, verdict
# fmt: off
_ROWS: tuple[tuple[str, str, str, dict[str, Any], str], ...] = (
    ("centred", INITIAL, "filters sum to zero: blind to flat areas", start(static_gain=1.0),
     "its filters are in rl_s: Breakout's ball moves the features by 8 % of their length in place of 3 %"),
    ("static_0.1", INITIAL, "and the stem nearly blind to what stands still (0.1)", start(static_gain=0.1),
     "learns Breakout, not Catch, whose picture is a single frame; the ball moves the features by 43 %"),
    ("static_0.1_equal", INITIAL, "and convolutions stored with weights of one size (0.06)",
     start(static_gain=0.1, weight_rms=0.06),
     "its equal sizes are in rl_s: a wrong start is soon unlearnt; without it Adam hardly moves the stem"),
    ("static_0.1_equal_0.03", INITIAL, "and of half that size", start(static_gain=0.1, weight_rms=0.03),
     "sooner on Catch, no sooner on Breakout"),
    ("static_0.3_equal", INITIAL, "0.3 of what stands still, size 0.06", MOVING,
     "in rl_s: sooner on Breakout than 0.1, but PPO's updates are five times NatureCNN's in KL divergence"),
    ("gain_0.3", INITIAL, "and features 0.3 times as large", MOVING | head(gain=0.3),
     "smaller updates; a tenth makes them smaller still"),
    ("gain_0.1", INITIAL, "and features 0.1 times as large", MOVING | head(gain=0.1),
     "in rl_s, with constants; alone it met no reward on Enduro in 1M timesteps, where random play has none"),
    ("gain_0.3_constant", INITIAL, "gain_0.3, and a feature that is always 50",
     MOVING | head(gain=0.3, constant=50.0, constant_share=ONE),
     "was rl_s: met Enduro's first reward with one seed of two; behind gain_0.1 on Breakout"),
    ("gain_0.1_constant", INITIAL, "gain_0.1, and a feature that is always 50",
     MOVING | head(gain=0.1, constant=50.0, constant_share=ONE),
     "meets Enduro's first reward with the seed that 0.3 failed; on Breakout its gradient drowns the others'"),
    ("constant_25", INITIAL, "gain_0.3_constant, but a constant of half its size",
     MOVING | head(gain=0.3, constant=25.0, constant_share=ONE),
     "the noise of single states still won on Enduro: with seed 1 no reward in 0.65M timesteps"),
    ("gain_0.03", INITIAL, "features 0.03 times as large", MOVING | head(gain=0.03),
     "updates as small as NatureCNN's, a little later than 0.1 on Breakout, much later on Catch"),
    ("equal_0.1", INITIAL, "gain_0.1, but convolutions stored at 0.1: smaller steps",
     start(static_gain=0.3, weight_rms=0.1) | head(gain=0.1),
     "halves the KL divergence of PPO's updates and learns no sooner"),
    ("stem_24_relu", INITIAL, "gain_0.1, but 24 filters and a ReLU after them",
     MOVING | {"stem": stem(out_channels=24, activation=True)} | head(gain=0.1),
     "no sooner: the ball is not lost for want of a nonlinearity before stride 8"),
    ("stem_8x8", STEM, "8x8/4 patches that overlap", {"stem": stem(kernel_size=8)},
     "out: slower, and later on Catch; overlap is not what rl_s lacks"),
    ("stem_8x8_32", STEM, "NatureCNN's first layer: 8x8/4, 32 filters", {"stem": stem(32, 8)},
     "out: a third of the speed for no sooner learning"),
    ("stem_24", STEM, "24 filters", {"stem": stem(24)}, "out: slower and later on Catch"),
    ("stem_32", STEM, "32 filters", {"stem": stem(32)}, "out: slower and later on Catch"),
    ("stem_relu", STEM, "ReLU after the stem", {"stem": stem(activation=True)},
     "a tie; left out for one operation less"),
    ("stem_3x3", STEM, "two 3x3/2 convolutions to 21x21, as the paper's",
     {"stem": stem(16, 3, 2, activation=True), "stages": ((fused(16, 16),), (FUSED_21,), (FUSED_11,), (UIB_6,) * 2)},
     "out: the map of 42x42 costs a third of the speed"),
    ("ib_21", EARLY, "IB in place of the FusedIB at 21x21", blocks(uib(32, 64, middle=3, stride=2)),
     "out: depthwise at 21x21 costs a fifth of the speed, and Catch comes later"),
    ("extradw_21", EARLY, "ExtraDW in place of the FusedIB at 21x21", blocks(uib(32, 64, 3, 3, 2)), "out: as ib_21"),
    ("ib_11", EARLY, "IB in place of the FusedIB at 11x11", blocks(FUSED_21, uib(48, 128, middle=3, stride=2)),
     "soonest of the blocks half-way on Catch, level in the end, a seventh slower; to race with more seeds"),
    ("extradw_11", EARLY, "ExtraDW in place of the FusedIB at 11x11", blocks(FUSED_21, uib(48, 128, 3, 3, 2)),
     "out: slower, no sooner"),
    ("uib_5x5", LATE, "5x5 depthwise kernels", blocks(FUSED_21, FUSED_11, *(uib(48, 96, start=5),) * 2),
     "out: slower and later; 5x5 depthwise backward has no fast CPU kernel"),
    ("uib_ib", LATE, "IB: depthwise after the expansion", blocks(FUSED_21, FUSED_11, *(uib(48, 96, middle=3),) * 2),
     "out: a depthwise layer on twice the channels, no sooner"),
    ("uib_extradw", LATE, "ExtraDW: both", blocks(FUSED_21, FUSED_11, *(uib(48, 96, 3, 3),) * 2),
     "out: as uib_ib, slower still"),
    ("uib_ffn", LATE, "second block an FFN", blocks(FUSED_21, FUSED_11, UIB_6, uib(48, 96)),
     "a tie; a second depthwise layer sees further for 4 % of the time"),
    ("one_uib", LATE, "one block", blocks(FUSED_21, FUSED_11, UIB_6),
     "a tie on Catch, 14 % faster, and past NatureCNN at batch 8, which rl_s is not; to race with more seeds"),
    ("three_uibs", LATE, "three blocks", blocks(FUSED_21, FUSED_11, UIB_6, UIB_6, UIB_6),
     "out: depth at 6x6 cost speed and came later"),
    ("wide", LATE, "1.5 times as wide",
     {"stem": stem(24), **blocks(fused(48, 48), fused(64, 96), *(uib(64, 144, start=3),) * 2)},
     "out for rl_s: 1.4x; the start of rl_m"),
    ("narrow", LATE, "0.67 times as wide",
     {"stem": stem(12), **blocks(fused(24, 24), fused(32, 40), *(uib(32, 64, start=3),) * 2)},
     "the fastest, but later on Catch"),
    ("sketch", NORM, "the first rl_s: channel LayerNorm after stem and blocks, 5x5 then 3x3, ReLU on the features",
     LAYER_NORM | blocks(FUSED_21, FUSED_11, uib(48, 96, start=5), UIB_6) | head(activation="relu"),
     "out: ahead on Pong, but has not begun to learn Catch"),
    ("layer_norm", NORM, "channel LayerNorm after stem and blocks", LAYER_NORM,
     "out: a norm after the stem forgets how bright a patch is"),
    ("layer_norm_stem", NORM, "channel LayerNorm after the stem alone", {"stem": stem(norm="layer")},
     "out: the stem's norm alone does the harm"),
    ("layer_norm_blocks", NORM, "channel LayerNorm after the blocks", LAYER_NORM | {"stem": stem(norm="none")},
     "out: a little ahead on Pong, far behind on Catch"),
    ("group_norm_blocks", NORM, "GroupNorm after the blocks", GROUP_NORM | {"stem": stem(norm="none")},
     "out: later on Catch than no norms"),
    ("group_norm", NORM, "GroupNorm after every convolution", GROUP_NORM | {"inner_norm": "group"},
     "best on Catch and Pong with weights as drawn, a tenth slower, 1.5 times the bytes; to race with more seeds"),
    ("silu", SHAPE, "SiLU in the blocks", {"activation": "silu"}, "a tie on Catch, a fifth more bytes"),
    ("gelu", SHAPE, "GELU in the blocks", {"activation": "gelu"}, "out: slower, later"),
    ("skip_1", SHAPE, "blocks with a skip start as strong as their input", start(skip_gain=1.0),
     "later on Catch: blocks that start loud"),
    ("skip_0.1", SHAPE, "blocks with a skip start almost silent", start(skip_gain=0.1), "a tie with 0.5"),
    ("layer_scale", SHAPE, "a learned scale a channel, 1 at first", {"layer_scale": 1.0},
     "a tie; left out for one operation less"),
    ("pool_4", HEAD, "map averaged to 4x4", head(grid=4), "a tie with half of the parameters; for small devices"),
    ("gap", HEAD, "map averaged to one position", head(grid=1),
     "level on Catch, though it forgets position; not raced"),
    ("squeeze_24", HEAD, "1x1 convolution to 24 channels before the layer", head(squeeze_channels=24),
     "a tie with half of the parameters, 14 % faster; to race with more seeds"),
    ("head_relu", HEAD, "ReLU on the features", head(activation="relu"),
     "later at first: dead features on static pictures"),
    ("head_no_norm", HEAD, "no LayerNorm on the features, ReLU", head(norm="none", activation="relu"),
     "sooner at first, lower in the end"),
    ("se", MIX, "squeeze and excitation after the last block", blocks(FUSED_21, FUSED_11, UIB_6, UIB_6, SESpec()),
     "slightly sooner on Catch, slower at small batches; to race with more seeds"),
    ("mqa", MIX, "MobileMQA after the last block", blocks(FUSED_21, FUSED_11, UIB_6, UIB_6, MQA),
     "out: 30 % of the speed, no sooner"),
    ("mqa_for_uib", MIX, "MobileMQA in place of the last block", blocks(FUSED_21, FUSED_11, UIB_6, MQA),
     "sooner on Catch for a quarter of the speed: better in place of a block than after it; to race with more seeds"),
    ("m_deep", LARGER, "1.5 times as wide, four blocks of 192", {"stem": stem(24), **blocks(*M_FUSED, *(M_UIB,) * 4)},
     "out: deeper at 6x6, no sooner than rl_m"),
    ("m_stem_32", LARGER, "stem of 32, three blocks of 192", {"stem": stem(32), **blocks(*M_FUSED, *(M_UIB,) * 3)},
     "out: as m_deep"),
    ("m_mqa", LARGER, "1.5 times as wide, MobileMQA", {"stem": stem(24), **blocks(*M_FUSED, M_UIB, M_UIB, M_MQA)},
     "out: attention, later on Catch"),
    ("m_stem_8x8", LARGER, "1.5 times as wide, overlapping patches",
     {"stem": stem(24, 8), **blocks(*M_FUSED, *(uib(64, 144, start=3),) * 2)},
     "out: overlapping patches, much later on Catch"),
)
# fmt: on


def _candidate(name: str, question: str, change: str, fields: dict[str, Any], verdict: str) -> Candidate:
    return Candidate(question, change, replace(BASE, name=PREFIX + name, **fields), verdict)


CANDIDATES: dict[str, Candidate] = {PREFIX + row[0]: _candidate(*row) for row in _ROWS}

SPECS: dict[str, NetworkSpec] = {BASE.name: BASE} | {name: row.spec for name, row in CANDIDATES.items()}

for _name, _spec in SPECS.items():
    add_encoder(_name, _spec)
