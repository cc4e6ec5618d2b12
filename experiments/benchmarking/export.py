"""Acting by exported agents: one call from uint8 images to actions, in SB3, folded in PyTorch, in ONNX Runtime.

Batches are as small as those of a rollout, or of a robot. Everything runs on one thread of the CPU, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.encoders import policy_kwargs
from experiments.benchmarking.encoders import CHANNELS, REFERENCE, Limits, random_images
from experiments.benchmarking.measuring import Row, calls_per_second, interleave, ratio
from mnv4_rl.export import OnnxAgent, fold, to_onnx
from mnv4_rl.policies import MNV4Policy

SIZE, N_ACTIONS = 84, 6
BATCHES = (1, 8)
REFERENCE_SET_UP = "ONNX Runtime"
Call = Callable[[], object]


class _Still(gym.Env):
    """An environment for its spaces alone."""

    observation_space = spaces.Box(0, 255, (CHANNELS, SIZE, SIZE), np.uint8)
    action_space = spaces.Discrete(N_ACTIONS)


def build_agent(encoder: str) -> BaseAlgorithm:
    """An untrained PPO agent for Atari's images."""
    return PPO(MNV4Policy, _Still(), n_steps=8, batch_size=8, policy_kwargs=policy_kwargs(encoder), device="cpu")


def set_ups(agent: BaseAlgorithm, images: np.ndarray, folder: Path) -> dict[str, Call]:
    """Ways to act by an agent -> what does it once on the images, (N, CHANNELS, SIZE, SIZE) uint8."""
    plain, tensors = fold(agent), th.as_tensor(images)
    float32 = OnnxAgent(to_onnx(agent, folder / "float32.onnx").path)
    int8 = OnnxAgent(to_onnx(agent, folder / "int8.onnx", "fc").path)

    def folded() -> None:
        with th.inference_mode():
            plain(tensors)

    return {
        "SB3's predict": lambda: agent.predict(images, deterministic=True),
        "PyTorch, folded": folded,
        REFERENCE_SET_UP: lambda: float32.predict(images, deterministic=True),
        f"{REFERENCE_SET_UP}, int8 fc": lambda: int8.predict(images, deterministic=True),
    }


def measure_export(batch: int, agents: Sequence[str], limits: Limits, advance: Callable[[], object]) -> list[Row]:
    """Time every set-up of NatureCNN's agent and others at a batch, in the same rounds.

    Args:
        batch: Observations in a call.
        agents: Encoders of the others.
        limits: Rounds and seconds; the caps and dtypes mean nothing here.
        advance: Called after every measurement.

    Returns:
        A row a set-up and encoder; ratios are to NatureCNN in ONNX Runtime.
    """
    images = random_images(batch, SIZE).numpy()
    threads = th.get_num_threads()
    with TemporaryDirectory() as name:
        calls: dict[tuple[str, str], Call] = {}
        for encoder in (REFERENCE, *agents):
            folder = Path(name) / encoder
            calls |= {(way, encoder): call for way, call in set_ups(build_agent(encoder), images, folder).items()}
        try:
            th.set_num_threads(1)
            for call in calls.values():
                call()
            measures = {key: partial(calls_per_second, call, limits.min_seconds) for key, call in calls.items()}
            rates = interleave(measures, limits.rounds, advance)
        finally:
            th.set_num_threads(threads)
    return [_row(key, batch, values, rates[REFERENCE_SET_UP, REFERENCE]) for key, values in rates.items()]


def n_measurements(agents: Sequence[str]) -> int:
    """Measurements of a round at one batch."""
    return (1 + len(agents)) * 4


def _row(key: tuple[str, str], batch: int, rates: np.ndarray, reference: np.ndarray) -> Row:
    compared = ratio(rates, reference)
    return Row(
        part="export",
        model=", ".join(key),
        task="act",
        device="cpu",
        batch=batch,
        size=SIZE,
        rounds=len(rates),
        per_second=float(np.median(rates)) * batch,
        ratio=compared.median,
        ratio_low=compared.low,
        ratio_high=compared.high,
    )
