"""The encoders made for RL, as rows of data. Source: this project's own measurements.

A row that was released stays as it is: a better one gets another name.
"""

from __future__ import annotations

from dataclasses import replace

from mnv4_rl.models.specs import FusedIBSpec, GridHeadSpec, NetworkSpec, PoolSpec, StartSpec, StemSpec, UIBSpec

# Dense FusedIB where the map is large, depthwise only at 6x6, position kept in the head. No norm before the features:
# a norm over channels after the stem forgets how bright a patch is, and took twice the steps on a small catching game.
RL_S = NetworkSpec(
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
    start=StartSpec(skip_gain=0.5, static_gain=0.3, weight_rms=0.06),
    image_size=84,
)
# 1.5 times as wide, and one block more where the map is still 11x11; its initial weights are those it was raced with.
RL_M = replace(
    RL_S,
    name="rl_m",
    start=StartSpec(skip_gain=0.5),
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
# As in IMPALA-CNN pixels meet 3x3 filters and a max pool, not patches: what is two pixels large is kept. An activation
# between the two brought nothing, for half of NatureCNN's time. The last map is 1/8 of the image, not 1/16.
RL_S2 = replace(
    RL_S,
    name="rl_s2",
    stem=StemSpec(out_channels=16, kernel_size=3, stride=2, activation=False),  # 84 -> 42
    stages=(
        (PoolSpec(pool="max"),),  # 42 -> 21
        (
            FusedIBSpec(out_channels=32, expanded_channels=32),  # 21 -> 11
            FusedIBSpec(out_channels=32, expanded_channels=32, stride=1),
        ),
    ),
    # rl_s's, on the whole map; what a noisy reward teaches was learnt sooner at 0.3 than at 0.1, and worse at 1.
    head=GridHeadSpec(grid=12, activation="silu", gain=0.3, constant_share=0.25),
)
# One more look at the map of a quarter, and its pool is a max pool too.
RL_M2 = replace(
    RL_S2,
    name="rl_m2",
    stages=(
        (PoolSpec(pool="max"),),  # 42 -> 21
        (FusedIBSpec(out_channels=32, expanded_channels=32, stride=1), PoolSpec(pool="max")),  # 21 -> 11
        (FusedIBSpec(out_channels=32, expanded_channels=32, stride=1),),
    ),
)
RL_FAMILY = (RL_S, RL_M, RL_S2, RL_M2)
