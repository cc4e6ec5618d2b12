"""Checkpoints of a run: agent folders with the state of the training in them, newest first, damaged ones passed by."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents import agent_format
from agents.agent_files import AGENT, LIMITS, REPLAY, TENSORS, TRAINING, agent_files, load_tensors, read_json, writer
from agents.runs.guards import check_finite
from agents.runs.replay_file import read_replay, write_replay
from agents.runs.state import State
from mnv4_rl.safe_files import DamagedError
from mnv4_rl.sealed_folders import SealedFolder, write_folder

CHECKPOINTS = "checkpoints"
_NAME_DIGITS = 9


def write_checkpoint(
    model: BaseAlgorithm, run: Path, state: State, description: Mapping[str, Any], with_replay: bool = False
) -> Path:
    """Write the checkpoint ``run/checkpoints/<timesteps>``.

    Args:
        model: The model, whose weights are those at which ``state`` was captured.
        run: The run's folder.
        state: What :func:`agents.runs.state.capture` gave.
        description: What :func:`agents.agent_format.describe` gave.
        with_replay: Write the replay buffer too.

    Returns:
        The checkpoint.

    Raises:
        NonFiniteError: If a weight is NaN or infinite; nothing is written.
        OSError: If it cannot be written; checkpoints before it are untouched.
    """
    check_finite(model)
    path = run / CHECKPOINTS / f"{state['counters']['num_timesteps']:0{_NAME_DIGITS}d}"
    files = agent_files(model, description)
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
            SealedFolder(path, LIMITS, (AGENT, TENSORS, TRAINING)).verify()
            return path
        except DamagedError as error:
            warnings.warn(f"damaged checkpoint passed by: {error}", RuntimeWarning, stacklevel=2)
    return None


def read_state(checkpoint: Path) -> State:
    """The training state in a verified checkpoint."""
    return read_json(checkpoint / TRAINING)


def restore_model(model: BaseAlgorithm, checkpoint: Path) -> None:
    """Put a checkpoint's weights, optimiser and replay (where it has one) into the model that its run builds.

    Raises:
        ValueError: If the checkpoint is of another algorithm, encoder or environment.
    """
    saved, own = read_json(checkpoint / AGENT), agent_format.describe(model)
    for part in ("algorithm", "encoder", "policy_kwargs", "observation_space", "action_space"):
        if saved.get(part) != own[part]:
            raise ValueError(f"{checkpoint} has {part} {saved.get(part)}, the run's settings give {own[part]}.")
    load_tensors(model, checkpoint, saved)
    if (checkpoint / REPLAY).is_file():
        read_replay(model.replay_buffer, checkpoint / REPLAY)  # type: ignore[attr-defined]


def _checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    folder = run / CHECKPOINTS
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name), reverse=True)
