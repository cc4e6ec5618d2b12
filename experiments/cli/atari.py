"""What the training commands share: flags -> a run -> its errors and results in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NoReturn, TypeVar

from agents.runs.checkpoints import newest_checkpoint
from agents.runs.config import RunConfig
from agents.runs.folder import RunFolder, UnsavedError
from agents.runs.lock import LostFolderError
from agents.runs.output import courteous_output
from agents.runs.resuming import check_changes, recorded_config
from agents.runs.run import OpenRun, open_run
from agents.runs.session import Outcome, needs_refill
from experiments.cli.command import (
    DIVERGED_CODE,
    INTERRUPTED_CODE,
    USER_ERROR_CODE,
    interrupts,
    parse,
    user_errors,
)
from experiments.cli.results import places, script, shown, typed
from mnv4_rl.agent_tensors import NonFiniteError

Config = TypeVar("Config", bound=RunConfig)

_WHOLE = "interrupted; what was written before is whole, and --resume goes on from it"


def parse_run(config_class: type[Config], args: list[str] | None = None) -> Config:
    """Flags -> config; with ``--resume`` the recorded settings take the place of the defaults.

    Args:
        config_class: A command's flags.
        args: Flags, ``sys.argv`` by default.
    """
    config = parse(config_class, args)
    if config.resume is None:
        return config
    with user_errors():
        recorded = recorded_config(config_class, config.resume)
        config = parse(config_class, args, recorded)
        check_changes(recorded, config)
    return config


@courteous_output()
def run_command(config_class: type[RunConfig], args: list[str] | None = None) -> None:
    """Train one agent as the flags say, and print where everything is.

    Args:
        config_class: A command's flags.
        args: Flags, ``sys.argv`` by default.
    """
    with interrupts(_WHOLE):
        config = parse_run(config_class, args)
        with ExitStack() as opened:
            with user_errors():
                run = opened.enter_context(closing(open_run(config)))
            print(heading(run))
            with training_errors(run.folder):
                outcome = run.train()
    print(summary(outcome))
    if not outcome.finished:
        print(f"go on with   {script(config.command)} --resume {typed(outcome.folder)}")
        sys.exit(INTERRUPTED_CODE)


@contextmanager
def training_errors(run: RunFolder) -> Iterator[None]:
    """What ends a training is one line: what, what is still good, and how to go on."""
    try:
        yield
    except NonFiniteError as error:
        stopped(f"training stopped: {error} {kept(run)}; try a lower learning rate.", DIVERGED_CODE)
    except UnsavedError as error:
        stopped(f"{error}; {kept(run)}. Make room, then go on with --resume {typed(run.path)}", USER_ERROR_CODE)
    except MemoryError as error:
        advice = "Free some, or begin a run with fewer environments or smaller batches."
        stopped(f"memory is out: {error or 'no more is given'}; {kept(run)}. {advice}", USER_ERROR_CODE)
    except LostFolderError as error:
        stopped(str(error), USER_ERROR_CODE)


def stopped(line: str, code: int) -> NoReturn:
    """End the command with one line."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)


def kept(run: RunFolder) -> str:
    """What is still good."""
    good = newest_checkpoint(run.path)
    return f"the newest good checkpoint is {shown(good)}" if good else "there is no checkpoint"


def heading(run: OpenRun) -> str:
    """What is about to happen, in three lines; one more for a resumed run."""
    config, model = run.config, run.model
    parameters = sum(p.numel() for p in model.policy.parameters())
    compiled = ", compiled" if any(part._compiled_call_impl for part in run.model.policy.modules()) else ""
    resumed = "" if run.resume is None else f"resume       {run.resume}{refill_note(run)}\n"
    return (
        f"{resumed}{config.algo} on {config.games.resolve_game(config.game)} with {config.encoder} "
        f"({parameters:,} parameters), {config.total_timesteps:,} timesteps, {config.n_envs} games, {model.device}, "
        f"{run.tuning}{compiled}\n{places(run.folder.path)}"
    )


def refill_note(run: OpenRun) -> str:
    """What a resumed run does first if its replay buffer is gone."""
    left = run.config.total_timesteps - run.model.num_timesteps
    if left <= 0 or not needs_refill(run.model, run.resume):
        return ""
    timesteps: int = run.model.learning_starts  # type: ignore[attr-defined]
    if left <= timesteps:
        return f"; the replay was not saved: the {left:,} timesteps that are left only fill a new one"
    return f"; the replay was not saved: {timesteps:,} timesteps of play fill a new one before learning goes on"


def summary(outcome: Outcome) -> str:
    """How it ended, and where the results are."""
    ended = "finished" if outcome.finished else "interrupted"
    score = "no game ended yet" if outcome.score is None else f"{outcome.score:.1f} (last 100 training games)"
    lines = [
        f"{ended} after {outcome.timesteps:,} timesteps, {outcome.steps_per_second:,.0f} steps/s",
        f"raw score    {score}",
    ]
    if outcome.evaluation:
        lines.append(f"evaluation   {outcome.evaluation}")
    for name, evaluation in outcome.other_evaluations.items():
        lines.append(f"{name.replace('_', ' '):<12} {evaluation}")
    if outcome.model.exists():
        lines.append(f"model        {shown(outcome.model)}")
    return "\n".join([*lines, places(outcome.folder)])
