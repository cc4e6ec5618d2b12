"""ALE's games as an SB3 vector environment, their options and reference scores."""

from mnv4_rl.atari.env import AtariVecEnv, make_atari_env

__all__ = ["AtariVecEnv", "make_atari_env"]
