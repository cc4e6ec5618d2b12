"""What the Atari commands share: flags -> environment, model, run folder -> training -> where everything is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.encoders import policy_kwargs
from agents.runs.callbacks import EnvTimer
from agents.runs.checkpoints import newest_checkpoint
from agents.runs.folder import RunFolder, UnsavedError
from agents.runs.guards import NonFiniteError
from agents.runs.saving import CheckpointPlan
from agents.runs.session import Outcome, Plan, Resume, go_on, needs_refill, rewind, train
from experiments.cli.command import DIVERGED_CODE, INTERRUPTED_CODE, USER_ERROR_CODE, user_errors
from experiments.cli.results import shown
from experiments.study import candidates  # noqa: F401  makes their names known to --encoder
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari.games import resolve_game
from mnv4_rl.checks import Interval, check_ranges
from mnv4_rl.performance import THREADS, Tuning, compile_encoders, set_precision, tune

MAX_EVALUATION_ENVS = 10
N_ENVS = Interval(1, 4096)  # far past any use; ALE makes as many emulators as it is told, until memory ends
TIMESTEPS = Interval(1, 10**12)
# ALE's seeds end at 2**31 - 1, and environments and evaluations use the numbers above a run's seed.
SEED = Interval(0, 2 * 10**9)
_RANGES = {
    "total_timesteps": TIMESTEPS,
    "n_envs": N_ENVS,
    "seed": SEED,
    "threads": THREADS,
    "keep_checkpoints": Interval(1),
    "evaluation_games": Interval(0),
    "eval_every": Interval(0),
    "checkpoint_every": Interval(0),
}


@dataclass(frozen=True, kw_only=True)
class AtariConfig:
    """Flags of every Atari training command."""

    game: str = "pong"
    """Any of ALE's games, by any common spelling."""
    total_timesteps: int = 1_000_000
    """Agent timesteps (decisions) to train; each is 4 emulator frames."""
    encoder: str = "rl_s"
    """nature, impala, impoola, or any name of mnv4_rl.list_models()."""
    seed: int = 0
    """Seed of weights, actions and games."""
    n_envs: int = 8
    """Games played side by side."""
    run_dir: Path | None = None
    """Folder for everything the run writes; a new one under runs/ by default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Numbers the encoder computes in; bf16 is faster on GPUs and many CPUs, and changes what is learned."""
    compile: bool = False
    """Compile the encoder (CUDA graphs on a GPU); stays uncompiled, with a warning, where that fails."""
    threads: int | None = None
    """CPU threads of PyTorch and of the emulators; all cores by default."""
    evaluation_games: int = 30
    """Whole games played by the final model; 0 for none."""
    eval_every: int = 0
    """Agent timesteps between evaluations during training, each of --evaluation-games games; 0 for none."""
    checkpoint_every: int = 50_000
    """Agent timesteps between two checkpoints; 0 writes one only when the run ends or is stopped."""
    keep_checkpoints: int = 3
    """Checkpoints kept, the newest ones."""
    resume: Path | None = None
    """Go on with the run in this folder; needs no other flag."""

    def check(self) -> None:
        """Refuse flags that cannot work, before anything is written.

        Raises:
            ValueError: Naming the flag, what came and what is allowed.
        """
        resolve_game(self.game)
        policy_kwargs(self.encoder)
        check_ranges(self, _RANGES)
        if self.eval_every and not self.evaluation_games:
            raise ValueError(f"eval_every={self.eval_every} needs games to play; give evaluation_games too, not 0.")
        check_device(self.device)


Build = Callable[[VecEnv], BaseAlgorithm]


@dataclass(frozen=True)
class Session:
    """What one call of a command trains.

    Attributes:
        model: The agent.
        timer: Its environments.
        resume: Where a resumed run goes on, None for a new one.
        tuning: Settings of the process.
    """

    model: BaseAlgorithm
    timer: EnvTimer
    resume: Resume | None
    tuning: Tuning


def run_atari(config: AtariConfig, algo: str, build: Build, checkpoint_replay: bool = False) -> None:
    """Train one agent as the flags say, and print where everything is.

    Args:
        config: The flags.
        algo: Name of the algorithm, for the folder's name.
        build: Makes the model for an environment.
        checkpoint_replay: Put the replay buffer into checkpoints.
    """
    with user_errors():
        config.check()
        folder = config.resume or config.run_dir or default_run_dir(config, algo)
        run = RunFolder(folder, resume=config.resume is not None)
    with run:
        with user_errors():
            session = prepare(config, algo, build, run)
        print(heading(config, algo, session, run))
        checkpoints = CheckpointPlan(config.checkpoint_every, config.keep_checkpoints, checkpoint_replay)
        outcome = train_session(config, session, run, checkpoints)
        session.timer.close()
    print(summary(outcome, run))
    if not outcome.finished:
        sys.exit(INTERRUPTED_CODE)


