"""What every kind of exported file shares: a new path, observations to compare on, and how well it agrees."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from mnv4_rl.checks import check_positive
from mnv4_rl.export.acting import FoldedAgent
from mnv4_rl.safe_files import make_folder, write_file

Frames = np.ndarray | Mapping[str, np.ndarray]

N_MADE_UP = 64
FOLDED_TOLERANCE = 1e-3  # of the largest score: what folding may move one by, many times over


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how well it agrees with the agent.

    Attributes:
        path: The file.
        n_bytes: Its size.
        n_frames: Observations it was compared on.
        same_actions: Observations with the agent's own action.
        max_error: Largest difference of a score.
        max_score: Largest score, for comparison.
    """

    path: Path
    n_bytes: int
    n_frames: int
    same_actions: int
    max_error: float
    max_score: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.n_bytes / 1e6:.2f} MB, {self.same_actions:,} of {self.n_frames:,} actions are the "
            f"agent's, scores differ by at most {self.max_error:.2g} of {self.max_score:.2g}"
        )


def new_file(path: str | os.PathLike[str], ending: str) -> Path:
    """A path that nothing is at yet.

    Raises:
        ValueError: For another ending.
        FileExistsError: If something is there.
    """
    path = Path(path)
    if path.suffix.lower() != ending:
        raise ValueError(f"The file must end in {ending}, got {str(path)!r}.")
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists and stays as it is; name a new file.")
    return path


def observations_of(space: spaces.Space, frames: Frames | None) -> dict[str, np.ndarray]:
    """Observations by input name; made up where none are given: noise, flat pictures and what lies between.

    Raises:
        ValueError: For frames of another shape, type or name than the space has, or none.
    """
    if frames is None:
        space = deepcopy(space)  # the agent's own goes on drawing what it drew
        space.seed(0)
        samples = [space.sample() for _ in range(N_MADE_UP)]
        if isinstance(space, spaces.Dict):
            return {key: _varied(np.stack([sample[key] for sample in samples])) for key in space.spaces}
        return {"observation": _varied(np.stack(samples))}
    by_name = dict(frames) if isinstance(frames, Mapping) else {"observation": np.asarray(frames)}
    known = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
    if by_name.keys() != known.keys():
        raise ValueError(f"frames must have {', '.join(known)}, got {', '.join(by_name)}.")
    for name, batch in by_name.items():
        if batch.shape[1:] != known[name].shape or batch.dtype != known[name].dtype:
            raise ValueError(
                f"frames of {name!r} must be (N, {', '.join(map(str, known[name].shape or ()))}) {known[name].dtype}, "
                f"got {batch.shape} {batch.dtype}."
            )
    check_positive(frames=len(next(iter(by_name.values()))))
    return {name: by_name[name] for name in known}  # in the order of the space, which is that of inputs


def _varied(batch: np.ndarray) -> np.ndarray:
    """A quarter of the images darker, a quarter flat: noise alone would show a network one thing."""
    if batch.ndim < 4:
        return batch
    quarter = len(batch) // 4
    batch[:quarter] = batch[:quarter] // 4 if batch.dtype == np.uint8 else batch[:quarter] / 4
    batch[quarter : 2 * quarter] = batch[quarter : 2 * quarter, :1, :1, :1]
    return batch


class ByPosition(nn.Module):
    """Inputs by position, as graphs have them.

    Args:
        folded: The agent.
        names: Of the inputs, in their order.
        is_dict: Whether the agent takes a Dict of them.

    Shape:
        As :class:`mnv4_rl.export.acting.FoldedAgent`.
    """

    def __init__(self, folded: FoldedAgent, names: list[str], is_dict: bool) -> None:
        super().__init__()
        self.folded, self.names, self.is_dict = folded, names, is_dict
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and actions."""
        return self.folded(dict(zip(self.names, inputs, strict=True)) if self.is_dict else inputs[0])


@contextmanager
def without_advice() -> Iterator[None]:
    """Without the exporter's lines about packages that are not installed and not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch to itself
            yield
    finally:
        logger.setLevel(level)


@th.no_grad()
def agreement(
    path: Path,
    content: bytes,
    policy: BasePolicy,
    folded: FoldedAgent,
    observations: Mapping[str, np.ndarray],
    scores: np.ndarray,
    actions: np.ndarray,
) -> Exported:
    """How well a file's scores and actions on observations are the agent's own.

    Raises:
        ValueError: If the folded agent is not the agent: its scores do not explain what the policy does.
    """
    is_dict = isinstance(policy.observation_space, spaces.Dict)
    network = ByPosition(folded, list(observations), is_dict)
    expected = network(*(th.as_tensor(batch) for batch in observations.values()))[0].numpy()
    given = observations if is_dict else next(iter(observations.values()))
    theirs, _ = policy.predict(given, deterministic=True)  # type: ignore[arg-type]
    _check_folded(folded, expected, theirs)
    error = float(np.abs(scores - expected).max())
    return Exported(
        path, len(content), len(scores), _same_actions(actions, theirs), error, float(np.abs(expected).max())
    )


def _check_folded(folded: FoldedAgent, scores: np.ndarray, theirs: np.ndarray) -> None:
    slack = FOLDED_TOLERANCE * max(float(np.abs(scores).max()), 1e-6)
    explained: Tensor = folded.decide.explain(th.as_tensor(scores), th.as_tensor(theirs), slack)  # type: ignore[operator]
    if not bool(explained.all()):
        raise ValueError(
            f"In {int((~explained).sum())} of {len(scores)} observations the agent does what its layers do not say, so "
            "nothing is written. A hook or a subclass with its own forward or predict cannot be folded; export it with "
            "torch.onnx.export instead."
        )


def _same_actions(actions: np.ndarray, expected: np.ndarray) -> int:
    close = np.isclose(actions.reshape(len(actions), -1), expected.reshape(len(actions), -1), rtol=1e-3, atol=1e-3)
    return int(close.all(1).sum())


def keep(content: bytes, result: Exported, tolerance: float) -> None:
    """Write a file that acts as the agent does.

    Args:
        content: The file.
        result: How well it agrees.
        tolerance: Largest difference of a score, as a share of the largest score.

    Raises:
        ValueError: If it does not; nothing is written.
        FileExistsError: If something is at its path by now: a check takes seconds.
    """
    if not result.max_error <= tolerance * max(result.max_score, 1e-6):
        raise ValueError(f"It does not act as the agent does, so nothing is written: {result}.")
    make_folder(result.path.parent)
    new_file(result.path, result.path.suffix)
    write_file(result.path, content)
