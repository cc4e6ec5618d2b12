"""An agent as plain data, and an untrained model of the same kind from it: what ``agent.json`` says.

The encoder is there by its whole architecture, so an agent does not depend on any table of variants.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, Literal

import torch as th
from gymnasium import Env, spaces
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv
from torch.overrides import TorchFunctionMode

from mnv4_rl.agent_hyperparameters import Scalar, arguments_of, describe_settings, schema_of_settings
from mnv4_rl.agent_parts import (
    AnySpace,
    Encoder,
    Label,
    Number,
    PolicyArguments,
    Share,
    Whole,
    describe_encoder,
    describe_policy_arguments,
    describe_space,
)
from mnv4_rl.memory import available_bytes, check_fits, observation_bytes
from mnv4_rl.plain import without_numpy
from mnv4_rl.policies import MNV4Defaults
from mnv4_rl.replay import AtariReplayBuffer
from mnv4_rl.schemas import Schema, refusals

ALGORITHMS = {
    **dict.fromkeys(("PPO", "A2C", "DQN", "SAC", "TD3", "DDPG"), "stable_baselines3"),
    **dict.fromkeys(("QRDQN", "TRPO", "RecurrentPPO", "MaskablePPO", "TQC"), "sb3_contrib"),
}
_POLICIES = {  # ours, by algorithm
    **dict.fromkeys(("PPO", "A2C", "TRPO"), ("mnv4_rl.policies", ("PixelActorCriticPolicy", "MNV4Policy"))),
    "DQN": ("mnv4_rl.policies", ("PixelDQNPolicy", "MNV4DQNPolicy")),
    "SAC": ("mnv4_rl.policies", ("MNV4SACPolicy",)),
    **dict.fromkeys(("TD3", "DDPG"), ("mnv4_rl.policies", ("MNV4TD3Policy",))),
    "QRDQN": ("mnv4_rl.contrib", ("PixelQRDQNPolicy", "MNV4QRDQNPolicy")),
    "RecurrentPPO": ("mnv4_rl.contrib", ("MNV4RecurrentPolicy",)),
    "MaskablePPO": ("mnv4_rl.contrib", ("MNV4MaskablePolicy",)),
}
_MAY_LACK = ("exploration_rate", "num_timesteps")  # of agent.json


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
        schema = schema_of_settings(algorithm(self.algorithm))
        return schema.model_validate_json(json.dumps(self.hyperparameters, default=str))

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
            hyperparameters=describe_settings(model, kind),
            optimizer=[],
            **progress_of(model),
        )
    except ValidationError as error:
        raise ValueError(f"this {name} cannot be told in plain data: {refusals(error)}; use model.save().") from error


def rebuild(
    agent: Agent, env: VecEnv | Env | None, device: str | th.device, max_bytes: float = math.inf
) -> BaseAlgorithm:
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
        **arguments_of(agent.settings()),
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
