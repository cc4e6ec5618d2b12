"""Checkpoints of a run: agent folders with the state of the training in them, newest first, damaged ones passed by."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.runs.replay_file import read_replay, write_replay
from agents.runs.state import State
from mnv4_rl.agent_files import (
    AGENT,
    LIMITS,
    LIMITS_BESIDE,
    REPLAY,
    TENSORS,
    TRAINING,
    AgentFolder,
    agent_files,
    writer,
)
from mnv4_rl.agent_format import Agent, describe
from mnv4_rl.agent_tensors import check_finite
from mnv4_rl.safe_files import DamagedError, read_file
from mnv4_rl.schemas import parse_json
from mnv4_rl.sealed_folders import SealedFolder, write_folder

CHECKPOINTS = "checkpoints"
_NAME_DIGITS = 9


def write_checkpoint(model: BaseAlgorithm, run: Path, state: State, agent: Agent, with_replay: bool = False) -> Path:
    """Write the checkpoint ``run/checkpoints/<timesteps>``.

    Args:
        model: The model, whose weights are those at which ``state`` was captured.
        run: The run's folder.
        state: What :func:`agents.runs.state.capture` gave.
        agent: What :func:`mnv4_rl.agent_format.describe` gave.
        with_replay: Write the replay buffer too.

    Returns:
        The checkpoint.

    Raises:
        NonFiniteError: If a weight is NaN or infinite; nothing is written.
        OSError: If it cannot be written; checkpoints before it are untouched.
    """
    check_finite(model)
    path = run / CHECKPOINTS / f"{state['counters']['num_timesteps']:0{_NAME_DIGITS}d}"
    files = agent_files(model, agent)
    files[TRAINING] = writer(json.dumps(state).encode())
    if with_replay:
        files[REPLAY] = partial(write_replay, model.replay_buffer)  # type: ignore[attr-defined]
    write_folder(path, files)
    return path


def prune_checkpoints(run: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what killed writes left behind."""
    for path in _checkpoints(run)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in (run / CHECKPOINTS).glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def drop_checkpoints_after(run: Path, timesteps: int) -> None:
    """Delete checkpoints of timesteps that are about to be trained anew (damaged ones)."""
    for path in _checkpoints(run):
        if int(path.name) > timesteps:
            shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run that is what its manifest says; damaged ones are warned about and passed by."""
    for path in _checkpoints(Path(run)):
        try:
            SealedFolder(path, LIMITS | LIMITS_BESIDE, (AGENT, TENSORS, TRAINING)).verify()
            return path
        except DamagedError as error:
            warnings.warn(f"damaged checkpoint passed by: {error}", RuntimeWarning, stacklevel=2)
    return None


def read_state(checkpoint: Path) -> State:
    """The training state in a verified checkpoint."""
    path = checkpoint / TRAINING
    return parse_json(dict[str, Any], read_file(path, LIMITS_BESIDE[TRAINING], below=checkpoint), path)


def restore_model(model: BaseAlgorithm, checkpoint: Path) -> None:
    """Put a checkpoint's weights, optimiser and replay (where it has one) into the model that its run builds.

    Raises:
        ValueError: If the checkpoint is of another algorithm, encoder or environment.
    """
    saved, own = AgentFolder(checkpoint), describe(model)
    for part in ("algorithm", "encoder", "policy_kwargs", "observation_space", "action_space"):
        theirs, ours = getattr(saved.agent, part), getattr(own, part)
        if theirs != ours:
            raise ValueError(f"{checkpoint} has {part} {theirs!r:.300}, the run's settings give {ours!r:.300}.")
    saved.fill(model)
    if (checkpoint / REPLAY).is_file():
        read_replay(model.replay_buffer, checkpoint / REPLAY)  # type: ignore[attr-defined]


def _checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    folder = run / CHECKPOINTS
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name), reverse=True)
