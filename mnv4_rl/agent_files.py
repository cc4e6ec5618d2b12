"""Agents on disk: written whole or not at all, verified before use, loaded without running anything from a file.

    from mnv4_rl import load_agent, save_agent

    save_agent(model, "agent")
    model = load_agent("agent")       # to play: needs no environment and no memory of transitions
    model = load_agent("agent", env)  # to train on
    model = load_agent("user/agent")  # from the model hub, with the extra ``hub``

A saved agent is a folder:

agent.json         algorithm, the encoder's whole architecture, spaces, hyperparameters; see mnv4_rl/agent_format.py
agent.safetensors  weights, and the optimiser's state unless it was left out; see mnv4_rl/agent_tensors.py
manifest.json      size and SHA-256 of each
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from types import NoneType
from typing import BinaryIO

import gymnasium as gym
import torch as th
from safetensors.torch import save
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from mnv4_rl.agent_format import Agent, OtherSpacesError, describe, progress_of, rebuild
from mnv4_rl.agent_tensors import (
    check_finite,
    check_shapes,
    groups_of,
    kinds_of,
    learning_rates,
    load_tensors,
    tensors_of,
)
from mnv4_rl.checks import check_type
from mnv4_rl.extractors import MNV4Extractor, remember_statistics
from mnv4_rl.hub import agent_folder
from mnv4_rl.observations import warn_of_normalised
from mnv4_rl.safe_files import MAX_JSON_BYTES, DamagedError, Writer, check_size, open_regular
from mnv4_rl.schemas import parse_json
from mnv4_rl.sealed_folders import SealedFolder, check_replaceable, standing, write_folder
from mnv4_rl.weights.files import parse_safetensors, read_header, read_pickle
from mnv4_rl.weights.tensors import check_tensors, copy_tensors, plain_names, some

AGENT, TENSORS = "agent.json", "agent.safetensors"
TRAINING, REPLAY = "training.json", "replay.npz"  # what a run's checkpoints have beside the agent
LIMITS = {AGENT: MAX_JSON_BYTES, TENSORS: 2 * 2**30}  # bytes of each file
LIMITS_BESIDE = {TRAINING: MAX_JSON_BYTES, REPLAY: 16 * 2**30}
# A model may take this many times its file while it is built, and a small one this many bytes.
_TIMES, _AT_LEAST_BYTES = 3, 2**26
_ZIP_TIMES, _ZIP_BYTES = 4, 2**26  # a member of a zip, in the same way


def save_agent(model: BaseAlgorithm, path: str | Path, *, optimizer: bool = True) -> Path:
    """Save an agent so that it can be loaded safely, by this or any later registry of variants.

    Args:
        model: One of :data:`mnv4_rl.agent_format.ALGORITHMS`, compiled or not, with SB3's policies for images or those
            of :mod:`mnv4_rl.policies`, and an encoder of :data:`mnv4_rl.agent_parts.ENCODERS`.
        path: A new folder, an empty one, or one that :func:`save_agent` wrote, which is replaced.
        optimizer: Keep the optimiser's state too. Without it the folder is a third of the size; the agent plays the
            same, and one that trains on begins with a fresh optimiser.

    Returns:
        The folder.

    Raises:
        ValueError: If the model has a part that cannot be told in plain data, or weights that are not finite; for an
            empty path.
        FileExistsError: If the path, or one of its ``.partial`` and ``.old.partial`` beside it, where it is written,
            holds anything but a saved agent, a file among an agent's too; all is left as it is.
        OSError: If it cannot be written; what was there stays.

    Warns:
        UserWarning: If VecNormalize normalises the observations: it belongs to the environment, and is not kept.
    """
    _check_named(path)
    path = Path(path)
    check_agent_place(path)
    check_finite(model)
    agent = describe(model)
    _check_comes_back(model, agent)
    write_folder(path, agent_files(model, agent, optimizer=optimizer))
    warn_of_normalised(model, path)
    return path


def _check_named(path: str | Path) -> None:
    if not os.fspath(path):  # an environment variable that is not set
        raise ValueError("The agent's folder has an empty name, ''; give it one.")


def check_agent_place(path: Path) -> None:
    """Refuse a folder that :func:`save_agent` could not write without deleting something that is none of an agent's.

    Raises:
        FileExistsError: Naming what is in the way; it is left as it is.
    """
    check_replaceable(path, LIMITS)


def load_agent(
    path: str | Path, env: VecEnv | gym.Env | str | None = None, device: str | th.device = "auto"
) -> BaseAlgorithm:
    """Load an agent that :func:`save_agent` wrote, or a checkpoint of a run.

    Nothing in the files is executed: the model is built from its description, whose sizes must
    be those of the weights beside it, and the weights are numbers.

    Args:
        path: The agent's folder, one that was published, a file in it, or ``"user/name"`` on the model hub.
        env: Environments to go on with, or what Gymnasium calls one; None to play alone, which takes no memory of
            transitions.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        TypeError: If ``env`` is no environment.
        ValueError: If the folder is damaged, says anything that no agent has, or does not fit ``env``; for an unknown
            device; for one of SB3's zips, with how to load its weights.
        OSError, ModuleNotFoundError: If it is on the hub and cannot be had; the message says what to do.
    """
    _check_named(path)
    _check_device(device)
    check_type("env", env, (VecEnv, gym.Env, str, NoneType))
    env = gym.make(env) if isinstance(env, str) else env
    with agent_folder(path) as folder:
        return _load_folder(folder, env, device)


def _check_device(device: str | th.device) -> None:
    try:
        get_device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}.") from error


def _load_folder(path: Path, env: VecEnv | gym.Env | None, device: str | th.device) -> BaseAlgorithm:
    if path.is_file() or (path.suffix == ".zip" and not standing(path).is_dir()):
        raise ValueError(
            f"{path} is no folder of save_agent. SB3's zips can run code when they are loaded: build the model as it "
            "was built, then call load_zip_weights(model, path), which reads the weights alone."
        )
    files = AgentFolder(path)
    try:
        model = rebuild(files.agent, env, device, max(_AT_LEAST_BYTES, _TIMES * files.n_bytes))
        files.fill(model)
    except OtherSpacesError:
        raise
    except Exception as error:  # whatever SB3 and PyTorch make of wrong contents
        raise DamagedError(f"{path} is refused: {error}") from error
    return model


class AgentFolder:
    """A saved agent on disk, its description read and the sizes of its weights known.

    Args:
        path: The folder.

    Attributes:
        agent: The description.
        n_bytes: Size of the weights and what is beside them.

    Raises:
        DamagedError: If it is damaged or says anything that no agent has.
    """

    def __init__(self, path: Path) -> None:
        self._folder = SealedFolder(path, LIMITS | LIMITS_BESIDE, (AGENT, TENSORS))
        self._tensors = self._folder.path / TENSORS
        self.agent = parse_json(Agent, self._folder.read(AGENT), self._folder.path / AGENT)
        try:
            with open_regular(self._tensors, below=self._folder.path) as file:
                self.n_bytes = check_size(file, self._tensors, LIMITS[TENSORS])
                header, _ = read_header(file, self._tensors)
        except OSError as error:
            raise DamagedError(f"{self._tensors} cannot be read ({error.strerror}).") from error
        self._shapes = {name: entry.shape for name, entry in header.items()}

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            DamagedError: Naming the first that is not what was written.
        """
        self._folder.verify()

    def fill(self, model: BaseAlgorithm) -> None:
        """Put weights, and the optimiser's state if it is there, into a model of the same kind.

        Raises:
            ValueError: If they do not fit; the model is as it was.
        """
        check_shapes(model, self._shapes)
        content = self._folder.read(TENSORS)
        self._folder.verify()
        load_tensors(model, parse_safetensors(content, self._tensors), self.agent.optimizer)


