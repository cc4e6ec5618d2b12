"""An agent as a program for ExecuTorch, PyTorch's runtime for phones and small boards, with XNNPACK's kernels."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from mnv4_rl.checks import check_positive
from mnv4_rl.export.acting import fold, policy_of
from mnv4_rl.export.agreement import (
    ByPosition,
    Exported,
    Frames,
    agreement,
    keep,
    new_file,
    observations_of,
    without_advice,
)

Batch: TypeAlias = tuple[Tensor, ...]  # by input

TOLERANCE = 1e-3  # largest difference of a score, as a share of the largest score
EXECUTORCH_INSTALL_LINE = 'pip install executorch, or this package with its extra: pip install ".[executorch]"'


def to_executorch(
    agent: BaseAlgorithm | BasePolicy,
    path: str | os.PathLike[str],
    *,
    batch_size: int = 1,
    frames: Frames | None = None,
) -> Exported:
    """Write an agent's policy as a program for ExecuTorch, for one size of batch.

    Inputs and outputs are those of :func:`mnv4_rl.export.to_onnx`; those of a Dict come in the order of its keys.

    Args:
        agent: As in :func:`mnv4_rl.export.fold`.
        path: A new file that ends in ``.pte``.
        batch_size: Observations of one call; a device plays one game.
        frames: Observations to compare on, at best of play: (N, ...), or a Dict of them. None makes some up.

    Returns:
        What was written, and how well it agrees.

    Raises:
        ValueError: For another ending, fewer frames than a batch, or a program that would not act as the agent does.
        FileExistsError: If the path exists; it is left as it is.
        TypeError: For a policy or an encoder that cannot be folded.
        ModuleNotFoundError: Without executorch; the message has the install line.
    """
    path = new_file(path, ".pte")
    check_positive(batch_size=batch_size)
    _check_installed()
    policy, folded = policy_of(agent), fold(agent)
    observations = observations_of(policy.observation_space, frames)
    n_frames = len(next(iter(observations.values()))) // batch_size * batch_size
    if not n_frames:
        raise ValueError(f"frames must be at least batch_size={batch_size}, to compare on.")
    compared = {name: batch[:n_frames] for name, batch in observations.items()}
    # Parts of a batch have all of its memory, and an example's would come into the file.
    parts = [[part.clone() for part in th.as_tensor(batch).split(batch_size)] for batch in compared.values()]
    batches = list(zip(*parts, strict=True))
    network = ByPosition(folded, list(compared), isinstance(policy.observation_space, spaces.Dict))
    content = _lower(network, batches[0])
    result = agreement(path, content, policy, folded, compared, *_run(content, batches))
    keep(content, result, TOLERANCE)
    return result


def _check_installed() -> None:
    try:
        import executorch.exir  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Programs for ExecuTorch need {error.name}; install it with: {EXECUTORCH_INSTALL_LINE}"
        ) from error


def _lower(network: ByPosition, example: Batch) -> bytes:
    """The program: what XNNPACK knows for it, the rest for ExecuTorch's own kernels."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with without_advice():
        exported = th.export.export(network, example)
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        return bytes(edge.to_executorch().buffer)


def _run(content: bytes, batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and actions by ExecuTorch."""
    from executorch.runtime import Runtime

    method: Any = Runtime.get().load_program(content).load_method("forward")
    outputs = [[out.clone() for out in method.execute(list(batch))] for batch in batches]
    scores, actions = (th.cat(part).numpy() for part in zip(*outputs, strict=True))
    return scores, actions


__all__ = ["EXECUTORCH_INSTALL_LINE", "to_executorch"]
