"""Publish the agent of a finished run: weights alone, a card and a GIF of play, small enough to commit.

python experiments/publish_agent.py --run runs/pong__ppo__rl_s__s0

agent/           weights as safetensors, and how to rebuild the agent as JSON; see mnv4_rl/agent_files.py
config.yml       settings of its training
evaluation.json  raw scores of whole games
play.gif         the first game's first seconds
play.mp4         the same, for the hub
README.md        the card: game, score, timesteps, command, commit; on top what the model hub reads
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from experiments.cli.starting import leave_on_interrupt

    leave_on_interrupt()

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.play.evaluate import Evaluation, evaluate
from agents.play.video import SMALL, Mp4Writer, check_mp4, gif
from agents.runs.checkpoints import newest_checkpoint, timesteps_of
from agents.runs.config import N_ENVS, SEED
from agents.runs.evaluation_log import record_clip
from agents.runs.families import FAMILIES
from agents.runs.folder import KEPT_AGENT, read_config
from agents.runs.loading import TrainedRun, games_of
from experiments.cli.command import interrupts, parse, user_errors
from experiments.cli.results import AGENTS, ROOT, SCALES, check_writable, markdown_table, normalised_text, shown
from experiments.racing.curves import label_of, provenance
from mnv4_rl.agent_files import check_agent_place, load_agent, save_agent
from mnv4_rl.atari.options import PROTOCOLS
from mnv4_rl.checks import check_positive, check_ranges
from mnv4_rl.games import family_of
from mnv4_rl.hub import front_matter
from mnv4_rl.performance import THREADS, tune
from mnv4_rl.safe_files import make_folder, write_file

PROTOCOL = "sb3"
FRAME_SKIP = PROTOCOLS[PROTOCOL].frame_skip
CLIP_TIMESTEPS = 300  # 20 seconds of play
CLIP_BYTES = 1_000_000
_RULES = {  # family -> what is played
    "atari": "{game} (ALE), no sticky actions, the game's own actions",
    "procgen": "{game} (Procgen), all {mode} levels there are",
}
_RANGES = {"n_envs": N_ENVS, "seed": SEED, "threads": THREADS}


@dataclass(frozen=True, kw_only=True)
class PublishAgentConfig:
    """Play whole games with the agent of a finished run, and keep it with a card and a GIF."""

    run: Path
    """Folder of a run that has trained all its timesteps."""
    stopped: bool = False
    """Publish a run that was stopped before its last timestep, too; the card says how far it came."""
    games: int = 30
    """Whole games played for the card."""
    n_envs: int = 6
    """Games played side by side."""
    seed: int = 1_000
    """Seed of games and actions."""
    threads: int = 1
    """CPU threads."""
    agents_dir: Path = AGENTS
    """Folder for the agent's own, which is called <game>__<algo>__<encoder>__s<seed>."""


@dataclass(frozen=True)
class FinishedRun:
    """An agent whose training is over.

    Attributes:
        folder: Its run folder.
        settings: The run's config.yml.
        timesteps: Agent timesteps it was trained.
        run: The agent and its games.
    """

    folder: Path
    settings: dict[str, Any]
    timesteps: int
    run: TrainedRun

    @property
    def game(self) -> str:
        """Name of the game, as :func:`mnv4_rl.games.resolve_game` gives it."""
        return self.run.game

    @property
    def model(self) -> BaseAlgorithm:
        """The agent."""
        assert isinstance(self.run.model, BaseAlgorithm)  # it comes from a checkpoint
        return self.run.model


def read_finished(folder: Path, stopped: bool = False) -> FinishedRun:
    """The agent of a run's last timestep.

    Args:
        folder: The run's.
        stopped: Take one that has not reached its last timestep, too.

    Raises:
        ValueError: If the folder holds no run of a game, no checkpoint, or a run short of its last timestep.
        OSError: If it does not say where it comes from.
    """
    label_of(folder)  # refuses what is no run of a game
    settings, checkpoint = read_config(folder), newest_checkpoint(folder)
    games = games_of(settings)
    total = settings.get("total_timesteps")
    if type(total) is not int:
        raise ValueError(f"{folder}/config.yml has total_timesteps {total!r}, which is no number of timesteps.")
    if checkpoint is None:
        raise ValueError(f"{folder} has no sound checkpoint; name the folder of a run that has trained.")
    done = timesteps_of(checkpoint)
    if done < total and not stopped:
        raise ValueError(
            f"{folder} stands at timestep {done:,} of {total:,}; train it to the end with --resume first, or say "
            "--stopped to publish its newest checkpoint."
        )
    provenance(folder)  # refuses what does not say where it comes from, before hours of games
    agent = load_agent(checkpoint, device="cpu")
    return FinishedRun(folder, settings, done, TrainedRun(agent, games, settings["algo"], settings["encoder"]))


def check_place(folder: Path) -> None:
    """Refuse, before hours of games, a folder that their agent could not go to.

    Raises:
        OSError: If something is in the way, or nothing may be written there.
        ModuleNotFoundError: If the clip could not be written.
    """
    make_folder(folder)
    check_agent_place(folder / KEPT_AGENT)
    check_mp4()
    check_writable(folder)


