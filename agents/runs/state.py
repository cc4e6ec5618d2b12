"""What a training session knows beside the weights: counters, recent games, values waiting to be logged, generators.

Captured at the start of every rollout, in well under a millisecond: the one moment at which SB3's algorithms hold
nothing half done. JSON can hold all of it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Annotated, Any, NotRequired

import numpy as np
import torch as th
from pydantic import AfterValidator, ConfigDict, Field, with_config
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from typing_extensions import TypedDict

_STRICT = with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Word = Annotated[int, Field(ge=0, lt=2**32)]  # of a generator's state
_Seconds = Annotated[float, Field(ge=0, lt=1e12)]
_Hex = Annotated[str, Field(pattern="^([0-9a-f]{2})*$")]
_Logged = int | Annotated[float, Field(allow_inf_nan=True)]


@_STRICT
class Counters(TypedDict):
    """SB3's counters under its own names; a checkpoint is of at least one timestep."""

    num_timesteps: Annotated[int, Field(ge=1, le=10**12)]
    _n_updates: NotRequired[_Count]
    _episode_num: NotRequired[_Count]
    _n_calls: NotRequired[_Count]
    exploration_rate: NotRequired[Annotated[float, Field(ge=0, le=1)]]
    _current_progress_remaining: NotRequired[Annotated[float, Field(le=1)]]


@_STRICT
class Game(TypedDict):
    """A finished game: raw score, agent timesteps, seconds since the run's start."""

    r: float
    l: float  # noqa: E741
    t: float


@_STRICT
class Returns(TypedDict):
    """Statistics of the returns that rewards are normalised by."""

    mean: float
    var: Annotated[float, Field(ge=0)]
    count: Annotated[float, Field(gt=0)]


@_STRICT
class Generators(TypedDict):
    """States of the generators that training draws from, each as its own library gives it."""

    python: tuple[int, tuple[_Word, ...], float | None]
    numpy: tuple[str, tuple[_Word, ...], Annotated[int, Field(ge=0, le=624)], int, float]
    torch: _Hex
    actions: dict[str, Any]
    cuda: NotRequired[_Hex]


def _accepted(generators: Generators) -> Generators:
    """Refuse states that a generator does not take, by trying them on others than the process's own."""
    try:
        _set_generators(generators, random.Random(), np.random.RandomState(), th.Generator(), np.random.PCG64())
    except (ValueError, TypeError, RuntimeError, KeyError, OverflowError, IndexError) as error:
        raise ValueError(f"no state of a random generator ({error})") from error
    return generators


@_STRICT
class State(TypedDict):
    """What :func:`capture` gives, and ``training.json`` holds."""

    counters: Counters
    games: Annotated[list[Game], Field(max_length=10_000)]
    waiting: dict[str, tuple[_Logged, _Count, tuple[str, ...]]]
    returns: NotRequired[Returns | None]
    generators: Annotated[Generators, AfterValidator(_accepted)]
    wall_seconds: _Seconds
    cpu_seconds: _Seconds
    monitor_bytes: NotRequired[_Count]  # size of monitor.csv, for runs that have one


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
    counters: Any = {name: getattr(model, name) for name in _counters() if hasattr(model, name)}
    return {
        "counters": counters,
        "games": [
            Game(r=float(game["r"]), l=float(game["l"]), t=float(game["t"])) for game in model.ep_info_buffer or ()
        ],
        "waiting": _waiting_values(model),
        "returns": _return_statistics(model.get_vec_normalize_env()),
        "generators": _generators(model),
        "wall_seconds": clock.wall_seconds,
        "cpu_seconds": clock.cpu_seconds,
    }


def restore_counters(model: BaseAlgorithm, state: State) -> None:
    """Step count, progress, recent games, statistics of returns; before ``learn(reset_num_timesteps=False)``."""
    for name in _counters():  # by our list, whatever else there is
        if name in state["counters"]:
            setattr(model, name, state["counters"][name])  # type: ignore[literal-required]
    model.ep_info_buffer = deque(state["games"], maxlen=model._stats_window_size)
    _restore_return_statistics(model.get_vec_normalize_env(), state.get("returns"))
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)


def _return_statistics(env: VecNormalize | None) -> Returns | None:
    """What rewards are normalised by; None where they are not."""
    if env is None:
        return None
    statistics = env.ret_rms
    return {"mean": float(statistics.mean), "var": float(statistics.var), "count": float(statistics.count)}


def _restore_return_statistics(env: VecNormalize | None, saved: Returns | None) -> None:
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


def _counters() -> list[str]:
    return list(Counters.__annotations__)


def _generators(model: BaseAlgorithm) -> Generators:
    kind, keys, *rest = np.random.get_state(legacy=True)
    found = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _to_hex(th.get_rng_state()),
        "actions": model.action_space.np_random.bit_generator.state,
    }
    if model.device.type == "cuda":
        found["cuda"] = _to_hex(th.cuda.get_rng_state(model.device))
    return found  # type: ignore[return-value]


def _restore_generators(model: BaseAlgorithm, saved: Generators) -> None:
    _set_generators(saved, random, np.random, th.default_generator, model.action_space.np_random.bit_generator)
    if "cuda" in saved and model.device.type == "cuda":
        th.cuda.set_rng_state(_from_hex(saved["cuda"]), model.device)


def _set_generators(saved: Generators, python: Any, numpy: Any, torch: th.Generator, actions: Any) -> None:
    python.setstate(saved["python"])
    kind, keys, *rest = saved["numpy"]
    numpy.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_state(_from_hex(saved["torch"]))
    actions.state = saved["actions"]


def _to_hex(state: th.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> th.Tensor:
    return th.frombuffer(bytearray.fromhex(text), dtype=th.uint8)
