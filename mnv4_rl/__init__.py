"""MobileNetV4 image encoders for reinforcement learning from pixels, behind stable-baselines3's extractor contract."""

from mnv4_rl._version import __version__
from mnv4_rl.agent_files import load_agent, load_zip_weights, save_agent
from mnv4_rl.create import create_model
from mnv4_rl.extractors import MNV4CombinedExtractor, MNV4Extractor
from mnv4_rl.models.registry import list_models

__all__ = [
    "MNV4CombinedExtractor",
    "MNV4Extractor",
    "__version__",
    "create_model",
    "list_models",
    "load_agent",
    "load_zip_weights",
    "save_agent",
]
