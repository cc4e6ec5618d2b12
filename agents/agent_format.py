"""An agent as plain data and tensors, and back. Nothing here runs what a file says: every name is looked up in a table.

description   algorithm, encoder, spaces and hyperparameters as JSON
tensors       ``policy/<name>`` and ``optimizer/<parameter>/<name>``, for safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.dqn import CONTRIB_INSTALL_LINE
from agents.encoders import ENCODERS, known_encoders, policy_kwargs
from mnv4_rl.policies import PixelActorCriticPolicy, PixelDQNPolicy

FORMAT = 1
POLICY = "CnnPolicy"
# Same weights and, to rounding, same numbers as SB3's "CnnPolicy": a file need not say which of the two it was.
POLICIES = {"PPO": PixelActorCriticPolicy, "DQN": PixelDQNPolicy}

_OFF_POLICY = (
    "learning_rate buffer_size learning_starts batch_size tau gamma train_freq gradient_steps replay_buffer_class "
    "replay_buffer_kwargs target_update_interval exploration_fraction exploration_initial_eps exploration_final_eps "
    "max_grad_norm"
).split()

# Algorithm -> where its class is, and the arguments of its constructor that make up its hyperparameters.
ALGORITHMS: dict[str, tuple[str, list[str]]] = {
    "PPO": (
        "stable_baselines3",
        "learning_rate n_steps batch_size n_epochs gamma gae_lambda clip_range clip_range_vf normalize_advantage "
        "ent_coef vf_coef max_grad_norm target_kl".split(),
    ),
    "DQN": ("stable_baselines3", _OFF_POLICY),
    "QRDQN": ("sb3_contrib", _OFF_POLICY),
}
BUFFERS = {
    "ReplayBuffer": "stable_baselines3.common.buffers",
    "NStepReplayBuffer": "stable_baselines3.common.buffers",
    "AtariReplayBuffer": "mnv4_rl.replay",
}
OPTIMIZERS = {"Adam": th.optim.Adam, "AdamW": th.optim.AdamW}
POLICY_KWARGS = (
    "net_arch",
    "ortho_init",
    "normalize_images",
    "share_features_extractor",
    "n_quantiles",
    "optimizer_class",
    "optimizer_kwargs",
)


def describe(model: BaseAlgorithm) -> dict[str, Any]:
    """Everything but the tensors, as JSON can hold it.

    Raises:
        ValueError: If the model has a part that is in none of the tables, with what to do.
    """
    name = type(model).__name__
    if name not in ALGORITHMS or type(model) is not _algorithm(name):
        raise ValueError(f"Agents of {', '.join(ALGORITHMS)} can be saved, got {name}; use its own save().")
    if model.policy_class not in (model.policy_aliases[POLICY], POLICIES.get(name)):
        raise ValueError(
            f"Agents with {POLICY} or a policy of mnv4_rl.policies can be saved, got {model.policy_class.__name__}; "
            "use model.save()."
        )
    return {
        "format": FORMAT,
        "algorithm": name,
        "encoder": _describe_encoder(model.policy_kwargs),
        "policy_kwargs": _describe_policy_kwargs(model.policy_kwargs),
        "observation_space": _describe_space(model.observation_space),
        "action_space": _describe_space(model.action_space),
        "n_envs": model.n_envs,
        "seed": model.seed,
        "hyperparameters": {key: _encode(key, getattr(model, key)) for key in ALGORITHMS[name][1]},
    }


def rebuild(description: Mapping[str, Any], env: VecEnv | None, device: str | th.device) -> BaseAlgorithm:
    """A fresh model of the same kind; its weights are not loaded yet.

    Args:
        description: What :func:`describe` gave.
        env: Environments to train or play on, None for prediction alone.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        ValueError: For anything that is in none of the tables, or an environment with other spaces.
    """
    if description.get("format") != FORMAT:
        raise ValueError(f"format {description.get('format')!r} is unknown; this version reads format {FORMAT}.")
    name = _known("algorithm", description["algorithm"], ALGORITHMS)
    hyperparameters = _decode_all(description["hyperparameters"], ALGORITHMS[name][1])
    kwargs = _rebuild_policy_kwargs(description["encoder"], description["policy_kwargs"])
    policy = POLICIES.get(name, POLICY)
    model = _algorithm(name)(
        policy, env, policy_kwargs=kwargs, device=device, _init_setup_model=False, **hyperparameters
    )
    observation_space = _rebuild_space(description["observation_space"])
    action_space = _rebuild_space(description["action_space"])
    if env is None:
        model.observation_space, model.action_space = observation_space, action_space
        model.n_envs = _natural("n_envs", description["n_envs"])
    else:
        check_for_correct_spaces(model.env, observation_space, action_space)
    _set_up(model, needs_replay=env is not None)
    seed = description["seed"]
    model.seed = None if seed is None else int(seed)  # afterwards: the caller's generators stay as they are
    return model


def policy_tensors(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Weights, on the CPU; a tensor with several names (a shared encoder) appears under the first."""
    return {f"policy/{name}": _portable(tensor) for name, tensor in _unique(model.policy.state_dict()).items()}


