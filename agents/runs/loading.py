"""Bring the agent of a run folder back. Nothing in its files is executed: weights are data, the rest is rebuilt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.dqn import ALGOS, DQNHyperparameters, build_dqn
from agents.play.evaluate import Player
from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs.checkpoints import newest_checkpoint, timesteps_of
from agents.runs.families import FAMILIES, Games
from agents.runs.folder import CHECKPOINTS, KEPT_AGENT, exported_timesteps, read_config
from mnv4_rl.agent_files import AGENT, load_agent, load_zip_weights
from mnv4_rl.checks import check_choice
from mnv4_rl.export import OnnxAgent
from mnv4_rl.games import family_of, resolve_game

_REQUIRED = ("algo", "game", "encoder")


@dataclass(frozen=True)
class TrainedRun:
    """The agent of a run folder.

    Attributes:
        model: The agent.
        games: What it was trained on.
        algo: Name of its algorithm.
        encoder: Name of its encoder.
    """

    model: Player
    games: Games
    algo: str
    encoder: str

    @property
    def game(self) -> str:
        """Name of the game it was trained on."""
        return self.games.game

    def make_env(self, **changes: Any) -> VecEnv:
        """Environments for it to play in.

        Args:
            **changes: Fields of :class:`agents.runs.families.Games` other than those it was trained on.

        Raises:
            ValueError: A protocol that the game does not know, or an agent that does not fit the game.
        """
        games = replace(self.games, **changes)
        return FAMILIES[family_of(games.game)].make_play_env(self.model, games)


def load_run(run_dir: Path, device: str = "auto") -> TrainedRun:
    """Load the agent of a run folder: the final one, or that of the newest checkpoint where it was trained for longer.

    Args:
        run_dir: A folder that a training command wrote, one of a published agent, or an .onnx file of one; one of a
            run's checkpoints is the agent as it was then.
        device: Where the agent goes: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; a file plays on the CPU.

    Raises:
        ValueError: There is no run, no agent in it yet, its config is not one of ours, or the weights do not fit it.
    """
    if run_dir.suffix == ".onnx":
        return _load_file(run_dir)
    chosen = run_dir if (run_dir / AGENT).is_file() else None
    if chosen is not None:
        run_dir = _run_of(chosen)
    config = read_config(run_dir)
    missing = [key for key in _REQUIRED if not isinstance(config.get(key), str)]
    if missing:
        raise ValueError(f"{run_dir}/config.yml is not the config of a run on a game: no {', '.join(missing)}.")
    check_choice("algo", config["algo"], ("ppo", *ALGOS))
    games = games_of(config)
    model = load_agent(chosen, device=device) if chosen else _newest_agent(run_dir, config, games, device)
    if config["algo"] in ALGOS:
        _keep_exploring(model, config)
    return TrainedRun(model, games, config["algo"], config["encoder"])


def _newest_agent(run_dir: Path, config: dict[str, Any], games: Games, device: str) -> BaseAlgorithm:
    final, checkpoint = run_dir / "model.zip", newest_checkpoint(run_dir)
    exported = exported_timesteps(run_dir)  # None for a zip that is broken: loading says how
    if final.exists() and (checkpoint is None or exported is None or exported >= timesteps_of(checkpoint)):
        model = _build(config, games, device)
        load_zip_weights(model, final)
        return model
    if checkpoint is not None:
        return load_agent(checkpoint, device=device)
    if (run_dir / KEPT_AGENT).is_dir():
        return load_agent(run_dir / KEPT_AGENT, device=device)
    raise ValueError(
        f"{run_dir} has neither model.zip nor a sound checkpoint; if it is training, wait for its first one."
    )


def _run_of(agent: Path) -> Path:
    """The run that an agent's own folder is a checkpoint of."""
    checkpoints = agent.resolve().parent
    run = checkpoints.parent
    if checkpoints.name == CHECKPOINTS and (run / "config.yml").is_file():
        return run
    raise ValueError(_no_run(agent))


def _no_run(agent: Path) -> str:
    """Why an agent's own folder is not played: it says nothing of a game."""
    outer = agent.resolve().parent
    whole = f"name its run, {outer}, or export it" if (outer / "config.yml").is_file() else "export it"
    return (
        f"{agent} is an agent of save_agent, which does not say its game; {whole} in Python: "
        f"mnv4_rl.export.to_onnx(mnv4_rl.load_agent({str(agent)!r}), 'agent.onnx', "
        "notes={'game': ..., 'encoder': ...}), with their names."
    )


def _load_file(path: Path) -> TrainedRun:
    agent = OnnxAgent(path)
    missing = [key for key in ("game", "encoder") if not isinstance(agent.notes.get(key), str)]
    if missing:
        raise ValueError(f"{path} does not say its {' and '.join(missing)}; experiments/export_agent.py notes both.")
    games = Games(resolve_game(agent.notes["game"]), mode=agent.notes.get("mode", Games.mode))
    return TrainedRun(agent, games, agent.notes["algorithm"].lower(), agent.notes["encoder"])


def games_of(config: dict[str, Any]) -> Games:
    """What a recorded run was trained on.

    Raises:
        ValueError: For a kind of game or a game that does not exist; a mode is looked at when its games are made.
    """
    family = config.get("family", "atari")
    check_choice("family", family, tuple(FAMILIES))
    resolve = FAMILIES[family].resolve_game if "family" in config else resolve_game
    levels = config.get("levels")
    mode = levels.get("distribution_mode", Games.mode) if isinstance(levels, dict) else Games.mode
    return Games(resolve(config["game"]), mode=mode)


def _build(config: dict[str, Any], games: Games, device: str) -> BaseAlgorithm:
    env = FAMILIES[family_of(games.game)].make_plain_env(games)
    try:
        if config["algo"] == "ppo":
            h = PPOHyperparameters(batch_size=128)  # one environment's rollout; SB3 warns of larger ones
            return build_ppo(env, config["encoder"], total_timesteps=1, hyperparameters=h, device=device)
        no_replay = DQNHyperparameters(buffer_size=64)  # an agent that only plays needs none
        return build_dqn(env, config["encoder"], algo=config["algo"], hyperparameters=no_replay, device=device)
    finally:
        env.close()


def _keep_exploring(model: Any, config: dict[str, Any]) -> None:
    """Give DQN the share of random actions it was trained to end with; a model built anew has none."""
    settings = config.get("dqn")
    final = settings.get("exploration_final_eps") if isinstance(settings, dict) else None
    model.exploration_rate = DQNHyperparameters.exploration_final_eps if final is None else float(final)
