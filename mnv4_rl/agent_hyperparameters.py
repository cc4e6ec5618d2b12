"""An algorithm's hyperparameters as plain data: numbers, lines, noise and the names of replay buffers, never code."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from inspect import signature
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, create_model
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from mnv4_rl.agent_parts import Factor, Label, Natural, Number, Share, Whole
from mnv4_rl.schemas import Schema, schema_of

_BUFFERS = {
    "ReplayBuffer": "stable_baselines3.common.buffers",
    "DictReplayBuffer": "stable_baselines3.common.buffers",
    "NStepReplayBuffer": "stable_baselines3.common.buffers",
    "AtariReplayBuffer": "mnv4_rl.replay",
}
# Arguments of a replay buffer that SB3 fills in.
_SB3_GIVES = ("buffer_size", "observation_space", "action_space", "device", "n_envs", "optimize_memory_usage")


class LinearFall(Schema):
    """A value that moves in a line from ``start`` to ``end`` over a share of the training."""

    schedule: Literal["linear"] = "linear"
    start: Factor
    end: Factor
    end_fraction: Annotated[float, Field(gt=0, le=1e6)]


class NormalNoise(Schema):
    """What SB3's NormalActionNoise adds to actions."""

    noise: Literal["normal"] = "normal"
    mean: list[Number]
    sigma: list[Factor]

    def make(self) -> NormalActionNoise:
        """SB3's."""
        return NormalActionNoise(np.array(self.mean), np.array(self.sigma))


class OrnsteinUhlenbeckNoise(Schema):
    """What SB3's OrnsteinUhlenbeckActionNoise adds to actions."""

    noise: Literal["ornstein_uhlenbeck"] = "ornstein_uhlenbeck"
    mean: list[Number]
    sigma: list[Factor]
    theta: Number
    dt: Factor
    initial_noise: list[Number] | None

    def make(self) -> OrnsteinUhlenbeckActionNoise:
        """SB3's."""
        start = None if self.initial_noise is None else np.array(self.initial_noise)
        return OrnsteinUhlenbeckActionNoise(np.array(self.mean), np.array(self.sigma), self.theta, self.dt, start)


Noise: TypeAlias = Annotated[NormalNoise | OrnsteinUhlenbeckNoise, Field(discriminator="noise")]
Schedule: TypeAlias = Factor | LinearFall
Auto: TypeAlias = Annotated[str, Field(pattern=r"^auto(_\d{1,6}(\.\d{1,9})?)?$")]
Scalar: TypeAlias = bool | int | Number | Label | None
# What each hyperparameter may be, whatever the algorithm; an algorithm has those that its constructor takes.
_HYPERPARAMETERS: dict[str, Any] = {
    **dict.fromkeys(("learning_rate", "clip_range"), Schedule),
    "clip_range_vf": Schedule | None,
    **dict.fromkeys(("n_steps", "batch_size", "n_epochs", "buffer_size", "target_update_interval"), Natural),
    **dict.fromkeys(("cg_max_steps", "line_search_max_iter", "n_critic_updates", "sub_sampling_factor"), Natural),
    **dict.fromkeys(("policy_delay", "top_quantiles_to_drop_per_net"), Natural),
    "learning_starts": Whole,
    "gradient_steps": Annotated[int, Field(ge=-1, le=10**9)],
    "sde_sample_freq": Annotated[int, Field(ge=-1, le=10**9)],
    "train_freq": tuple[Natural, Literal["step", "episode"]],
    **dict.fromkeys(("gamma", "gae_lambda", "tau", "exploration_initial_eps", "exploration_final_eps"), Share),
    "exploration_fraction": Share,
    **dict.fromkeys(("vf_coef", "cg_damping"), Factor),
    **dict.fromkeys(("line_search_shrinking_factor", "target_policy_noise", "target_noise_clip"), Factor),
    "ent_coef": Factor | Auto,
    "target_entropy": Number | Literal["auto"],
    **dict.fromkeys(("target_kl", "max_grad_norm"), Factor | None),
    **dict.fromkeys(("normalize_advantage", "use_sde", "use_sde_at_warmup"), bool),
    "optimize_memory_usage": bool,
    "action_noise": Noise | None,
    "replay_buffer_class": Literal[tuple(_BUFFERS)] | None,
    "replay_buffer_kwargs": dict[Label, Scalar],
}


