"""The callbacks that let a run survive: checkpoints while it trains, a clean stop, and going on where it stopped."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import FrameType

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.runs.callbacks import recent_score
from agents.runs.checkpoints import prune_checkpoints, write_checkpoint
from agents.runs.folder import RunFolder
from agents.runs.guards import check_features
from agents.runs.output import tell_at_once
from agents.runs.state import Clock, State, capture, restore_counters, restore_session
from mnv4_rl.agent_format import describe

OnCheckpoint = Callable[[Path, int, float | None], object]


@dataclass(frozen=True)
class CheckpointPlan:
    """When to write checkpoints.

    Attributes:
        every_timesteps: Agent timesteps between two; 0 writes one only when the run stops.
        keep: How many of the newest to keep, at least 1.
        with_replay: Whether an off-policy algorithm's replay buffer goes into them.
        on_written: Called with each one's folder, its agent timesteps, and the mean raw score of the last 100 games
            (None before the first); False ends the run there.
    """

    every_timesteps: int = 50_000
    keep: int = 3
    with_replay: bool = False
    on_written: OnCheckpoint | None = None


class Checkpoints(BaseCallback):
    """Writes checkpoints at the first start of a rollout after each interval, and ends training when asked to stop.

    Between an update and the next rollout nothing is half done. A stop in the middle of a rollout gives that rollout
    up: the checkpoint holds the weights, which have not changed since, and the counters of the rollout's start.

    Args:
        run: The run's folder.
        plan: When to write.
        clock: Seconds of the whole run.
        stop: Set from outside to end training.
        resumed: Training state of the checkpoint this session goes on from, None for a new run.

    Attributes:
        gave_up_rollout: Whether training ended in the middle of a rollout because it was asked to.
    """

    def __init__(
        self, run: RunFolder, plan: CheckpointPlan, clock: Clock, stop: Event, resumed: State | None = None
    ) -> None:
        super().__init__()
        self._run, self._plan, self._clock, self._stop, self._resumed = run, plan, clock, stop, resumed
        self._written_at = -1
        self.gave_up_rollout = False

    def _on_training_start(self) -> None:
        # The settings as built: a callback may hold some back for a while.
        self._agent = describe(self.model)
        if self._resumed is not None:
            restore_session(self.model, self._resumed)
            self._written_at = self.num_timesteps
            # SB3's time_elapsed and fps are then of the whole run.
            self.model.start_time -= int(self._clock.wall_seconds * 1e9)
            self.model._num_timesteps_at_start = 0
        self._next = self.num_timesteps + self._plan.every_timesteps

    def _on_rollout_start(self) -> None:
        self._run.check_held()
        self.remember()
        if self._plan.every_timesteps and self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self._plan.every_timesteps
            self.write()

    def _on_step(self) -> bool:
        self._run.check_held()  # before the rollout's rows are written
        self.gave_up_rollout = self._stop.is_set()
        return not self.gave_up_rollout

    def give_back(self) -> None:
        """Set the model's counters back to the remembered state, which its weights belong to."""
        restore_counters(self.model, self._state)

    def remember(self) -> None:
        """Take this moment as the state to go on from; nothing may be half done."""
        self._state = capture(self.model, self._clock)
        monitor = self._run.monitor
        self._state["monitor_bytes"] = monitor.stat().st_size if monitor.exists() else 0

    def write(self) -> None:
        """Write the remembered state; a write that fails is told, and leaves the run and older checkpoints alone."""
        timesteps = self._state["counters"]["num_timesteps"]
        if timesteps in (0, self._written_at):  # without a timestep there is nothing to go on from
            return
        check_features(self.model)
        try:
            path = write_checkpoint(self.model, self._run.path, self._state, self._agent, self._plan.with_replay)
        except OSError as error:
            warnings.warn(
                f"the checkpoint at timestep {timesteps:,} failed: {error}. Earlier checkpoints are untouched and "
                "training goes on; the next one will be tried as planned.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._written_at = timesteps
        prune_checkpoints(self._run.path, self._plan.keep, timesteps)
        tell = self._plan.on_written
        if tell is not None and tell(path, timesteps, recent_score(self.model)) is False:
            self._stop.set()


class RefillReplay(BaseCallback):
    """After a resume without the replay: play with the policy as it is, without updates, until it is filled anew.

    Args:
        timesteps: Agent timesteps to play first.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self._timesteps = timesteps
        self._gradient_steps: int | None = None  # those held back

    def _on_training_start(self) -> None:
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm)
        self._until = self.num_timesteps + self._timesteps
        self._gradient_steps = model.gradient_steps
        model.gradient_steps = 0  # SB3 then makes no updates

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._until:
            self.give_back()

    def give_back(self) -> None:
        """Let the model update again; to be called whatever ends the training, as the setting is saved with it."""
        if self._gradient_steps is not None:
            self.model.gradient_steps = self._gradient_steps  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


@contextmanager
def stop_on_signals(stop: Event) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM inside ask for a stop, and a second Ctrl-C interrupt at once.

    Only the main thread gets signals; in another one this does nothing.
    """
    if current_thread() is not main_thread():
        yield
        return

    def request(received: int, _frame: FrameType | None) -> None:
        if stop.is_set() and received == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        tell_at_once("\nstopping after a checkpoint; Ctrl-C again stops at once\n")

    previous = {name: signal.signal(name, request) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
