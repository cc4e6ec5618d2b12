"""One training session: log into the run folder, show progress, write checkpoints, save, evaluate."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from agents.play.evaluate import Evaluation
from agents.runs.callbacks import EncoderHealth, EnvTimer, GameScores, MemoryUse, ProgressBar, TimeSplit, recent_score
from agents.runs.checkpoints import restore_model, resume_point
from agents.runs.evaluation_log import PeriodicEvaluation, evaluate_and_log
from agents.runs.folder import RunFolder
from agents.runs.guards import FiniteGuard, check_features, memory_errors
from agents.runs.logs import open_logs, rewind_logs
from agents.runs.saving import CheckpointPlan, Checkpoints, RefillReplay, stop_on_signals
from agents.runs.state import Clock, State, restore_counters
from mnv4_rl.agent_files import REPLAY
from mnv4_rl.agent_tensors import NonFiniteError, check_finite
from mnv4_rl.native_env import NativeVecEnv
from mnv4_rl.performance import unchecked_distributions

_SEED_LIMIT = 2**30


@dataclass(frozen=True)
class Plan:
    """How long to train, and what to leave behind.

    Attributes:
        total_timesteps: Agent timesteps of the whole run.
        evaluation_games: Whole games after training, 0 for none.
        checkpoints: When to write checkpoints.
        eval_every: Agent timesteps between evaluations during training, each of as many games; 0 for none.
        quiet: Whether there is no progress bar.
    """

    total_timesteps: int
    evaluation_games: int = 0
    checkpoints: CheckpointPlan = field(default_factory=CheckpointPlan)
    eval_every: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Resume:
    """Where a session goes on.

    Attributes:
        checkpoint: A verified checkpoint, None where the run was stopped before its first: it starts over.
        state: The training state in it, None without one.
    """

    checkpoint: Path | None
    state: State | None

    @property
    def timesteps(self) -> int:
        """Agent timesteps trained before this session."""
        return self.state["counters"]["num_timesteps"] if self.state else 0

    def __str__(self) -> str:
        if self.checkpoint is None:
            return "no checkpoint was written before the run stopped: it starts over"
        return f"resumed from timestep {self.timesteps:,} ({self.checkpoint.name})"


@dataclass(frozen=True)
class Outcome:
    """How a session ended.

    Attributes:
        folder: The run's folder.
        model: The trained agent, for SB3's load.
        finished: Whether all timesteps were trained; False after Ctrl-C, SIGTERM, or a stop asked for at a checkpoint.
        timesteps: Agent timesteps trained, over all sessions.
        steps_per_second: Agent timesteps a wall second of this session, evaluation not included.
        score: Mean raw score of the last 100 training games, None if no game ended.
        evaluation: Whole games of the final model, None if interrupted or not asked for.
        other_evaluations: The same elsewhere, such as on levels never trained on, by name.
    """

    folder: Path
    model: Path
    finished: bool
    timesteps: int
    steps_per_second: float
    score: float | None
    evaluation: Evaluation | None
    other_evaluations: Mapping[str, Evaluation] = field(default_factory=dict)


def find_resume(run: RunFolder) -> Resume:
    """Where the run in a folder goes on; nothing is changed.

    Raises:
        DamagedError: If it has no checkpoint that is good, and is not one that never had any.
        OSError: If one cannot be read now.
    """
    return Resume(*(resume_point(run.path) or (None, None)))


def rewind(run: RunFolder, resume: Resume) -> None:
    """Bring a run's curves back to where it goes on, so that every timestep is there once.

    Raises:
        DamagedError: If a file is a link or no regular file; nothing is changed.
        OSError: If a file cannot be written.
        ValueError: If a log holds something else; nothing is changed.
    """
    state = resume.state
    rewind_logs(run, resume.timesteps if state else -1, state["monitor_bytes"] if state else 0)


def train(
    model: BaseAlgorithm,
    timer: EnvTimer,
    run: RunFolder,
    plan: Plan,
    evaluation_env: Callable[[], NativeVecEnv],
    resume: Resume | None = None,
    other_evaluation_envs: Mapping[str, Callable[[], NativeVecEnv]] | None = None,
) -> Outcome:
    """Train a model, save it, and play whole games with it.

    Args:
        model: A model whose environment is ``timer``; for a resumed run, after :func:`go_on`.
        timer: The environment, wrapped for the time split.
        run: Where everything goes.
        plan: How long to train, and what to leave behind.
        evaluation_env: Makes the environment for evaluations.
        resume: Where to go on, from :func:`find_resume`, with the curves brought back there; None for a new run.
        other_evaluation_envs: Makes more environments that the final model is evaluated in, by name.

    Returns:
        How it ended; after Ctrl-C or SIGTERM the model is saved all the same.

    Raises:
        NonFiniteError: If a loss or a weight is NaN or infinite; checkpoints and model before it stay as they are.
        MemoryError: If there is not enough memory; they stay too.
        LostFolderError: If the folder is no longer this process's; nothing is written to it.
        UnsavedError: If the agent cannot be exported.
    """
    done = 0 if resume is None else resume.timesteps
    model.set_logger(open_logs(run))
    started = time.perf_counter()
    try:
        with memory_errors():
            finished = done >= plan.total_timesteps or _learn(model, timer, run, plan, evaluation_env, resume)
            seconds = time.perf_counter() - started
            if model.num_timesteps:
                run.check_held()
                run.save_model(model)
            evaluation: Evaluation | None = None
            others: dict[str, Evaluation] = {}
            if finished and plan.evaluation_games:
                envs = {"": evaluation_env, **(other_evaluation_envs or {})}
                evaluation, others = _evaluate(model, run, plan.evaluation_games, envs)
    finally:
        model.logger.close()
    finished = finished and (evaluation is not None or not plan.evaluation_games)
    speed = (model.num_timesteps - done) / seconds
    return Outcome(run.path, run.model, finished, model.num_timesteps, speed, recent_score(model), evaluation, others)


def _evaluate(
    model: BaseAlgorithm, run: RunFolder, n_games: int, envs: Mapping[str, Callable[[], Any]]
) -> tuple[Evaluation | None, dict[str, Evaluation]]:
    """Whole games of the final model, in the run's environments (named "") and in others; none after Ctrl-C."""
    try:
        others = {
            name: evaluate_and_log(model, make, n_games, "_".join(["eval", *name.split()]))
            for name, make in envs.items()
        }
    except KeyboardInterrupt:  # a resumed run plays them
        return None, {}
    evaluation = others.pop("")
    run.check_held()
    all_of_them = evaluation.to_dict() | {name: other.to_dict() for name, other in others.items()}
    run.write_evaluation(all_of_them, model.num_timesteps)
    return evaluation, others