def load_zip_weights(model: BaseAlgorithm, path: str | Path) -> None:
    """Load the weights of one of SB3's zips into a model of the same shape, and nothing else.

    ``PPO.load`` unpickles hyperparameters, which runs whatever the file's author put there; this never reads them, nor
    the optimiser's state.

    Args:
        model: A model built as the zip's was.
        path: The zip; SB3's ``.zip`` may be left out.

    Raises:
        ValueError: If the file is no such zip, holds more than tensors, or its weights do not fit or are not finite;
            the model is left as it was.
        OSError: If it cannot be opened.
    """
    path = Path(path)
    if not path.suffix and not path.exists():
        path = path.with_suffix(".zip")  # as SB3's save and load do
    own = plain_names(model.policy.state_dict())
    max_bytes = _ZIP_TIMES * sum(tensor.nbytes for tensor in own.values()) + _ZIP_BYTES
    with open_regular(path) as file:
        try:
            given = _zip_tensors(file, path, max_bytes)
            _check_variant(model, given)
            check_tensors(own, given, "the weights differ")
            _check_shared(own, given)
        except Exception as error:  # whatever zipfile and PyTorch make of a broken file
            reason = shorten(str(error), 300) or type(error).__name__
            raise DamagedError(f"{path} cannot give its weights to this {type(model).__name__}: {reason}") from error
    copy_tensors(own, given)
    remember_statistics(model.policy)


