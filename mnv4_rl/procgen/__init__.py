"""Procgen's 16 games, whose levels differ, as an SB3 vector environment."""

from mnv4_rl.procgen.env import ProcgenVecEnv, make_procgen_env
from mnv4_rl.procgen.options import ProcgenOptions

__all__ = ["ProcgenOptions", "ProcgenVecEnv", "make_procgen_env"]
