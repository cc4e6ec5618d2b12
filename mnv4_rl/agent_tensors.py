"""The tensors of an agent: weights, and the state of each optimiser; all checked before the first is copied.

policy/<name>              a weight or buffer of the policy
optimizer/<index>/<name>   what the optimiser keeps of a parameter; SAC's and TD3's are actor.optimizer/... and so on
<name>                     a number that is learned beside the policy: SAC's log_ent_coef
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from mnv4_rl.extractors import remember_statistics
from mnv4_rl.weights.tensors import check_tensors, copy_tensors, own_tensors, portable, some

Groups = list[dict[str, Any]]
State = dict[int, dict[str, Tensor]]

_MAX_STATES = 4  # numbers that an optimiser keeps of each weight
_POLICY = "policy/"
# Sums of squares: an optimiser takes their root.
_NOT_NEGATIVE = {"step", "exp_avg_sq", "max_exp_avg_sq", "square_avg"}

# Settings that optimisers have had in every release of torch: what a file lacks of these is damage.
_LASTING = {"params", "betas", "eps", "alpha", "momentum", "dampening", "weight_decay"}
_LASTING |= {"amsgrad", "centered", "nesterov"}


class NonFiniteError(ValueError):
    """A loss or a weight is NaN or infinite."""


def check_finite(model: BaseAlgorithm) -> None:
    """Raise if a weight is not finite.

    Raises:
        NonFiniteError: Naming the first such weight, how many of its values are bad, and the timestep.
    """
    own = own_tensors(model.policy).items()
    weights = {name: tensor.detach() for name, tensor in own if tensor.is_floating_point()}
    # One number for all: a single transfer from a GPU.
    if not weights or bool(th.stack([tensor.isfinite().all() for tensor in weights.values()]).all()):
        return
    for name, tensor in weights.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise NonFiniteError(
                f"{bad:,} of {tensor.numel():,} values of the weight policy.{name} are NaN or infinite at timestep "
                f"{model.num_timesteps:,}."
            )


def weights_of(model: BaseAlgorithm) -> dict[str, Tensor]:
    """What the model has learned, under the names of a file; the tensors are the model's own."""
    learned = {_POLICY + name: tensor for name, tensor in own_tensors(model.policy).items()}
    return learned | {name: getattr(model, name) for name in model._get_torch_save_params()[1]}


def kinds_of(model: BaseAlgorithm) -> dict[str, tuple[tuple[int, ...], th.dtype]]:
    """Shape and dtype of everything in :func:`weights_of`."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights_of(model).items()}


def optimizers_of(model: BaseAlgorithm) -> dict[str, th.optim.Optimizer]:
    """The model's optimisers, by the prefix of their tensors' names."""
    found = {name.removeprefix("policy."): reduce(getattr, name.split("."), model) for name in _state_dicts(model)}
    return {name: part for name, part in found.items() if isinstance(part, th.optim.Optimizer)}


def tensors_of(model: BaseAlgorithm, optimizer: bool) -> dict[str, Tensor]:
    """Copies of everything a file holds, on the CPU.

    Args:
        model: The agent.
        optimizer: With the optimisers' state.
    """
    found = weights_of(model)
    for prefix, part in optimizers_of(model).items() if optimizer else ():
        for index, row in part.state_dict()["state"].items():
            found |= {f"{prefix}/{index}/{name}": tensor for name, tensor in _tensors(row).items()}
    return {name: portable(tensor) for name, tensor in found.items()}


def groups_of(model: BaseAlgorithm) -> Groups:
    """The settings of every group of parameters that an optimiser steps, as JSON can hold them."""
    groups = [dict(group) for part in optimizers_of(model).values() for group in part.state_dict()["param_groups"]]
    return [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()} for group in groups
    ]


def load_tensors(model: BaseAlgorithm, tensors: Mapping[str, Tensor], groups: Groups) -> None:
    """Put an agent's weights and the state of its optimisers, where it has one, into a model of the same kind.

    Args:
        model: The model.
        tensors: What :func:`tensors_of` gave.
        groups: What :func:`groups_of` gave. Of these the learning rate is taken; the rest must be the model's own.

    Raises:
        ValueError: If anything is missing, unknown, of another shape or dtype, not finite, or no state that the
            model's optimiser could have; the model is then as it was.
    """
    own, optimizers = weights_of(model), optimizers_of(model)
    weights = {name: tensor for name, tensor in tensors.items() if name.partition("/")[0] not in optimizers}
    check_tensors(own, weights, "the weights do not fit", same_dtype=True)
    rates = learning_rates(groups_of(model), groups)
    states = {name: _checked_state(part, _state(tensors, name), name) for name, part in optimizers.items()}
    copy_tensors(own, weights)
    remember_statistics(model.policy)
    for prefix, part in optimizers.items():
        part.load_state_dict({"state": states[prefix], "param_groups": part.state_dict()["param_groups"]})
        for group in part.param_groups:
            group["lr"] = rates.pop(0)


def check_shapes(model: BaseAlgorithm, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the weights of a file with the model's by its header, before they are read.

    Raises:
        ValueError: If a name or a shape differs, or there is more beside them than optimisers keep.
    """
    own, optimizers = weights_of(model), optimizers_of(model)
    given = {name: shape for name, shape in shapes.items() if name.partition("/")[0] not in optimizers}
    mine = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if differing := sorted(name for name in {*mine, *given} if mine.get(name) != given.get(name)):
        shown = [f"{name[:100]} {given.get(name, 'missing')} instead of {mine.get(name, 'none')}" for name in differing]
        raise ValueError(f"the weights do not fit: {some(shown)}.")
    beside = sum(math.prod(shapes[name]) for name in shapes.keys() - given.keys())
    if beside > _MAX_STATES * sum(tensor.numel() + 1 for tensor in own.values()):
        raise ValueError(f"the state of the optimiser has {beside:,} numbers, more than one could have.")


