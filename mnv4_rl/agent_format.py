"""An agent as plain data, and an untrained model of the same kind from it: what ``agent.json`` says.

The encoder is there by its whole architecture, so an agent does not depend on any table of variants.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv
from torch.overrides import TorchFunctionMode

from mnv4_rl.agent_parts import (
    AnySpace,
    Encoder,
    Factor,
    Label,
    Natural,
    Number,
    PolicyArguments,
    Share,
    Whole,
    describe_encoder,
    describe_policy_arguments,
    describe_space,
    without_numpy,
)
from mnv4_rl.memory import available_bytes, check_fits, observation_bytes
from mnv4_rl.policies import MNV4Defaults
from mnv4_rl.replay import AtariReplayBuffer
from mnv4_rl.schemas import Schema, refusals, schema_of

ALGORITHMS = {
    **dict.fromkeys(("PPO", "A2C", "DQN", "SAC", "TD3", "DDPG"), "stable_baselines3"),
    **dict.fromkeys(("QRDQN", "TRPO", "RecurrentPPO", "MaskablePPO", "TQC"), "sb3_contrib"),
}
_POLICIES = {  # ours, by algorithm
    **dict.fromkeys(("PPO", "A2C", "TRPO"), ("mnv4_rl.policies", ("PixelActorCriticPolicy", "MNV4Policy"))),
    "DQN": ("mnv4_rl.policies", ("PixelDQNPolicy", "MNV4DQNPolicy")),
    "SAC": ("mnv4_rl.policies", ("MNV4SACPolicy",)),
    **dict.fromkeys(("TD3", "DDPG"), ("mnv4_rl.policies", ("MNV4TD3Policy",))),
    "QRDQN": ("mnv4_rl.contrib", ("MNV4QRDQNPolicy",)),
    "RecurrentPPO": ("mnv4_rl.contrib", ("MNV4RecurrentPolicy",)),
    "MaskablePPO": ("mnv4_rl.contrib", ("MNV4MaskablePolicy",)),
}
_BUFFERS = {
    "ReplayBuffer": "stable_baselines3.common.buffers",
    "DictReplayBuffer": "stable_baselines3.common.buffers",
    "NStepReplayBuffer": "stable_baselines3.common.buffers",
    "AtariReplayBuffer": "mnv4_rl.replay",
}


_MAY_LACK = ("exploration_rate", "num_timesteps")  # of agent.json
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


class Agent(Schema):
    """What ``agent.json`` holds.

    Attributes:
        format: Version of this schema.
        algorithm: Class of the algorithm.
        policy: Name of its policy: SB3's, or a class of :mod:`mnv4_rl.policies`.
        encoder: The features extractor.
        policy_kwargs: The policy's other arguments.
        observation_space: As the policy sees it.
        action_space: What it decides.
        n_envs: Environments it was trained in.
        seed: Of its training.
        hyperparameters: What its algorithm's constructor takes.
        optimizer: The settings of each group of parameters that an optimiser steps.
        exploration_rate: The share of random actions that DQN and QR-DQN stand at; None, and not in the file, of
            others. Files written before it was kept have none, and their agents explore no more.
        num_timesteps: Agent timesteps that it has learnt for; None, and not in the file, of an agent that has not, and
            of files written before it was kept.
    """

    format: Literal[2]
    algorithm: Literal[tuple(ALGORITHMS)]  # type: ignore[valid-type]
    policy: Label
    encoder: Encoder
    policy_kwargs: PolicyArguments
    observation_space: AnySpace
    action_space: AnySpace
    n_envs: Annotated[int, Field(ge=1, le=4096)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None
    hyperparameters: dict[Label, Any]
    optimizer: Annotated[list[dict[Label, Scalar | list[int] | list[Number]]], Field(max_length=10)]
    exploration_rate: Share | None = None
    num_timesteps: Whole | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in _MAY_LACK or value is not None}

    @model_validator(mode="after")
    def _check_hyperparameters(self) -> Agent:
        if self.policy not in policies(self.algorithm):
            raise ValueError(f"policies of {self.algorithm} are {', '.join(policies(self.algorithm))}")
        try:
            self.settings()
        except ValidationError as error:
            raise ValueError(f"hyperparameters.{refusals(error)}") from error
        if self.exploration_rate is not None and "exploration_fraction" not in self.hyperparameters:
            raise ValueError(f"{self.algorithm} has no exploration_rate, got {self.exploration_rate}")
        return self

    def settings(self) -> Schema:
        """The hyperparameters by the schema of the algorithm."""
        return _settings_of(self.algorithm).model_validate_json(json.dumps(self.hyperparameters, default=str))

    def to_json(self) -> bytes:
        """The file's content."""
        return (self.model_dump_json(indent=1, by_alias=True) + "\n").encode()


