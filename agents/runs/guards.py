"""Stop a run whose numbers are no longer numbers, before it overwrites anything good."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from agents.encoders import encoder_of
from mnv4_rl.agent_tensors import NonFiniteError, check_finite


class FiniteGuard(BaseCallback):
    """Looks at the losses after every update, and at the weights every so often.

    A weight that is NaN makes the next loss NaN; looking at the losses alone is enough between two checkpoints, which
    check every weight.

    Args:
        every_timesteps: Agent timesteps between two looks at the weights.
    """

    def __init__(self, every_timesteps: int = 1_000) -> None:
        super().__init__()
        self._every = every_timesteps
        self._next = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        check_losses(self.model)
        if self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self._every
            check_finite(self.model)

    def _on_training_end(self) -> None:
        check_losses(self.model)
        check_finite(self.model)


def check_losses(model: BaseAlgorithm) -> None:
    """Raise if the last update logged a loss that is not finite.

    Raises:
        NonFiniteError: Naming the loss, its value and the timestep.
    """
    for name, value in model.logger.name_to_value.items():
        if name.startswith("train/") and name.endswith("loss") and not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value} at timestep {model.num_timesteps:,}.")


@th.no_grad()
def check_features(model: BaseAlgorithm) -> None:
    """Raise if the encoder's features of the newest observations are not finite: weights can be so large.

    Raises:
        NonFiniteError: With the timestep.
    """
    tensor = model.policy.obs_to_tensor(model._last_obs)[0]  # type: ignore[arg-type]
    if not bool(model.policy.extract_features(tensor, encoder_of(model)).isfinite().all()):  # type: ignore[arg-type]
        raise NonFiniteError(f"the encoder's features are NaN or infinite at timestep {model.num_timesteps:,}.")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError where PyTorch says in other words that memory is out."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if isinstance(error, th.OutOfMemoryError) or "can't allocate memory" in said or "bad_alloc" in said:
            raise MemoryError(said.splitlines()[0]) from error
        raise
