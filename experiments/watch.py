"""Watch a trained agent play whole games, and say what its scores mean.

python experiments/watch.py runs/pong__ppo__rl_s__s0 --episodes 5 --video pong.mp4 --gif pong.gif --saliency
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from experiments.cli.starting import leave_on_interrupt

    leave_on_interrupt()

import numpy as np
import tyro
from stable_baselines3.common.vec_env import VecEnv

from agents.play.evaluate import Evaluation, Player, evaluate
from agents.play.saliency import SaliencyOverlay
from agents.play.video import FRAMES_PER_SECOND, Mp4Writer, Show, Sink, Window, gif
from agents.runs.config import SEED
from agents.runs.families import Games
from agents.runs.loading import TrainedRun, load_run
from experiments.cli.command import INTERRUPTED_CODE, interrupts, parse, user_errors
from experiments.cli.results import SCALES, check_writable, normalised_text
from mnv4_rl.atari.options import PROTOCOLS, options_of
from mnv4_rl.checks import check_positive, check_range
from mnv4_rl.export import OnnxAgent
from mnv4_rl.games import family_of
from mnv4_rl.safe_files import write_file

GIF_SECONDS = 20
GIF_BYTES = 2_000_000  # what a README can carry


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Play whole games with the trained agent of a run folder: raw scores, human-normalised score, video."""

    run: tyro.conf.Positional[Path]
    """Folder that a training command wrote, one of its checkpoints, or an .onnx file of experiments/export_agent.py."""
    episodes: int = 5
    """Whole games."""
    video: Path | None = None
    """Write all games into this .mp4."""
    gif: Path | None = None
    """Write the first 20 seconds into this .gif, less where it would pass 2 MB."""
    protocol: str = "sb3"
    """Of an Atari game: sb3, or machado: sticky actions 0.25, all 18 buttons, the agent has to press FIRE itself."""
    saliency: bool = False
    """Redden what the encoder looks at; slow."""
    deterministic: bool = False
    """Always the likeliest action, instead of sampled ones."""
    seed: int = 0
    """Seed of games and actions."""
    window: bool = True
    """Show the games in real time where there is a display."""


@interrupts()
def main(args: list[str] | None = None) -> None:
    """Parse flags, play, report."""
    config = parse(WatchConfig, args)
    with user_errors():
        check_config(config)
        run = load_run(config.run)
        recording = Recording(config, run)
        env = recording.environment(run)
    print(f"{run.algo} with {run.encoder} plays {run.game}, {rules(config, run)}")
    scores, number = [], count(1)

    def on_game(score: float) -> None:
        scores.append(score)
        print(f"game {next(number):<4d}    {score:g}", flush=True)

    finished = play(config, run, env, on_game)
    print("\n".join([*report(scores, run.games), *recording.save()]))
    if not finished:
        sys.exit(INTERRUPTED_CODE)


def check_config(config: WatchConfig) -> None:
    """Refuse flags that cannot work, before a game is played.

    Raises:
        ValueError: Naming the flag, what came and what is allowed.
        OSError: For a video in a folder that does not exist, or where nothing can be written.
    """
    check_positive(episodes=config.episodes)
    check_range("seed", config.seed, SEED)
    options_of(config.protocol, {})
    for path, suffix in ((config.video, ".mp4"), (config.gif, ".gif")):
        if path is None:
            continue
        if path.suffix.lower() != suffix:
            raise ValueError(f"{suffix[1:]} files end in {suffix}, got {path}.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {path.parent} for {path.name}; make it first.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file.")
        check_writable(path.parent)


class Recording:
    """Where the screens of the games go: mp4, GIF, window, or nowhere.

    Args:
        config: The flags.
        run: What is watched.

    Raises:
        ModuleNotFoundError: For an mp4 without its packages; the message has the install line.
        ValueError: For saliency that nobody could see, or of a file.
    """

    def __init__(self, config: WatchConfig, run: TrainedRun) -> None:
        self._config = config
        self._frame_skip = PROTOCOLS[config.protocol].frame_skip
        self._screens: list[np.ndarray] = []  # the GIF's
        self._mp4 = Mp4Writer(config.video, self._frame_skip) if config.video else None
        self._window = open_window(f"{run.game}: {config.run.name}", self._frame_skip) if config.window else None
        if config.saliency and isinstance(run.model, OnnxAgent):
            raise ValueError("--saliency looks into the agent, and an .onnx file has no inside; watch the run folder.")
        if config.saliency and not (config.video or config.gif or self._window):
            raise ValueError("--saliency draws onto the screen, and there is no window; add --video or --gif.")

    def environment(self, run: TrainedRun) -> VecEnv:
        """The environment to play in, its screens recorded where somebody wants them."""
        sinks: list[Sink] = [sink.add for sink in (self._mp4, self._window) if sink is not None]
        if self._config.gif:
            sinks.append(self._keep)
        protocol, seed = self._config.protocol, self._config.seed
        env = run.make_env(protocol=protocol, seed=seed, screens=bool(sinks))
        if not sinks:
            return env
        return Show(env, sinks, self._overlay(run.model) if self._config.saliency else None)

    @staticmethod
    def _overlay(model: Player) -> SaliencyOverlay:
        assert not isinstance(model, OnnxAgent)  # refused at the start
        return SaliencyOverlay(model)

    def _keep(self, screen: np.ndarray) -> None:
        if len(self._screens) < GIF_SECONDS * FRAMES_PER_SECOND // self._frame_skip:
            self._screens.append(screen)

    def save(self) -> list[str]:
        """Finish the files and close the window; a line for each file."""
        if self._window is not None:
            self._window.close()
        if self._mp4 is not None:
            self._mp4.close()
        if self._config.gif and self._screens:
            write_file(self._config.gif, gif(self._screens, self._frame_skip, max_bytes=GIF_BYTES))
        return [f"written      {path}" for path in (self._config.video, self._config.gif) if path and path.exists()]


def open_window(title: str, frame_skip: int) -> Window | None:
    """A window, or a line on stderr why there is none."""
    try:
        return Window(title, frame_skip)
    except RuntimeError as error:
        print(f"no window: {error}", file=sys.stderr)
        return None


def play(config: WatchConfig, run: TrainedRun, env: VecEnv, on_game: Callable[[float], None]) -> bool:
    """Play all games, or until Ctrl-C; whether all were played."""
    try:
        evaluate(run.model, env, config.episodes, config.deterministic, seed=config.seed, on_game=on_game)
        return True
    except KeyboardInterrupt:
        return False
    finally:
        env.close()


def rules(config: WatchConfig, run: TrainedRun) -> str:
    """What it plays by: a protocol of Atari's, or all of Procgen's levels."""
    atari = family_of(run.game) == "atari"
    return f"protocol {config.protocol}" if atari else f"all {run.games.mode} levels"


def report(scores: list[float], games: Games) -> list[str]:
    """Mean, interval and normalised score of the games that ended, one line each."""
    if not scores:
        return ["no game ended"]
    evaluation = Evaluation.of(scores)
    scaled = normalised_text(games.game, evaluation.mean, games.mode)
    return [f"mean         {evaluation}", f"{SCALES[family_of(games.game)]:<12} {scaled}"]


if __name__ == "__main__":
    main()
