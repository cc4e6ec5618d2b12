"""What a training session knows beside the weights: counters, recent games, values waiting to be logged, generators.

Captured at the start of every rollout, in well under a millisecond: the one moment at which SB3's algorithms hold
nothing half done. JSON can hold all of it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

_COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_n_calls",
    "exploration_rate",
    "_current_progress_remaining",
)

State = dict[str, Any]


class Clock:
    """Wall and CPU seconds of a run over all its sessions, pauses between them not counted.

    Args:
        wall_seconds: Of the sessions before this one.
        cpu_seconds: The same, of the process with all its threads.
    """

    def __init__(self, wall_seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._wall_start = time.perf_counter() - wall_seconds
        self._cpu_start = time.process_time() - cpu_seconds

    @property
    def wall_seconds(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self._wall_start

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds so far."""
        return time.process_time() - self._cpu_start


def capture(model: BaseAlgorithm, clock: Clock) -> State:
    """The state of a session between two rollouts."""
    return {
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "games": [{key: float(value) for key, value in game.items()} for game in model.ep_info_buffer or ()],
        "waiting": _waiting_values(model),
        "returns": _return_statistics(model.get_vec_normalize_env()),
        "generators": _generators(model),
        "wall_seconds": clock.wall_seconds,
        "cpu_seconds": clock.cpu_seconds,
    }


def restore_counters(model: BaseAlgorithm, state: State) -> None:
    """Step count, progress, recent games, statistics of returns; before ``learn(reset_num_timesteps=False)``."""
    for name in _COUNTERS:  # by our list, not the file's
        if name in state["counters"]:
            setattr(model, name, state["counters"][name])
    model.ep_info_buffer = deque(state["games"], maxlen=model._stats_window_size)
    _restore_return_statistics(model.get_vec_normalize_env(), state.get("returns"))
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)


def _return_statistics(env: VecNormalize | None) -> dict[str, float] | None:
    """What rewards are normalised by; None where they are not."""
    if env is None:
        return None
    statistics = env.ret_rms
    return {"mean": float(statistics.mean), "var": float(statistics.var), "count": float(statistics.count)}


def _restore_return_statistics(env: VecNormalize | None, saved: dict[str, float] | None) -> None:
    if env is not None and saved is not None:
        env.ret_rms.mean = np.array(saved["mean"])
        env.ret_rms.var = np.array(saved["var"])
        env.ret_rms.count = saved["count"]


def restore_session(model: BaseAlgorithm, state: State) -> None:
    """Values waiting to be logged, and generators; to be called when ``learn`` has reset the environments."""
    for name, (value, count, excluded) in state["waiting"].items():
        model.logger.name_to_value[name] = value
        model.logger.name_to_count[name] = count
        model.logger.name_to_excluded[name] = tuple(excluded)
    _restore_generators(model, state["generators"])


def _waiting_values(model: BaseAlgorithm) -> dict[str, tuple[Any, int, tuple[str, ...]]]:
    """PPO logs an update's losses with the next rollout's row: these would be missing there."""
    logger = model.logger
    return {
        name: (
            value.item() if isinstance(value, np.generic) else value,
            logger.name_to_count[name],
            logger.name_to_excluded[name] or (),
        )
        for name, value in logger.name_to_value.items()
        if isinstance(value, int | float | np.generic)
    }


def _generators(model: BaseAlgorithm) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    found = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _to_hex(th.get_rng_state()),
        "actions": model.action_space.np_random.bit_generator.state,
    }
    if model.device.type == "cuda":
        found["cuda"] = _to_hex(th.cuda.get_rng_state(model.device))
    return found


def _restore_generators(model: BaseAlgorithm, saved: dict[str, Any]) -> None:
    version, keys, gauss = saved["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numpy_keys, *rest = saved["numpy"]
    np.random.set_state((kind, np.array(numpy_keys, dtype=np.uint32), *rest))
    th.set_rng_state(_from_hex(saved["torch"]))
    model.action_space.np_random.bit_generator.state = saved["actions"]
    if "cuda" in saved and model.device.type == "cuda":
        th.cuda.set_rng_state(_from_hex(saved["cuda"]), model.device)


def _to_hex(state: th.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> th.Tensor:
    return th.frombuffer(bytearray.fromhex(text), dtype=th.uint8)
