"""ALE's games as an SB3 vector environment, their options, reference scores and episode log."""

from mnv4_rl.atari.env import AtariVecEnv, make_atari_env

__all__ = ["AtariVecEnv", "make_atari_env"]