@cache
def schema_of_settings(kind: type[BaseAlgorithm]) -> type[Schema]:
    """The schema of an algorithm's hyperparameters: those that its constructor takes and a file can tell."""
    known = [key for key in signature(kind).parameters if key in _HYPERPARAMETERS]
    fields: dict[str, Any] = {key: (_HYPERPARAMETERS[key], ...) for key in known}
    return create_model(kind.__name__, __base__=Schema, **fields)


def describe_settings(model: BaseAlgorithm, kind: type[BaseAlgorithm]) -> dict[str, Any]:
    """A model's hyperparameters as JSON.

    Args:
        model: Whose they are.
        kind: The algorithm that it is saved as.

    Raises:
        ValueError: If one is code, or a buffer a class of the user's own.
    """
    for buffer in ("rollout_buffer", "replay_buffer"):
        own = type(getattr(model, buffer, None))
        if own.__module__.partition(".")[0] not in ("stable_baselines3", "sb3_contrib", "mnv4_rl", "builtins"):
            raise ValueError(f"{buffer} is a {own.__name__}, which a file cannot tell; use model.save().")
    return {key: _encode(getattr(model, key), key) for key in schema_of_settings(kind).model_fields}


def _encode(value: Any, name: str) -> Any:
    """A hyperparameter as JSON: numbers, schedules, noise and the names of replay buffers."""
    match value:
        case FloatSchedule():
            return _encode(value.value_schedule, name)
        case ConstantSchedule():
            return value.val
        case LinearSchedule():
            return {"schedule": "linear", "start": value.start, "end": value.end, "end_fraction": value.end_fraction}
        case TrainFreq():
            return [value.frequency, value.unit.value]
        case type():
            return value.__name__
        case np.generic():
            return value.item()
        case VectorizedActionNoise():
            return _encode(value.base_noise, name)
        case NormalActionNoise():
            return {"noise": "normal", **_normal(value)}
        case OrnsteinUhlenbeckActionNoise():
            start = None if value.initial_noise is None else np.asarray(value.initial_noise).tolist()
            more = {"theta": float(value._theta), "dt": float(value._dt), "initial_noise": start}
            return {"noise": "ornstein_uhlenbeck", **_normal(value), **more}
    if callable(value):
        raise ValueError(
            f"{name} is {value!r}, code that a file cannot tell; give a number, or SB3's LinearSchedule(start, end, "
            "end_fraction) of stable_baselines3.common.utils, or use model.save()."
        )
    return value


def _normal(noise: Any) -> dict[str, Any]:
    return {"mean": np.asarray(noise._mu).tolist(), "sigma": np.asarray(noise._sigma).tolist()}


def arguments_of(settings: Schema) -> dict[str, Any]:
    """Hyperparameters as an algorithm's constructor takes them.

    Raises:
        ValueError: If the replay buffer has arguments that its class does not take.
    """
    values = {key: _decode(getattr(settings, key)) for key in type(settings).model_fields}
    if values.get("replay_buffer_class"):
        values["replay_buffer_class"] = _buffer_class(values)
    return values


def _decode(value: Any) -> Any:
    match value:
        case LinearFall():
            return LinearSchedule(value.start, value.end, value.end_fraction)
        case NormalNoise() | OrnsteinUhlenbeckNoise():
            return value.make()
    return value


def _buffer_class(values: dict[str, Any]) -> type | None:
    """The class that is named, if it takes its arguments; None for what SB3 would take of itself, and warn of."""
    name, arguments = values["replay_buffer_class"], values["replay_buffer_kwargs"]
    made = getattr(import_module(_BUFFERS[name]), name)
    schema_of(made, _SB3_GIVES).model_validate(arguments)
    n_steps = values.get("n_steps", 1)
    sb3_own = name == "NStepReplayBuffer" and n_steps > 1
    return None if sb3_own and arguments == {"n_steps": n_steps, "gamma": values["gamma"]} else made