def optimizer_tensors(model: BaseAlgorithm) -> dict[str, Tensor]:
    """The optimiser's state of each parameter, on the CPU."""
    state = model.policy.optimizer.state_dict()["state"]
    return {
        f"optimizer/{index}/{name}": _portable(tensor) for index, row in state.items() for name, tensor in row.items()
    }


def optimizer_groups(model: BaseAlgorithm) -> list[dict[str, Any]]:
    """The optimiser's settings, as JSON can hold them."""
    return [dict(group) for group in model.policy.optimizer.state_dict()["param_groups"]]


def load_policy(model: BaseAlgorithm, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved weights into a model of the same shape.

    Raises:
        ValueError: Naming a weight that is missing, unknown or of another shape.
    """
    own = {f"policy/{name}": tensor for name, tensor in _unique(model.policy.state_dict()).items()}
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith("policy/")}
    _check_same(own, saved)
    with th.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def load_optimizer(model: BaseAlgorithm, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Put a saved optimiser's state into the model's.

    Raises:
        ValueError: If the state is not of this optimiser and these parameters.
    """
    optimizer = model.policy.optimizer
    own = optimizer.state_dict()["param_groups"]
    if [set(group) for group in groups] != [set(group) for group in own]:
        raise ValueError(f"the optimiser's settings are not those of {type(optimizer).__name__}.")
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        if path.startswith("optimizer/"):
            _, index, name = path.split("/")
            state.setdefault(int(index), {})[name] = tensor
    _check_optimizer_shapes(state, [p for group in optimizer.param_groups for p in group["params"]])
    # JSON has no tuples: a saved pair is compared with, and turned back into, what this optimiser holds.
    pairs = [
        {key: _optimizer_value(key, value, mine[key]) for key, value in group.items()}
        for group, mine in zip(groups, own, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": pairs})


def _optimizer_value(key: str, value: Any, own: Any) -> Any:
    if isinstance(own, list | tuple):
        return type(own)(_scalar(key, item) for item in value)
    return _scalar(key, value)


def _algorithm(name: str) -> Any:
    module = ALGORITHMS[name][0]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs {module}; install it with: {CONTRIB_INSTALL_LINE}") from error


def _set_up(model: Any, needs_replay: bool) -> None:
    """Build the networks; without an environment a replay of one transition, since nothing will be stored."""
    buffer_size = getattr(model, "buffer_size", None)
    if buffer_size is not None and not needs_replay:
        model.buffer_size = 1
    model._setup_model()
    if buffer_size is not None:
        model.buffer_size = buffer_size


def _describe_encoder(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    extractor_class = kwargs.get("features_extractor_class")
    extractor_kwargs = dict(kwargs.get("features_extractor_kwargs") or {})
    variant = extractor_kwargs.pop("variant", None)
    for name, (known_class, known_kwargs) in known_encoders().items():
        if extractor_class is known_class and variant == known_kwargs.get("variant"):
            return {"name": name, "kwargs": _scalars("encoder kwargs", extractor_kwargs)}
    raise ValueError(f"The encoder {extractor_class} {variant or ''} is in no table; known: {', '.join(ENCODERS)}.")


def _describe_policy_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in kwargs.items() if k not in ("features_extractor_class", "features_extractor_kwargs")}
    for key in rest:
        _known("policy_kwargs", key, POLICY_KWARGS)
    if "optimizer_class" in rest:  # QR-DQN fills it in
        rest["optimizer_class"] = _known("optimizer_class", rest["optimizer_class"].__name__, OPTIMIZERS)
    return {key: _policy_value(key, value) for key, value in rest.items()}


def _rebuild_policy_kwargs(encoder: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = policy_kwargs(_known("encoder", encoder["name"], known_encoders()))
    kwargs["features_extractor_kwargs"] |= _scalars("encoder kwargs", encoder["kwargs"])
    for key in rest:
        _known("policy_kwargs", key, POLICY_KWARGS)
    kwargs |= {key: _policy_value(key, value) for key, value in rest.items()}
    if "optimizer_class" in kwargs:
        kwargs["optimizer_class"] = OPTIMIZERS[kwargs["optimizer_class"]]
    return kwargs


def _describe_space(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        return {
            "space": "Box",
            "low": _bound(space.low),
            "high": _bound(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    raise ValueError(f"Agents with Box and Discrete spaces can be saved, got {space}; use model.save().")


def _bound(values: np.ndarray) -> Any:
    """One number where all are the same, as for images; else one per entry."""
    return values.flat[0].item() if (values == values.flat[0]).all() else values.tolist()


def _rebuild_space(data: Mapping[str, Any]) -> spaces.Space:
    if _known("space", data["space"], ("Box", "Discrete")) == "Discrete":
        return spaces.Discrete(_natural("n", data["n"]), start=int(data["start"]))
    dtype = np.dtype(_known("dtype", data["dtype"], ("uint8", "float32", "float64"))).type
    shape = tuple(_natural("shape", side) for side in data["shape"])
    low, high = (np.broadcast_to(np.asarray(data[end], dtype=dtype), shape) for end in ("low", "high"))
    return spaces.Box(low, high, shape, dtype)


def _encode(key: str, value: Any) -> Any:
    """A hyperparameter as JSON: numbers, schedules and the names of replay buffers."""
    if isinstance(value, FloatSchedule):
        return _encode(key, value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule):
        return {"schedule": "linear", "start": value.start, "end": value.end, "end_fraction": value.end_fraction}
    if isinstance(value, TrainFreq):
        return [value.frequency, value.unit.value]
    if key == "replay_buffer_class":
        return None if value is None else _known(key, value.__name__, BUFFERS)
    if key == "replay_buffer_kwargs":
        return _scalars(key, value)
    return _scalar(key, value)


def _decode_all(data: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    if set(data) != set(keys):
        raise ValueError(f"hyperparameters are {sorted(keys)}, got {sorted(data)}.")
    return {key: _decode(key, value) for key, value in data.items()}


def _decode(key: str, value: Any) -> Any:
    if isinstance(value, dict) and "schedule" in value:
        _known("schedule", value["schedule"], ("linear",))
        return LinearSchedule(*(float(value[part]) for part in ("start", "end", "end_fraction")))
    if key == "train_freq":
        return (int(value[0]), str(value[1]))
    if key == "replay_buffer_class":
        return None if value is None else getattr(import_module(BUFFERS[_known(key, value, BUFFERS)]), value)
    if key == "replay_buffer_kwargs":
        return _scalars(key, value)
    return _scalar(key, value)


def _scalar(what: str, value: Any) -> Any:
    """The value, if it is a number, true, false or nothing."""
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"{what} must be a number, true, false or null, got {type(value).__name__}.")


def _scalars(what: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a table of names and numbers, got {type(data).__name__}.")
    return {str(key): _scalar(f"{what} {key}", value) for key, value in data.items()}


def _policy_value(key: str, value: Any) -> Any:
    """One of SB3's policy arguments: widths of hidden layers, an optimiser's name and settings, or a number."""
    if key == "optimizer_class":
        return _known(key, value, OPTIMIZERS)
    if key == "optimizer_kwargs":
        return _scalars(key, value)
    if key != "net_arch":
        return _scalar(key, value)
    if isinstance(value, Mapping):
        return {str(part): _policy_value(key, widths) for part, widths in value.items()}
    return [_natural(key, width) for width in value]


def _known(what: str, name: Any, table: Any) -> str:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{what} {name!r} is not allowed; known: {', '.join(table)}.")
    return name


def _natural(what: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, got {value!r}.")
    return value


def _unique(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without second names for the same memory."""
    seen: set[tuple[Any, ...]] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        found[name] = tensor
    return found


def _portable(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _check_same(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    if missing := own.keys() ^ saved.keys():
        raise ValueError(f"weights differ from the model's: {len(missing)} names, for example {min(missing)!r}.")
    for name, tensor in own.items():
        other = saved[name]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            raise ValueError(
                f"{name} is {tuple(other.shape)} {other.dtype}, the model's is {tuple(tensor.shape)} {tensor.dtype}."
            )


def _check_optimizer_shapes(state: Mapping[int, Mapping[str, Tensor]], parameters: list[Tensor]) -> None:
    for index, row in state.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"the optimiser's state is of parameter {index}, the model has {len(parameters)}.")
        for name, tensor in row.items():
            if tensor.dim() and tensor.shape != parameters[index].shape:
                raise ValueError(f"optimizer/{index}/{name} is {tuple(tensor.shape)}, not of its parameter's shape.")