def describe(model: BaseAlgorithm) -> Agent:
    """Everything but the tensors.

    Raises:
        ValueError: If the model has a part that plain data cannot tell, with what to do.
    """
    kind = _saved_as(model)
    name = kind.__name__
    if name not in ALGORITHMS or kind is not algorithm(name):
        raise ValueError(f"agents of {', '.join(ALGORITHMS)} can be saved, got {name}; use its own save().")
    known = {made: policy for policy, made in policies(name).items()}
    if model.policy_class not in known:
        raise ValueError(
            f"agents with the policies {', '.join(known.values())} can be saved, got {model.policy_class.__name__}; "
            "use model.save()."
        )
    kwargs = without_numpy(model.policy_kwargs)
    if issubclass(model.policy_class, MNV4Defaults):
        kwargs = model.policy_class.full_kwargs(model.observation_space, kwargs)
    try:
        return Agent(
            format=2,
            algorithm=name,
            policy=known[model.policy_class],
            encoder=describe_encoder(model.policy, kwargs.get("features_extractor_kwargs") or {}),
            policy_kwargs=describe_policy_arguments(kwargs),
            observation_space=describe_space(model.observation_space),
            action_space=describe_space(model.action_space),
            n_envs=model.n_envs,
            seed=model.seed,
            hyperparameters=_describe_hyperparameters(model),
            optimizer=[],
            **progress_of(model),
        )
    except ValidationError as error:
        raise ValueError(f"this {name} cannot be told in plain data: {refusals(error)}; use model.save().") from error


def rebuild(agent: Agent, env: VecEnv | None, device: str | th.device, max_bytes: float = math.inf) -> BaseAlgorithm:
    """A fresh model of the same kind; its weights are not loaded yet. Random generators stay as they are.

    Args:
        agent: What :func:`describe` gave, or a file.
        env: Environments to train or play on, None for prediction alone.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        max_bytes: Refuse to build a model with more bytes of weights, before they are allocated.

    Raises:
        OtherSpacesError: If it does not fit ``env``.
        ValueError: If it cannot be built, or is larger.
    """
    model = algorithm(agent.algorithm)(
        policies(agent.algorithm)[agent.policy],
        env,
        policy_kwargs=agent.encoder.policy_kwargs() | agent.policy_kwargs.policy_kwargs(),
        device=device,
        _init_setup_model=False,
        **_decode(agent.settings()),
    )
    observation_space, action_space = agent.observation_space.make(), agent.action_space.make()
    if env is None:
        model.observation_space, model.action_space, model.n_envs = observation_space, action_space, agent.n_envs
    else:
        _check_env(model.env, observation_space, action_space)
    with th.random.fork_rng(devices=[]), Budget(max_bytes), _buffers(model, wanted=env is not None):
        model._setup_model()
    if agent.exploration_rate is not None:
        model.exploration_rate = agent.exploration_rate
    model.num_timesteps = agent.num_timesteps or 0
    model.seed = agent.seed  # afterwards: the caller's generators stay as they are
    return model


class OtherSpacesError(ValueError):
    """Environments whose spaces are not the agent's."""


