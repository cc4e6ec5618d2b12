"""Where the search looks: every choice about an encoder and its options as data, and the row that picked options make.

``rl_s``, ``rl_s2`` and ``rl_m2`` are points of it. A width of 16 means maps of 16, 32 and 48 channels, as in ``rl_s``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mnv4_rl.models.rl import RL_S
from mnv4_rl.models.specs import (
    BlockSpec,
    FusedIBSpec,
    GatedIBSpec,
    GridHeadSpec,
    MobileMQASpec,
    NetworkSpec,
    PoolSpec,
    SESpec,
    StartSpec,
    StemSpec,
    UIBSpec,
    round_channels,
)

# Choice -> option -> what it means to :func:`spec_of`.
_UIB_KERNELS = {
    "ib3": {"middle_dw_kernel_size": 3},
    "ib5": {"middle_dw_kernel_size": 5},
    "extradw3": {"start_dw_kernel_size": 3, "middle_dw_kernel_size": 3},
    "convnext3": {"start_dw_kernel_size": 3},
    "convnext5": {"start_dw_kernel_size": 5},
    "ffn": {},
}
_STRIDED = {
    **dict.fromkeys(("fused", "gated", "fused_max", "fused_average")),
    **{name: _UIB_KERNELS[name] for name in ("ib3", "ib5", "extradw3", "convnext3")},
}
_POOLS = {"fused_max": PoolSpec(pool="max"), "fused_average": PoolSpec(pool="average")}
SPACE: dict[str, dict[str, Any]] = {
    "stem": {
        "patch4": {"kernel_size": 4, "stride": 4, "activation": False},
        "patch4_relu": {"kernel_size": 4, "stride": 4},
        "overlap8": {"kernel_size": 8, "stride": 4, "activation": False},
        "conv3": {"kernel_size": 3, "stride": 2},
        "conv3_max": {"kernel_size": 3, "stride": 2, "activation": False},  # with a max pool behind it
        "patch2_max": {"kernel_size": 2, "stride": 2, "activation": False},
    },
    "width": {"12": 12, "16": 16, "24": 24, "32": 32},
    "expansion": {"narrow": (1, 4 / 3, 2), "wide": (2, 2, 3)},  # of first, second and last blocks
    "first": _STRIDED,
    "first_residual": {"none": None, "fused": None, "ib3": _UIB_KERNELS["ib3"], "convnext3": _UIB_KERNELS["convnext3"]},
    "second": {**_STRIDED, "none": None},
    "last": _UIB_KERNELS,
    "n_last": {"0": 0, "1": 1, "2": 2, "3": 3},
    "attention": {"none": None, "se": None, "mqa": None},
    "norm": {"none": "none", "layer": "layer", "group": "group"},
    "start": {  # of a network without norms
        "plain": StartSpec(skip_gain=0.5),
        "moving": StartSpec(skip_gain=0.5, static_gain=0.3, weight_rms=0.06),
        "static": StartSpec(skip_gain=0.5, static_gain=0.3),
    },
    "grid": {"12": 12, "6": 6, "4": 4, "3": 3, "2": 2, "1": 1},
    "squeeze": {"0": 0, "16": 16, "32": 32},
    "head_norm": {"layer": "layer", "none": "none"},
    "features": {
        "plain": {},
        "small": {"gain": 0.1, "constant_share": 0.25},
        "medium": {"gain": 0.3, "constant_share": 0.25},
        "simplex": {"activation": "simplex"},  # its features add up to 64 as they are
    },
}
RL_S_CHOICES = {
    "stem": "patch4",
    "width": "16",
    "expansion": "narrow",
    "first": "fused",
    "first_residual": "none",
    "second": "fused",
    "last": "convnext3",
    "n_last": "2",
    "attention": "none",
    "norm": "none",
    "start": "moving",
    "grid": "6",
    "squeeze": "0",
    "head_norm": "layer",
    "features": "small",
}
RL_S2_CHOICES = {
    **RL_S_CHOICES,
    "stem": "conv3_max",
    "first_residual": "fused",
    "second": "none",
    "n_last": "0",
    "grid": "12",
    "features": "medium",
}
RL_M2_CHOICES = {**RL_S2_CHOICES, "first": "fused_max"}
KNOWN_CHOICES = {"rl_s": RL_S_CHOICES, "rl_s2": RL_S2_CHOICES, "rl_m2": RL_M2_CHOICES}


def pick(choose: Callable[[str, Sequence[str]], str]) -> dict[str, str]:
    """Choices -> options, asked for in the order of :data:`SPACE`; choices that would change nothing are left out.

    Args:
        choose: A choice and its options -> the option taken.
    """
    picked: dict[str, str] = {}
    for name, options in SPACE.items():
        if name == "start" and picked["norm"] != "none":
            continue  # norms set the size of the signal
        picked[name] = choose(name, list(options))
    return picked


def spec_of(picked: Mapping[str, str]) -> NetworkSpec:
    """The row of picked options, named after them.

    Raises:
        KeyError: For a choice that is missing, or an option that is not in the space.
    """
    value = {name: SPACE[name][option] for name, option in picked.items()}
    width, (first, second, last) = value["width"], value["expansion"]
    middle, final = 2 * width, 3 * width
    early = _blocks(picked["first"], value["first"], middle, first, 2)
    if picked["first_residual"] != "none":
        early += _blocks(picked["first_residual"], value["first_residual"], middle, first, 1)
    strided = [] if picked["second"] == "none" else _blocks(picked["second"], value["second"], final, second, 2)
    late = _blocks(picked["last"], value["last"], final, last, 1) * value["n_last"]
    late += _attention(picked["attention"], final)
    pooled = (PoolSpec(),) if picked["stem"].endswith("_max") else ()
    stages = (pooled, tuple(early), tuple(strided), tuple(late))
    return replace(
        RL_S,
        name=f"search_{hashlib.sha256(repr(sorted(picked.items())).encode()).hexdigest()[:8]}",
        stem=StemSpec(out_channels=width, **value["stem"]),
        stages=tuple(stage for stage in stages if stage),
        head=GridHeadSpec(
            grid=value["grid"],
            squeeze_channels=value["squeeze"],
            norm=value["head_norm"],
            **{"activation": "silu", **value["features"]},
        ),
        norm=value["norm"],
        start=value.get("start"),
    )


def _blocks(
    option: str, kernels: dict[str, int] | None, channels: int, expansion: float, stride: int
) -> list[BlockSpec]:
    widths = {"out_channels": channels, "expanded_channels": round_channels(expansion * channels)}
    if option in _POOLS:
        return [FusedIBSpec(**widths, stride=1), _POOLS[option]]
    if option in ("fused", "gated"):
        return [(GatedIBSpec if option == "gated" else FusedIBSpec)(**widths, stride=stride)]
    return [UIBSpec(**widths, stride=stride, **(kernels or {}))]


def _attention(option: str, channels: int) -> list[BlockSpec]:
    rows: dict[str, list[BlockSpec]] = {
        "none": [],
        "se": [SESpec()],
        "mqa": [MobileMQASpec(num_heads=4, key_dim=channels // 4)],
    }
    return rows[option]
