"""MobileNetV4 image encoders for reinforcement learning from pixels."""

from mnv4_rl._version import __version__

__all__ = ["__version__"]