def prepare(config: AtariConfig, algo: str, build: Build, run: RunFolder) -> Session:
    """Make environments and model, bring a resumed run back to its checkpoint, and describe the run in its folder."""
    tuning = tune(config.threads)
    resume = rewind(run) if config.resume else None
    if resume is not None:
        check_unfinished(config, resume, run)
    env = make_atari_env(
        config.game, config.n_envs, config.seed, num_threads=config.threads or 0, monitor_path=run.monitor
    )
    timer = EnvTimer(env)
    model = build(timer)
    set_precision(model.policy, config.precision)
    if config.compile:
        compile_encoders(model.policy)
    if resume is not None:
        go_on(model, resume)
    settings = plain(asdict(config))
    del settings["resume"]
    run.describe({"algo": algo, **settings, "tuning": asdict(tuning)})
    return Session(model, timer, resume, tuning)


def check_unfinished(config: AtariConfig, resume: Resume, run: RunFolder) -> None:
    """Refuse to resume a run that has nothing left to do.

    Raises:
        ValueError: With what to do.
    """
    evaluated = run.evaluation.exists() or not config.evaluation_games
    if resume.timesteps >= config.total_timesteps and evaluated:
        raise ValueError(
            f"{run.path} has finished its {config.total_timesteps:,} timesteps; give more with --total-timesteps."
        )


def train_session(config: AtariConfig, session: Session, run: RunFolder, checkpoints: CheckpointPlan) -> Outcome:
    """Train; NaN, infinity or a model that cannot be saved end the run with one line: what, and what is still good."""
    n_envs = min(config.evaluation_games, MAX_EVALUATION_ENVS)
    try:
        return train(
            session.model,
            session.timer,
            run,
            Plan(config.total_timesteps, config.evaluation_games, checkpoints, config.eval_every),
            lambda: make_atari_env(config.game, n_envs, config.seed + 10_000),
            session.resume,
        )
    except NonFiniteError as error:
        good = newest_checkpoint(run.path)
        kept = f"The last good checkpoint is {shown(good)}" if good else "There is no checkpoint before it"
        print(f"error: training stopped: {error} {kept}; try a lower learning rate.", file=sys.stderr)
        sys.exit(DIVERGED_CODE)
    except UnsavedError as error:
        good = newest_checkpoint(run.path)
        kept = f"the newest checkpoint is {shown(good)}" if good else "there is no checkpoint"
        print(f"error: {error}; {kept}. Make room, then go on with --resume {shown(run.path)}", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


def check_device(device: str) -> None:
    """Refuse a device this machine does not have.

    Raises:
        ValueError: For an unknown name, or CUDA where there is none.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}.")
    if kind == "cuda" and int(index or 0) >= th.cuda.device_count():
        raise ValueError(f"PyTorch sees {th.cuda.device_count()} CUDA devices here, got {device!r}; use auto or cpu.")


def default_run_dir(config: AtariConfig, algo: str) -> Path:
    """runs/<game>__<algo>__<encoder>__s<seed>__<date>_<time>."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return Path("runs") / f"{resolve_game(config.game)}__{algo}__{config.encoder}__s{config.seed}__{stamp}"


def plain(value: Any) -> Any:
    """Nested dataclass values as YAML can hold them: paths as strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def heading(config: AtariConfig, algo: str, session: Session, run: RunFolder) -> str:
    """What is about to happen, in three lines; one more for a resumed run."""
    model = session.model
    parameters = sum(p.numel() for p in model.policy.parameters())
    resumed = "" if session.resume is None else f"resume       {session.resume}{refill_note(session)}\n"
    return (
        f"{resumed}{algo} on {resolve_game(config.game)} with {config.encoder} ({parameters:,} parameters), "
        f"{config.total_timesteps:,} timesteps, {config.n_envs} games, {model.device}, {session.tuning}\n"
        f"run folder   {shown(run.path)}\n"
        f"curves       tensorboard --logdir {shown(run.path.parent)}"
    )


def refill_note(session: Session) -> str:
    """What a resumed run does first if its replay buffer is gone."""
    if not needs_refill(session.model, session.resume):
        return ""
    timesteps: int = session.model.learning_starts  # type: ignore[attr-defined]
    return f"; the replay was not saved: {timesteps:,} timesteps of play fill a new one before learning goes on"


def summary(outcome: Outcome, run: RunFolder) -> str:
    """How it ended, and where the results are."""
    ended = "finished" if outcome.finished else "interrupted"
    score = "no game ended yet" if outcome.score is None else f"{outcome.score:.1f} (last 100 training games)"
    lines = [
        f"{ended} after {outcome.timesteps:,} timesteps, {outcome.steps_per_second:,.0f} steps/s",
        f"raw score    {score}",
    ]
    if outcome.evaluation:
        lines.append(f"evaluation   {outcome.evaluation}")
    lines += [
        f"model        {shown(run.model)}",
        f"run folder   {shown(run.path)}",
        f"curves       tensorboard --logdir {shown(run.path.parent)}",
    ]
    return "\n".join(lines)
