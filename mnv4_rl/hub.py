"""Agents on the model hub: loaded by name, described by the hub's own front matter, pushed whole.

    agent = load_agent("user/pong")           # mnv4_rl.load_agent: a folder, a file in it, or a name on the hub
    push_to_hub("agents/pong", "user/pong")   # a folder that experiments/publish_agent.py wrote

Needs huggingface_hub, the extra ``hub``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mnv4_rl.sealed_folders import MANIFEST, standing

AGENT_FOLDER = "agent"  # in a published folder, and in a repository
AGENT_FILES = (MANIFEST, "agent.json", "agent.safetensors")
CARD = "README.md"
TAGS = ("deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "mobilenetv4", "mnv4_rl")
HUB_INSTALL_LINE = 'pip install huggingface_hub, or this package with its extra: pip install ".[hub]"'
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@contextmanager
def agent_folder(path: str | Path) -> Iterator[Path]:
    """Where a saved agent lies: a folder, one that was published, a file in one, or a name on the hub.

    Args:
        path: A path, or a string ``"user/repository"`` where there is no such path and no folder ``user``; the agent is
            then fetched, and the folder exists only inside the ``with`` block.

    Raises:
        ModuleNotFoundError: If the hub's client is needed and not installed; the message has the install line.
        ConnectionError: If it cannot be fetched.
    """
    local = Path(path)
    is_name = isinstance(path, str) and _REPOSITORY.fullmatch(path) and not local.parent.is_dir()
    if standing(local).exists() or local.is_symlink() or not is_name:
        yield _local(local)
        return
    with TemporaryDirectory() as name:
        yield _fetch(str(path), Path(name) / AGENT_FOLDER)


def _local(path: Path) -> Path:
    if path.name in AGENT_FILES and path.is_file():
        return path.parent
    return path / AGENT_FOLDER if (standing(path / AGENT_FOLDER) / MANIFEST).is_file() else path


def _fetch(repository: str, folder: Path) -> Path:
    """The agent of a repository, as files of their own: the hub's cache holds links, which are not followed here."""
    try:
        download = _client().hf_hub_download
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"There is no folder {repository!r}. {error}") from error
    folder.mkdir()
    for name in AGENT_FILES:
        try:
            shutil.copyfile(download(repository, f"{AGENT_FOLDER}/{name}"), folder / name)
        except Exception as error:  # the client passes on the errors of whatever HTTP library it uses
            reason = str(error).strip().partition("\n")[0][:200]
            raise ConnectionError(
                f"There is no folder {repository!r}, and the hub gave no {AGENT_FOLDER}/{name} of that name "
                f"({type(error).__name__}: {reason}). Check the name, or pass the path of a folder."
            ) from error
    return folder


def push_to_hub(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Push a published agent, card and pictures included, to a repository of yours, which is made if needed.

    The hub's client has to be logged in: ``hf auth login``, once.

    Args:
        folder: What ``experiments/publish_agent.py`` wrote.
        repository: ``"user/name"``.
        private: Make a new repository private.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the folder holds no sound agent or card, or for a name of another form.
        ModuleNotFoundError: Without huggingface_hub; the message has the install line.
    """
    from mnv4_rl.agent_files import AgentFolder

    folder, hub = Path(folder), _client()
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"A repository is called 'user/name', got {repository!r}.")
    AgentFolder(folder / AGENT_FOLDER).verify()
    check_card(folder / CARD)
    api = hub.HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Publish the agent")
    return str(commit.commit_url)


def front_matter(environment: str, algorithm: str, scores: Sequence[float]) -> str:
    """The part of a card that the hub reads: library, tags, and the score as a leaderboard wants it.

    Args:
        environment: Gymnasium id.
        algorithm: Name of the algorithm.
        scores: Raw scores of whole games, at least one.

    Returns:
        YAML between its two lines of dashes.
    """
    hub = _client()
    mean, deviation = float(np.mean(scores)), float(np.std(scores))
    result = hub.EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_name=environment,
        dataset_type=environment,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{mean:.2f} +/- {deviation:.2f}",
    )
    data = hub.ModelCardData(
        library_name="stable-baselines3", tags=[environment, *TAGS], model_name=algorithm, eval_results=[result]
    )
    return f"---\n{data.to_yaml()}\n---\n"


def check_card(path: Path) -> None:
    """Refuse a card that the hub could not list.

    Raises:
        ValueError: If there is none, or it has no ``library_name`` and no ``mean_reward``.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; experiments/publish_agent.py writes it.")
    data: Any = _client().ModelCard.load(path).data
    rewards = [result for result in data.eval_results or () if result.metric_type == "mean_reward"]
    if data.library_name is None or not rewards:
        raise ValueError(f"{path} has no library_name or no mean_reward; publish the agent anew.")


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ModuleNotFoundError(
            f"The model hub needs huggingface_hub; install it with: {HUB_INSTALL_LINE}"
        ) from error
    return huggingface_hub


__all__ = ["agent_folder", "check_card", "front_matter", "push_to_hub"]