def _state_dicts(model: BaseAlgorithm) -> list[str]:
    return model._get_torch_save_params()[0]


def _state(tensors: Mapping[str, Tensor], prefix: str) -> State:
    """An optimiser's state by parameter."""
    state: State = {}
    for path, tensor in tensors.items():
        part, _, rest = path.partition("/")
        if part == prefix:
            index, _, name = rest.partition("/")
            if not (index.isascii() and index.isdigit() and len(index) < 7):
                raise ValueError(f"the file's {path[:100]!r} is of no parameter.")
            state.setdefault(int(index), {})[name] = tensor
    return state


def learning_rates(own: Groups, given: Groups) -> list[float]:
    """The given learning rate of each group.

    Raises:
        ValueError: If any other setting differs from the model's own, or the rate is none.
    """
    if len(own) != len(given) or not all(map(_same_settings, own, given)):
        raise ValueError(f"the optimiser's settings {given!s:.200} are not the model's {own!s:.200}.")
    rates = [group.get("lr") for group in given]
    if not all(isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate < 1e6 for rate in rates):
        raise ValueError(f"learning rates lie in [0, 1,000,000), got {rates}.")
    return [float(rate) for rate in rates]  # type: ignore[arg-type]


def _same_settings(own: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether two groups say the same; a setting that only one release of torch knows is that one's default."""
    compared = _LASTING | (own.keys() & given.keys())
    return all((key in own) == (key in given) and own.get(key) == given.get(key) for key in compared - {"lr"})


def _checked_state(optimizer: th.optim.Optimizer, state: State, prefix: str) -> dict[int, dict[str, Any]]:
    """The state, if the optimiser could have made it: its step trusts names, shapes and dtypes blindly."""
    parameters = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    if not all(index < len(parameters) for index in state):
        raise ValueError(f"{prefix} has state of parameter {max(state)}, the model has {len(parameters)}.")
    fresh = {id(group): _fresh_row(type(optimizer), group) for group in optimizer.param_groups}
    return {
        index: _checked_row(fresh[id(parameters[index][1])], row, parameters[index][0], f"{prefix}/{index}")
        for index, row in state.items()
    }


def _checked_row(fresh: Mapping[str, Any], row: Mapping[str, Tensor], parameter: Tensor, what: str) -> dict[str, Any]:
    expected = {
        name: th.empty(parameter.shape if value.dim() else (), dtype=value.dtype, device="meta")
        for name, value in _tensors(fresh).items()
    }
    check_tensors(expected, row, f"{what} does not fit", same_dtype=True)
    if negative := [name for name in _NOT_NEGATIVE & row.keys() if bool((row[name] < 0).any())]:
        raise ValueError(f"{what}/{negative[0]} is negative.")
    return {name: tensor if isinstance(fresh[name], Tensor) else tensor.item() for name, tensor in row.items()}


def _fresh_row(kind: type[th.optim.Optimizer], group: Mapping[str, Any]) -> dict[str, Any]:
    """What a fresh optimiser of this kind keeps of a parameter after a step."""
    parameter = th.zeros(1, requires_grad=True)
    parameter.grad = th.zeros(1)
    optimizer = kind([{**group, "params": [parameter]}])  # type: ignore[call-arg]
    optimizer.step()
    return optimizer.state_dict()["state"].get(0, {})


def _tensors(row: Mapping[str, Any]) -> dict[str, Tensor]:
    """A parameter's row with its plain numbers as tensors, and without what is not set."""
    return {name: th.as_tensor(value) for name, value in row.items() if value is not None}