def agent_files(model: BaseAlgorithm, agent: Agent, *, optimizer: bool = True) -> dict[str, Writer]:
    """What fills each file of a saved agent."""
    data = agent.model_copy(update={"optimizer": groups_of(model), **progress_of(model)})
    return {AGENT: writer(data.to_json()), TENSORS: writer(save(tensors_of(model, optimizer)))}


def writer(content: bytes) -> Writer:
    """Fill a file with these bytes."""
    return lambda file: file.write(content)


def _check_comes_back(model: BaseAlgorithm, agent: Agent) -> None:
    """Refuse a model that its description would not bring back: one that was changed after it was built."""
    fresh = rebuild(agent, None, "cpu")
    theirs, own = kinds_of(fresh), kinds_of(model)
    if differing := sorted(name for name in {*theirs, *own} if theirs.get(name) != own.get(name)):
        raise ValueError(
            f"the model was changed after it was built, so a file cannot tell it: {some(differing)}; use model.save()."
        )
    learning_rates(groups_of(fresh), groups_of(model))


def _zip_tensors(file: BinaryIO, path: Path, max_bytes: int) -> dict[str, Tensor]:
    """The policy's state dict in one of SB3's zips; the other tensors are looked at, for a zip of anything else."""
    check_size(file, path, 8 * max_bytes)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist() if member.filename.endswith(".pth")}
        if too_large := [name for name, member in members.items() if member.file_size > max_bytes]:
            raise ValueError(f"{too_large[0]} is larger than the {max_bytes:,} bytes that this model's could be")
        found = {name: read_pickle(io.BytesIO(archive.read(member)), name) for name, member in members.items()}
    policy = found.get("policy.pth")
    if not isinstance(policy, dict) or not all(isinstance(name, str) for name in policy):
        raise ValueError("it holds no policy.pth of named tensors")
    return plain_names(policy)


def _check_variant(model: BaseAlgorithm, given: Mapping[str, Tensor]) -> None:
    """Refuse weights of another variant by its name, before a list of every tensor that differs."""
    for name, module in model.policy.named_modules():
        if isinstance(module, MNV4Extractor) and (variant := module.other_variant(given, f"{name}.")):
            raise ValueError(f"its encoder is the variant {variant!r}; build the model with it")


def _check_shared(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse different numbers for what is one tensor of the model, under two names."""
    first: dict[int, str] = {}
    for name, tensor in own.items():
        earlier = first.setdefault(tensor.data_ptr(), name)
        if tensor.numel() and own[earlier].shape == tensor.shape and not th.equal(given[name], given[earlier]):
            raise ValueError(f"{name} and {earlier} are one tensor of the model, and differ")