def go_on(model: BaseAlgorithm, resume: Resume, total_timesteps: int) -> None:
    """Put the checkpoint of a resumed run into the model that the run's settings build.

    Args:
        model: The model.
        resume: Where it goes on.
        total_timesteps: Agent timesteps of the whole run, which may have become more.

    Raises:
        ValueError: If the checkpoint is not of such a model.
    """
    if resume.checkpoint is None or resume.state is None:
        return
    restore_model(model, resume.checkpoint)
    restore_counters(model, resume.state)
    if hasattr(model, "exploration_schedule"):
        keep_exploring(model, total_timesteps)
    if model.env is not None and model.seed is not None:
        # The emulators start new games: others than the run began with.
        model.env.seed((model.seed + resume.timesteps) % _SEED_LIMIT)


def keep_exploring(model: Any, total_timesteps: int) -> None:
    """Let the rate of random actions fall on along the line that it came down, however long the run has become.

    SB3 stretches its schedule over the run: a longer one would jump back to more random actions.
    """
    done, rate, final = model.num_timesteps, model.exploration_rate, model.exploration_final_eps
    end = done * (1 - final) / (1 - rate) if final < rate < 1 else done
    model.exploration_schedule = LinearSchedule(model.exploration_initial_eps, final, end / total_timesteps)


def _learn(
    model: BaseAlgorithm,
    timer: EnvTimer,
    run: RunFolder,
    plan: Plan,
    evaluation_env: Callable[[], NativeVecEnv],
    resume: Resume | None,
) -> bool:
    """Train to the end, or to the first Ctrl-C or SIGTERM."""
    stop, state = Event(), resume.state if resume else None
    bar = None if plan.quiet else ProgressBar()
    clock = Clock(state["wall_seconds"], state["cpu_seconds"]) if state else Clock()
    checkpoints = Checkpoints(run, plan.checkpoints, clock, stop, state)
    callbacks: list[BaseCallback] = [FiniteGuard(), checkpoints, GameScores(), MemoryUse(), EncoderHealth()]
    if bar is not None:
        callbacks.append(bar)
    if plan.eval_every:
        callbacks.append(PeriodicEvaluation(evaluation_env, plan.evaluation_games, plan.eval_every))
    callbacks.append(TimeSplit(timer, clock))
    refill = RefillReplay(model.learning_starts) if needs_refill(model, resume) else None  # type: ignore[attr-defined]
    if refill is not None:
        callbacks.append(refill)
    try:
        with stop_on_signals(stop), unchecked_distributions():
            _learn_finite(model, plan.total_timesteps - model.num_timesteps, CallbackList(callbacks))
            if checkpoints.gave_up_rollout:
                checkpoints.give_back()
            else:
                checkpoints.remember()
            checkpoints.write()
    except KeyboardInterrupt:
        return False
    finally:
        if bar is not None:
            bar.close()
        if refill is not None:
            refill.give_back()
    return not checkpoints.gave_up_rollout


def _learn_finite(model: BaseAlgorithm, timesteps: int, callback: BaseCallback) -> None:
    try:
        model.learn(timesteps, callback=callback, reset_num_timesteps=False)
    except NonFiniteError:
        raise
    except (ValueError, RuntimeError) as error:
        # PyTorch's distributions may refuse NaN before the guard can: say where it came from.
        try:
            check_finite(model)
            check_features(model)
        except NonFiniteError as cause:
            raise cause from error
        raise


def needs_refill(model: BaseAlgorithm, resume: Resume | None) -> bool:
    """Whether a resumed run has to fill an empty replay buffer before it updates again."""
    if not isinstance(model, OffPolicyAlgorithm) or resume is None or resume.checkpoint is None:
        return False
    return not (resume.checkpoint / REPLAY).is_file()


def warn_of_refill(model: BaseAlgorithm, resume: Resume, total_timesteps: int) -> None:
    """Say so where what is left of a resumed run only fills its replay buffer anew, and no update comes of it."""
    left = total_timesteps - model.num_timesteps
    if left > 0 and needs_refill(model, resume) and left <= (starts := model.learning_starts):  # type: ignore[attr-defined]
        warnings.warn(
            f"The agent will not change any more: the replay was not saved, a new one takes {starts:,} timesteps of "
            f"play before learning goes on, and {left:,} are left. Resume with --total-timesteps above "
            f"{model.num_timesteps + starts:,}; in the next run --checkpoint-replay keeps the replay.",
            RuntimeWarning,
            stacklevel=3,
        )
