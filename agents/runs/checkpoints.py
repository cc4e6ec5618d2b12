"""Checkpoints of a run: agent folders with the state of the training in them, newest first, damaged ones passed by."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from functools import partial
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.runs.folder import CHECKPOINTS, FIRST_CHECKPOINT, KEPT_AGENT
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
from mnv4_rl.safe_files import PARTIAL, DamagedError, remove, write_file
from mnv4_rl.schemas import parse_json
from mnv4_rl.sealed_folders import SealedFolder, write_folder

_NAME_DIGITS = 9
_NAME = re.compile(r"[0-9]{9}|[1-9][0-9]{9,12}")
# What reading a file that is gone, or is none, says; any other fault may pass.
_LASTING = {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR, errno.ENODEV}


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
    if not (run / FIRST_CHECKPOINT).exists():  # so that nobody takes this for a run that never wrote one
        write_file(run / FIRST_CHECKPOINT, f"written at agent timestep {path.name}\n".encode())
    return path


def prune_checkpoints(run: Path, keep: int, newest: int) -> None:
    """Delete all but the ``keep`` newest checkpoints up to a timestep, and what killed writes left behind."""
    for path in [path for path in _checkpoints(run) if timesteps_of(path) <= newest][keep:]:
        remove(path)
    for path in (run / CHECKPOINTS).glob(f"*{PARTIAL}"):
        remove(path)


def newest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run that is what its manifest says; damaged ones are warned about and passed by."""
    for path in _checkpoints(Path(run)):
        try:
            SealedFolder(path, LIMITS | LIMITS_BESIDE, (AGENT, TENSORS, TRAINING)).verify()
            return path
        except DamagedError as error:
            warnings.warn(f"damaged checkpoint passed by: {error}", RuntimeWarning, stacklevel=2)
    return None


def resume_point(run: Path) -> tuple[Path, State] | None:
    """Where a run goes on: its newest good checkpoint, with the training state in it. Nothing is changed.

    Returns:
        None if the run never wrote a checkpoint.

    Raises:
        DamagedError: If it has none that is good, or had some.
        OSError: If one cannot be read now: it may be good.
    """
    found = _checkpoints(run)
    for path in found:
        try:
            return path, read_state(path)
        except DamagedError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _LASTING:
                raise OSError(
                    f"{error} It may be sound all the same: try again, or move it away to go on from one before it."
                ) from error
            warnings.warn(f"damaged checkpoint passed by: {error}", RuntimeWarning, stacklevel=2)
    if found:
        raise DamagedError(
            f"all {len(found)} checkpoints of {run} are damaged; nothing was changed. Bring a sound one back, or start "
            "a new run in another folder."
        )
    if trace := _trace_of_checkpoints(run):
        raise DamagedError(
            f"{run} has {trace} but no checkpoint to go on from; nothing was changed. Bring its {CHECKPOINTS}/ back, "
            "or start a new run in another folder."
        )
    return None


def read_state(path: Path) -> State:
    """The training state in a checkpoint, every file of which is compared with its manifest.

    Raises:
        DamagedError: If a file is not what was written, or says what no run would.
    """
    folder = SealedFolder(path, LIMITS | LIMITS_BESIDE, (AGENT, TENSORS, TRAINING))
    folder.verify()
    state = parse_json(State, folder.read(TRAINING), path / TRAINING)
    if state["counters"]["num_timesteps"] != timesteps_of(path):
        raise DamagedError(f"{path} holds the state of timestep {state['counters']['num_timesteps']:,}.")
    return state


def _trace_of_checkpoints(run: Path) -> str | None:
    """What only a run that has written checkpoints, or one that is not to be trained, has."""
    traces = {
        "an agent for playing (published: its weights alone)": (run / KEPT_AGENT).is_dir(),
        f"a {FIRST_CHECKPOINT}": (run / FIRST_CHECKPOINT).exists(),
        "a model.zip": (run / "model.zip").exists(),
        "an evaluation.json": (run / "evaluation.json").exists(),
        f"no {CHECKPOINTS}/, which every run begins with,": not (run / CHECKPOINTS).is_dir(),
    }
    return next((trace for trace, is_there in traces.items() if is_there), None)


def timesteps_of(checkpoint: Path) -> int:
    """Agent timesteps in a checkpoint's name."""
    return int(checkpoint.name)


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
    """A run's checkpoints, newest first: folders under a name that this program gives, no links."""
    folder = run / CHECKPOINTS
    if folder.is_symlink() or not folder.is_dir():
        return []
    named = [Path(entry) for entry in os.scandir(folder) if _NAME.fullmatch(entry.name)]
    return sorted((path for path in named if path.is_dir() and not path.is_symlink()), key=timesteps_of, reverse=True)
