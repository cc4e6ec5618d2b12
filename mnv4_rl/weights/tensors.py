"""State dicts: one name for each tensor, compared and checked whole before the first number is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch as th
from torch import Tensor, nn

StateDict: TypeAlias = Mapping[str, Tensor]

_FLOATS = (th.float16, th.bfloat16, th.float32, th.float64)
_INTEGERS = (th.bool, th.uint8, th.int8, th.int16, th.int32, th.int64)
_COMPILED = "_orig_mod."  # what th.compile puts before the names of whatever it wraps


def plain_names(state: StateDict) -> dict[str, Tensor]:
    """A state dict under the names it has without ``th.compile`` and ``DistributedDataParallel``."""
    names = {name: name.replace(_COMPILED, "") for name in state}
    prefix = "module." if names and all(name.startswith("module.") for name in names.values()) else ""
    return {names[name].removeprefix(prefix): tensor for name, tensor in state.items()}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict, each once: one that is shared has its first name."""
    persistent = module.state_dict().keys()
    named: Iterable[tuple[str, Tensor]] = (*module.named_parameters(), *module.named_buffers())
    return plain_names({name: tensor for name, tensor in named if name in persistent})


def check_tensors(own: StateDict, given: StateDict, what: str, same_dtype: bool = False) -> None:
    """Compare names and shapes, and dtypes if asked to, and refuse tensors that cannot be copied whole.

    Raises:
        ValueError: ``what`` does not fit, and the first few differences.
    """
    both = [key for key in own if key in given]
    problems = [f"missing {some([key for key in own if key not in given])}"] if len(both) < len(own) else []
    if len(both) < len(given):
        problems.append(f"unexpected {some(sorted(key for key in given if key not in own))}")
    odd = _unsound(both, lambda key: kind_problem(given[key], own[key].dtype))
    problems += odd or _differing("shape", own, given, both)
    if same_dtype and not odd:
        problems += _differing("dtype", own, given, both)
    if not problems:  # only now is it known how many numbers there are to look at
        problems += _unsound(both, lambda key: number_problem(given[key], own[key].dtype))
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}.")


def _unsound(keys: list[str], problem: Callable[[str], str]) -> list[str]:
    found = [f"{key} {reason}" for key in keys if (reason := problem(key))]
    return [some(found)] if found else []


def kind_problem(tensor: object, dtype: th.dtype) -> str:
    """Why something cannot give its numbers to a tensor of this dtype, whatever they are; empty if it can."""
    if not isinstance(tensor, Tensor) or tensor.layout is not th.strided or tensor.is_quantized or tensor.is_nested:
        return "is no dense tensor"
    if tensor.device.type == "meta":
        return "is on the meta device, and holds no numbers"
    if tensor.dtype not in (_FLOATS if dtype.is_floating_point else _INTEGERS):
        return f"is {tensor.dtype}, which does not become {dtype}"
    return "has several entries in one place of memory" if _overlaps(tensor) else ""


def number_problem(tensor: Tensor, dtype: th.dtype) -> str:
    """Whether a number of a tensor of any shape would be NaN or infinite in this dtype; empty if none."""
    if not dtype.is_floating_point or bool(tensor.detach().to(dtype).isfinite().all()):
        return ""
    return "has values that are NaN or infinite"


@th.no_grad()
def copy_tensors(own: StateDict, given: StateDict) -> None:
    """Copy what :func:`check_tensors` found to fit."""
    for name, tensor in own.items():
        tensor.copy_(given[name])


def portable(tensor: Tensor) -> Tensor:
    """A copy for a file, of the same shape: on the CPU, contiguous, with memory of its own."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def some(items: list[str], shown: int = 3) -> str:
    """The first few, each in a length and in characters fit for a message, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(item[:200].encode("unicode_escape").decode() for item in items[:shown]) + more


def _differing(attribute: str, own: StateDict, given: StateDict, keys: list[str]) -> list[str]:
    """At most one sentence on the tensors whose shape or dtype is not ours."""
    pairs = [(key, getattr(given[key], attribute, None), getattr(own[key], attribute)) for key in keys]
    differing = [f"{key} {theirs} instead of {ours}" for key, theirs, ours in pairs if theirs != ours]
    return [f"{attribute} of {some(differing)}"] if differing else []


def _overlaps(tensor: Tensor) -> bool:
    """Whether two entries share their memory, as those of an expanded tensor do."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach = stride * size
    return False
