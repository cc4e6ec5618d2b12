"""Agents on disk: written whole or not at all, verified before use, loaded without running anything from a file.

A saved agent is a folder; a checkpoint of a run is the same folder with ``training.json`` (and ``replay.npz``) in it:

agent.json         algorithm, encoder, spaces, hyperparameters, the optimiser's settings
agent.safetensors  weights, and the optimiser's state of each unless it was left out
training.json      counters, recent games, values waiting to be logged, states of the random generators
replay.npz         the transitions of an off-policy algorithm, where asked for
manifest.json      size and SHA-256 of each
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents import agent_format
from agents.runs.guards import check_finite
from mnv4_rl.safe_files import MAX_JSON_BYTES, Writer, read_file
from mnv4_rl.sealed_folders import MANIFEST, SealedFolder, write_folder

AGENT, TENSORS, TRAINING, REPLAY = "agent.json", "agent.safetensors", "training.json", "replay.npz"
LIMITS = {AGENT: MAX_JSON_BYTES, TENSORS: 4 * 2**30, TRAINING: MAX_JSON_BYTES, REPLAY: 16 * 2**30}  # bytes of each file

# What a well-formed file with wrong contents can set off while a model is built from it.
_REFUSED = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    RuntimeError,
    RecursionError,
    OverflowError,
)


def save_agent(model: BaseAlgorithm, path: str | Path, *, optimizer: bool = True) -> Path:
    """Save an agent so that it can be loaded safely.

    Args:
        model: PPO, DQN or QR-DQN with ``"CnnPolicy"`` or a policy of :mod:`mnv4_rl.policies`, and an encoder of
            :data:`agents.encoders.ENCODERS`.
        path: A new folder, or one that :func:`save_agent` wrote, which is replaced.
        optimizer: Keep the optimiser's state too. Without it the folder is a third of the size; the agent plays the
            same, and one that trains on begins with a fresh optimiser.

    Returns:
        The folder.

    Raises:
        ValueError: If the model has a part that cannot be told in plain data, or weights that are not finite.
        FileExistsError: If the path holds something other than a saved agent; it is left as it is.
        OSError: If it cannot be written; what was there stays.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise FileExistsError(f"{path} exists and is no saved agent; name a new folder.")
    check_finite(model)
    write_folder(path, agent_files(model, agent_format.describe(model), optimizer=optimizer))
    return path


def load_agent(path: str | Path, env: VecEnv | None = None, device: str | th.device = "auto") -> BaseAlgorithm:
    """Load an agent that :func:`save_agent` wrote, or a checkpoint of a run.

    Nothing in the files is executed: the model is rebuilt from names in our own tables, and the weights are numbers.

    Args:
        path: The agent's folder.
        env: Environments to go on with; None to play alone.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        ValueError: If the folder is damaged, names anything outside the tables, or does not fit ``env``; for one of
            SB3's zips, with how to load its weights.
    """
    path = Path(path)
    if path.suffix == ".zip" or path.is_file():
        raise ValueError(
            f"{path} is no folder of save_agent. SB3's zips can run code when they are loaded: build the model with "
            "build_ppo or build_dqn, then call load_zip_weights(model, path), which reads the weights alone."
        )
    SealedFolder(path, LIMITS, (AGENT, TENSORS)).verify()
    try:
        description = read_json(path / AGENT)
        model = agent_format.rebuild(description, env, device)
        load_tensors(model, path, description)
    except _REFUSED as error:
        raise ValueError(f"{path} is refused: {error}") from error
    return model


def load_zip_weights(model: BaseAlgorithm, path: str | Path) -> None:
    """Load the weights of one of SB3's zips into a model of the same shape, and nothing else.

    ``PPO.load`` unpickles hyperparameters, which runs whatever the file's author put there; this never reads them.

    Args:
        model: A model built as the zip's was.
        path: The zip.

    Raises:
        ValueError: If the file is no such zip, holds more than tensors, or its weights do not fit; the model may then
            hold some of them and should be built anew.
    """
    try:
        model.set_parameters(str(path), exact_match=True, device=model.device)
    except (*_REFUSED, OSError, UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        reason = shorten(str(error), 300) or type(error).__name__  # PyTorch lists every tensor that does not fit
        raise ValueError(f"{path} cannot give its weights to this {type(model).__name__}: {reason}") from error
    check_finite(model)


def agent_files(model: BaseAlgorithm, description: Mapping[str, Any], *, optimizer: bool = True) -> dict[str, Writer]:
    """What fills each file of a saved agent."""
    data = {**description, "optimizer": agent_format.optimizer_groups(model)}
    tensors = agent_format.policy_tensors(model) | (agent_format.optimizer_tensors(model) if optimizer else {})
    return {AGENT: writer(json.dumps(data, indent=1).encode()), TENSORS: writer(save(tensors))}


def writer(content: bytes) -> Writer:
    """Fill a file with these bytes."""
    return lambda file: file.write(content)


def load_tensors(model: BaseAlgorithm, path: Path, description: Mapping[str, Any]) -> None:
    """Put the weights of a saved agent, and its optimiser's state, into a model built for them."""
    try:
        tensors = load_file(path / TENSORS, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path / TENSORS}: {error}") from error
    agent_format.load_policy(model, tensors)
    agent_format.load_optimizer(model, tensors, description["optimizer"])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one table."""
    data = json.loads(read_file(path, MAX_JSON_BYTES, below=path.parent))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} must be a table of names and values, got {type(data).__name__}.")
    return data
