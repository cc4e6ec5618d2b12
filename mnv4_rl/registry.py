"""The tables and the one list of names: :data:`SPECS`. Adding a variant is adding a row here.

Sources:
    ``mobilenet_v4_*``: the five configurations of the MobileNet_v4 system that this package carries on; its README
    published only the parameter counts, which the rows below reproduce exactly.
    ``mnv4_*``: the paper's five models, see :mod:`mnv4_rl.paper_models`.
    ``rl_*``: this project's own measurements.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from mnv4_rl.paper_models import PAPER_FAMILY, TIMM_NAMES
from mnv4_rl.specs import (
    BlockSpec,
    FusedIBSpec,
    GridHeadSpec,
    MobileMQASpec,
    NetworkSpec,
    PooledHeadSpec,
    SESpec,
    StemSpec,
    UIBSpec,
    check_heads,
    check_positive,
    did_you_mean,
)


def readme_spec(
    *,
    name: str,
    base_channels: int,
    expanded_channels: int,
    squeeze_ratio: float,
    fused_ibs: int,
    uib_and_extra_dws: int,
    se_and_uibs: int,
    se_and_mqas: int,
    num_heads: int,
    hidden_dim_classifier: int,
    dropout: float,
    kv_stride: int = 1,
) -> NetworkSpec:
    """One row of the README family: stem, then four stages that repeat a pattern.

    Args:
        name: Registry name.
        base_channels: Channels between blocks.
        expanded_channels: Channels inside a bottleneck.
        squeeze_ratio: Share of the base channels in the bottleneck of squeeze and excitation.
        fused_ibs: FusedIB blocks, each halving the map.
        uib_and_extra_dws: Pairs of a UIB and an ExtraDW.
        se_and_uibs: Pairs of an SE and a UIB.
        se_and_mqas: Pairs of an SE and a MobileMQA.
        num_heads: Attention heads; they must divide ``base_channels``.
        hidden_dim_classifier: Width of the classifier's hidden layer.
        dropout: Probability of dropping a hidden feature of the classifier while training.
        kv_stride: Stride at which attention reads its keys and values.

    Raises:
        ValueError: For sizes below 1, a ratio outside (0, 1] or heads that do not divide the channels.
    """
    check_positive(base_channels=base_channels, expanded_channels=expanded_channels)
    uib = UIBSpec(out_channels=base_channels, expanded_channels=expanded_channels, start_dw_kernel_size=5)
    extra_dw = replace(uib, middle_dw_kernel_size=3)
    se = SESpec(squeeze_ratio=squeeze_ratio)
    mqa = MobileMQASpec(
        num_heads=num_heads,
        key_dim=check_heads(base_channels, num_heads),
        kv_heads=num_heads,
        kv_stride=kv_stride,
        kv_depthwise=False,
        bias=True,
        output_projection=False,
        normalized=False,
    )
    fused = FusedIBSpec(out_channels=base_channels, expanded_channels=expanded_channels)
    return NetworkSpec(
        name=name,
        family="readme",
        stem=StemSpec(out_channels=base_channels),
        stages=(
            _repeat((fused,), "FusedIBs", fused_ibs),
            _repeat((uib, extra_dw), "UIB_and_ExtraDWs", uib_and_extra_dws),
            _repeat((se, uib), "SE_and_UIBs", se_and_uibs),
            _repeat((se, mqa), "SE_and_MobileMQAs", se_and_mqas),
        ),
        head=PooledHeadSpec(hidden_features=hidden_dim_classifier, hidden_bias=True, dropout=dropout),
        norm="group",
        inner_norm="group",
        activation="silu",
        image_size=512,
    )


def _repeat(pattern: tuple[BlockSpec, ...], name: str, times: int) -> tuple[BlockSpec, ...]:
    if not isinstance(times, int) or times < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {times!r}.")
    return pattern * times


_README_COLUMNS = (
    "name", "base_channels", "expanded_channels", "fused_ibs", "uib_and_extra_dws", "se_and_uibs", "se_and_mqas",
    "num_heads", "hidden_dim_classifier", "dropout", "kv_stride",
)  # fmt: skip
_README_ROWS = (
    ("mobilenet_v4_nano", 24, 64, 2, 2, 3, 1, 4, 512, 0.2, 1),
    ("mobilenet_v4_small", 48, 96, 2, 3, 4, 2, 6, 1024, 0.2, 1),
    ("mobilenet_v4_medium", 96, 192, 2, 5, 6, 3, 8, 1024, 0.2, 1),
    ("mobilenet_v4_large", 224, 512, 3, 6, 5, 3, 14, 1280, 0.2, 1),
    ("mobilenet_v4_hybrid_large", 384, 768, 3, 7, 6, 4, 32, 1280, 0.3, 2),
)
README_FAMILY = tuple(
    readme_spec(squeeze_ratio=0.25, **dict(zip(_README_COLUMNS, row, strict=True)))  # type: ignore[arg-type]
    for row in _README_ROWS
)

# Dense FusedIB where the map is large, depthwise only at 6x6, position kept in the head. No norm before the features:
# a norm over channels after the stem forgets how bright a patch is, and took twice the steps on a small catching game.
_RL_S = NetworkSpec(
    name="rl_s",
    family="rl",
    stem=StemSpec(out_channels=16, kernel_size=4, stride=4, activation=False),  # 84 -> 21
    stages=(
        (FusedIBSpec(out_channels=32, expanded_channels=32),),  # 21 -> 11
        (FusedIBSpec(out_channels=48, expanded_channels=64),),  # 11 -> 6
        (UIBSpec(out_channels=48, expanded_channels=96, start_dw_kernel_size=3),) * 2,
    ),
    # A ReLU leaves a third of the features dead on static pictures. Small features keep PPO's updates small; constants
    # add up to 51, NatureCNN's mean features to 54 on Enduro, so an unrewarded policy drifts as far.
    head=GridHeadSpec(activation="silu", gain=0.1, constant_share=0.25),
    norm="none",
    inner_norm="none",
    activation="relu",
    skip_gain=0.5,
    static_gain=0.3,
    weight_rms=0.06,
    image_size=84,
)
# 1.5 times as wide, and one block more where the map is still 11x11; its initial weights are those it was raced with.
_RL_M = replace(
    _RL_S,
    name="rl_m",
    static_gain=None,
    weight_rms=None,
    head=GridHeadSpec(activation="silu"),
    stem=StemSpec(out_channels=24, kernel_size=4, stride=4, activation=False),
    stages=(
        (
            FusedIBSpec(out_channels=48, expanded_channels=48),
            FusedIBSpec(out_channels=48, expanded_channels=48, stride=1),
        ),
        (FusedIBSpec(out_channels=64, expanded_channels=96),),
        (UIBSpec(out_channels=64, expanded_channels=144, start_dw_kernel_size=3),) * 2,
    ),
)
RL_FAMILY = (_RL_S, _RL_M)

SPECS: dict[str, NetworkSpec] = {spec.name: spec for spec in README_FAMILY + PAPER_FAMILY + RL_FAMILY}

# timm's names differ from ours in one underscore and name other networks.
_TIMM_TO_PAPER = {timm: ours for ours, timm in TIMM_NAMES.items() if ours in SPECS}


def list_models(family: str | None = None) -> list[str]:
    """Names that :func:`mnv4_rl.create_model` and the extractors accept, in table order.

    Args:
        family: Only this family: ``"readme"``, ``"paper"`` or ``"rl"``.
    """
    return [name for name, spec in SPECS.items() if family in (None, spec.family)]


def get_spec(name: str | NetworkSpec) -> NetworkSpec:
    """The row called ``name``; a spec of your own is returned as it is.

    Raises:
        TypeError: If ``name`` is neither a string nor a spec.
        ValueError: If no variant has that name; the message suggests what was probably meant.
    """
    if isinstance(name, NetworkSpec):
        return name
    if not isinstance(name, str):
        raise TypeError(f"A variant is named by a string such as 'rl_s', got {name!r}; one of {', '.join(SPECS)}.")
    if name not in SPECS:
        raise ValueError(_unknown_name_message(name))
    return SPECS[name]


def _unknown_name_message(name: str) -> str:
    message = f"There is no model called {name!r}."
    if name in _TIMM_TO_PAPER:
        ours = _TIMM_TO_PAPER[name]
        return (
            f"{message} {name!r} is timm's name for the paper's model, called {ours!r} here "
            f"(not the README family's 'mobilenet_v4_*', which are other networks). Known: {', '.join(SPECS)}."
        )
    close = difflib.get_close_matches(name.lower().replace("-", "_"), SPECS, n=3, cutoff=0.5)
    return f"{message}{did_you_mean(close)} Known: {', '.join(SPECS)}."