def play(run: FinishedRun, config: PublishAgentConfig) -> Evaluation:
    """Whole games of the agent; a line for each as it ends."""
    env, number = run.run.make_env(n_envs=config.n_envs, seed=config.seed), count(1)
    try:
        return evaluate(
            run.model,
            env,
            config.games,
            seed=config.seed,
            on_game=lambda score: print(f"game {next(number):<4d}    {score:g}", flush=True),
        )
    finally:
        env.close()


def clip_of(run: FinishedRun, seed: int) -> list[np.ndarray]:
    """Screens of the first seconds of a game, (height, width, 3) uint8."""
    env = FAMILIES[family_of(run.game)].make_plain_env(replace(run.run.games, seed=seed))
    try:
        return list(record_clip(run.model, env, CLIP_TIMESTEPS, seed))
    finally:
        env.close()


def mp4(screens: Sequence[np.ndarray]) -> bytes:
    """Screens as an mp4 in real time."""
    with tempfile.TemporaryDirectory() as place:
        writer = Mp4Writer(Path(place) / "play.mp4", FRAME_SKIP)
        for screen in screens:
            writer.add(screen)
        writer.close()
        return (Path(place) / "play.mp4").read_bytes()


def write_agent(run: FinishedRun, evaluation: Evaluation, clip: Sequence[np.ndarray], folder: Path) -> None:
    """Write the agent's folder, its card last; nothing that was there is replaced before all is ready."""
    settings = {key: value for key, value in run.settings.items() if key != "run_dir"}
    files = {
        "config.yml": yaml.safe_dump(settings, sort_keys=False).encode(),
        "evaluation.json": (json.dumps(evaluation.to_dict(), indent=1, allow_nan=False) + "\n").encode(),
        "play.gif": gif(clip, FRAME_SKIP, height=SMALL, max_bytes=CLIP_BYTES),
        "play.mp4": mp4(clip),
        "README.md": card(run, evaluation, folder).encode(),
    }
    make_folder(folder)
    save_agent(run.model, folder / KEPT_AGENT, optimizer=False)
    for name, content in files.items():
        write_file(folder / name, content)


def card(run: FinishedRun, evaluation: Evaluation, folder: Path) -> str:
    """What a reader needs to know about the agent, as markdown."""
    settings = run.settings
    command, *versions = provenance(run.folder)
    of = f" of {settings['total_timesteps']:,}, where it was stopped" * (run.timesteps < settings["total_timesteps"])
    n_parameters = sum(parameter.numel() for parameter in run.model.policy.parameters())
    place = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    rows = {
        "game": _RULES[family_of(run.game)].format(game=settings["game"], mode=run.run.games.mode),
        "score": f"{evaluation}: mean with 95 % interval, raw score of whole games, sampled actions",
        SCALES[family_of(run.game)]: normalised_text(run.game, evaluation.mean, run.run.games.mode),
        "training": f"{trained_text(run)}{of}, seed {settings['seed']}",
        "algorithm": type(run.model).__name__,
        "encoder": f"`{settings['encoder']}`, {n_parameters:,} parameters with policy and value head",
        "command": f"`{command.removeprefix('command: ')}`",
        "versions": ", ".join(versions),
    }
    table = markdown_table(("", ""), rows.items())
    environment = environment_id(run.game)
    return (
        f"{front_matter(environment, type(run.model).__name__, evaluation.scores)}"
        f"# {settings['encoder']} plays {settings['game']}\n\n![Play](play.gif)\n\n[As an mp4](play.mp4)\n\n{table}\n\n"
        f"Watch it: `python experiments/watch.py {place}`. In code: "
        f'`from mnv4_rl import load_agent; agent = load_agent("{place / KEPT_AGENT}")`. '
        "One run of one seed: another seed may score otherwise.\n"
    )


def trained_text(run: FinishedRun) -> str:
    """For how long it was trained: on Atari in emulator frames too."""
    frames = f" ({run.timesteps * FRAME_SKIP:,} frames)" * (family_of(run.game) == "atari")
    return f"{run.timesteps:,} agent timesteps{frames}"


def environment_id(game: str) -> str:
    """What leaderboards call an Atari game without sticky actions played four frames at a time, or one of Procgen's."""
    if family_of(game) == "procgen":
        return f"procgen-{game.removeprefix('procgen/')}-v0"
    return "".join(part.capitalize() for part in game.split("_")) + "NoFrameskip-v4"


@interrupts()
def main(args: list[str] | None = None) -> None:
    """Read the run, play, write, and say where everything is."""
    config = parse(PublishAgentConfig, args)
    with user_errors():
        check_ranges(config, _RANGES)
        check_positive(games=config.games)
        tune(config.threads)
        run = read_finished(config.run, config.stopped)
        folder = config.agents_dir.expanduser().absolute() / label_of(config.run)
        check_place(folder)
    evaluation = play(run, config)
    write_agent(run, evaluation, clip_of(run, config.seed), folder)
    print(f"mean         {evaluation}\nagent        {shown(folder)}")


if __name__ == "__main__":
    main()