def _check_env(env: Any, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    try:
        check_for_correct_spaces(env, observation_space, action_space)
    except ValueError as error:
        raise OtherSpacesError(f"the agent was trained in other environments than env: {error}") from error


def progress_of(model: BaseAlgorithm) -> dict[str, Any]:
    """How far an agent has learnt: what of :class:`Agent` changes in training, beside the optimiser's settings."""
    rate = getattr(model, "exploration_rate", None)
    return {
        "exploration_rate": None if rate is None else float(rate),
        "num_timesteps": model.num_timesteps or None,
    }


def _saved_as(model: BaseAlgorithm) -> type[BaseAlgorithm]:
    """Its class, or the one that it says its agents are of: a subclass that trains in another way."""
    return getattr(model, "saved_as", type(model))


def algorithm(name: str) -> Any:
    """The class of an algorithm.

    Raises:
        ValueError: If it is in a package that is not installed.
    """
    try:
        return getattr(import_module(ALGORITHMS[name]), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs {ALGORITHMS[name]}; install it with: pip install sb3-contrib") from error


def policies(name: str) -> dict[str, type]:
    """Policies for images that an algorithm can have: SB3's by their short names, and ours."""
    own = {short: made for short, made in algorithm(name).policy_aliases.items() if not short.startswith("Mlp")}
    module, names = _POLICIES.get(name, ("mnv4_rl.policies", ()))
    return own | {ours: getattr(import_module(module), ours) for ours in names}


@cache
def _settings_of(name: str) -> type[Schema]:
    """The schema of an algorithm's hyperparameters."""
    known = [key for key in signature(algorithm(name)).parameters if key in _HYPERPARAMETERS]
    fields: dict[str, Any] = {key: (_HYPERPARAMETERS[key], ...) for key in known}
    return create_model(name, __base__=Schema, **fields)


def _describe_hyperparameters(model: Any) -> dict[str, Any]:
    encoded = {key: _encode(getattr(model, key), key) for key in _settings_of(_saved_as(model).__name__).model_fields}
    for buffer in ("rollout_buffer", "replay_buffer"):
        kind = type(getattr(model, buffer, None))
        if kind.__module__.partition(".")[0] not in ("stable_baselines3", "sb3_contrib", "mnv4_rl", "builtins"):
            raise ValueError(f"{buffer} is a {kind.__name__}, which a file cannot tell; use model.save().")
    return encoded


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


def _decode(settings: Schema) -> dict[str, Any]:
    values = {key: getattr(settings, key) for key in type(settings).model_fields}
    for key, value in values.items():
        if isinstance(value, LinearFall):
            values[key] = LinearSchedule(value.start, value.end, value.end_fraction)
        elif isinstance(value, NormalNoise | OrnsteinUhlenbeckNoise):
            values[key] = value.make()
    if kind := values.get("replay_buffer_class"):
        made = getattr(import_module(_BUFFERS[kind]), kind)
        values["replay_buffer_class"] = made
        arguments = values["replay_buffer_kwargs"]
        schema_of(made, _SB3_GIVES).model_validate(arguments)
        n_steps = values.get("n_steps", 1)
        if kind == "NStepReplayBuffer" and n_steps > 1 and arguments == {"n_steps": n_steps, "gamma": values["gamma"]}:
            values["replay_buffer_class"] = None  # SB3's own choice for these n_steps; given, it would warn of it
    return values


class NoBuffer:
    """Stands where an agent that was loaded to play would have its memory of transitions."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # how copies and pickles ask
            raise AttributeError(name)
        raise ValueError("This agent was loaded to play and has no memory to learn from; use load_agent(path, env).")


@contextmanager
def _buffers(model: Any, wanted: bool) -> Iterator[None]:
    """Let a model set itself up with its memory of transitions, if that is wanted and fits, else with none."""
    off_policy = hasattr(model, "buffer_size")
    n_rows, per_row = (model.buffer_size, 2) if off_policy else (model.n_steps * model.n_envs, 1)
    needed = n_rows * per_row * observation_bytes(model.observation_space)
    if wanted and getattr(model, "replay_buffer_class", None) is not AtariReplayBuffer:  # which looks itself
        check_fits(f"Its memory of {n_rows:,} transitions", needed, lambda _: "to play, load it without environments.")
    n_steps = model.n_steps
    if off_policy and not wanted:
        model.replay_buffer = NoBuffer()
    elif not wanted and needed > available_bytes():
        model.n_steps = 1
    yield
    if model.n_steps != n_steps:
        model.n_steps, model.rollout_buffer = n_steps, NoBuffer()


class Budget(TorchFunctionMode):
    """Refuses to create tensors that are out of proportion, before they are allocated.

    Args:
        max_bytes: What all that are created on purpose may take together.
    """

    _MAX_MAP_BYTES = 2**30  # the result of one convolution: a network looks at a few pictures when it is built
    _CREATORS = ("empty", "zeros", "ones", "full", "rand", "randn")

    def __init__(self, max_bytes: float) -> None:
        super().__init__()
        self._left = max_bytes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then do what was asked for."""
        name = getattr(func, "__name__", "")
        if name in self._CREATORS:
            size = kwargs.get("size", args) if kwargs else args
            sides = size[0] if size and isinstance(size[0], list | tuple) else size
            self._left -= 4 * math.prod(side for side in sides if isinstance(side, int))
        wide = (
            name == "conv2d" and 4 * args[0].shape[0] * args[1].shape[0] * args[0][0, 0].numel() > self._MAX_MAP_BYTES
        )
        if self._left < 0 or wide:
            raise ValueError("it describes a network out of all proportion to the weights beside it")
        return func(*args, **(kwargs or {}))
