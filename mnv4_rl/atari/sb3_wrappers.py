"""Which of SB3's wrappers an environment has the effect of: code for SB3's own environments asks for them by class."""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import (
    AtariWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    StickyActionEnv,
    WarpFrame,
)
from stable_baselines3.common.monitor import Monitor

from mnv4_rl.atari.options import AtariOptions


def wrappers_of(options: AtariOptions, presses_fire: bool) -> set[type[gym.Wrapper]]:
    """SB3's wrappers that do what an environment with these options does.

    Args:
        options: Its options.
        presses_fire: Whether its game needs FIRE and it is pressed.
    """
    effects: dict[type[gym.Wrapper], bool] = {
        Monitor: True,  # info["episode"] has the scores of whole games
        AtariWrapper: True,
        MaxAndSkipEnv: True,
        WarpFrame: options.grayscale,
        NoopResetEnv: options.noop_max > 1,
        StickyActionEnv: options.repeat_action_probability > 0,
        EpisodicLifeEnv: options.terminal_on_life_loss,
        FireResetEnv: presses_fire,
        ClipRewardEnv: options.clip_reward,
    }
    return {wrapper for wrapper, has_effect in effects.items() if has_effect}
