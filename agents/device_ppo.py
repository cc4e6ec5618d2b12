"""SB3's PPO for a GPU: losses and statistics stay there, and acting and updates run as CUDA graphs.

SB3's own waits for the device six times a minibatch, to write numbers down, and launches every kernel from Python. Here
the numbers of an update cross over together, once. The samples, their order, the losses and what is logged are SB3's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional as F

from agents.graphs import Captured, CUDAGraphs, Recorder
from mnv4_rl.rollout import DeviceRolloutBuffer

# What SB3 logs of a minibatch, in the order of the numbers that one returns.
STATISTICS = ("entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "loss")
_KL = STATISTICS.index("approx_kl")


class DeviceCategorical(CategoricalDistribution):
    """SB3's distribution of discrete actions without a look at its numbers: every look waits for a GPU."""

    def proba_distribution(self, action_logits: Tensor) -> Self:
        """Take logits, (N, actions), as they are."""
        self.distribution = Categorical(logits=action_logits, validate_args=False)
        return self

    def sample(self) -> Tensor:
        """The numbers of ``torch.multinomial``, which draws just so, without its checks."""
        probabilities = self.distribution.probs
        return (probabilities / th.empty_like(probabilities).exponential_()).argmax(-1)


class DevicePPO(PPO):
    """SB3's PPO with the same numbers, made for a GPU; arguments are SB3's and one more.

    Args:
        *args: As SB3's.
        captured: Run acting and updates as CUDA graphs: True or an error, False for never, None wherever it is
            possible.
        **kwargs: As SB3's.

    Attributes:
        captures: Whether they run so.

    Raises:
        ValueError: If they must and cannot, with the reason.
    """

    saved_as: ClassVar[type[PPO]] = PPO  # an agent is the same whoever trained it

    def __init__(self, *args: Any, captured: bool | None = None, **kwargs: Any) -> None:
        self.captured = captured
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        if isinstance(self.action_space, spaces.Discrete):
            self.policy.action_dist = DeviceCategorical(int(self.action_space.n))
        self._rates = th.zeros(5, device=self.device)
        reason = why_not_captured(self)
        if self.captured and reason is not None:
            raise ValueError(f"this PPO cannot run as CUDA graphs: {reason}.")
        self.captures = self.captured is not False and reason is None
        self._act: Any = partial(type(self.policy).forward, self.policy)
        self._update: Any = self._minibatch
        if self.captures:
            recorder = self._recorder()
            self._act = Captured(self._act, self._weights, recorder, bool(self.captured))
            self._update = Captured(self._update, self._trained, recorder, bool(self.captured))

    def _recorder(self) -> Recorder:
        return CUDAGraphs(self.device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_act", "_update", "_rates"]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As SB3's, each observation copied to a GPU once, from page-locked memory."""
        on_gpu = self.device.type == "cuda"
        if isinstance(self.observation_space, spaces.Dict) or not (on_gpu or self.captures):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if self.captures:
            self._act.refresh()
        steps = cast("VecEnv", PinnedSteps(env)) if on_gpu else env
        with self._acting(rollout_buffer):
            return super().collect_rollouts(steps, callback, rollout_buffer, n_rollout_steps)

    @contextmanager
    def _acting(self, rollout_buffer: RolloutBuffer) -> Iterator[None]:
        """Let the policy that SB3 calls be the recorded one."""

        def act(observations: Tensor) -> tuple[Tensor, ...]:
            if isinstance(rollout_buffer, DeviceRolloutBuffer):
                rollout_buffer.stage(observations)
            return self._act(observations)

        self.policy.forward = act  # type: ignore[assignment]
        try:
            yield
        finally:
            del self.policy.forward

    def train(self) -> None:
        """Update the policy by the rollout that was collected, as SB3's."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        ranges = self._set_rates()
        if self.captures:
            self._update.refresh()
        self._log_update(*self._run_epochs(), ranges)

    def _set_rates(self) -> dict[str, float]:
        """Put what the schedules say where a recording reads it."""
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        ranges = {"clip_range": clip_range}
        if self.clip_range_vf is not None:
            ranges["clip_range_vf"] = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
        rate = self.policy.optimizer.param_groups[0]["lr"]
        numbers = [rate, clip_range, 1 - clip_range, 1 + clip_range, ranges.get("clip_range_vf", 0.0)]
        self._rates.copy_(th.tensor(numbers))
        return ranges

    def _run_epochs(self) -> tuple[np.ndarray, int]:
        """A row of statistics a minibatch, and the index of the last epoch's first."""
        rows: list[Tensor] = []
        for epoch in range(self.n_epochs):
            first, goes_on = len(rows), True
            for samples in self.rollout_buffer.get(self.batch_size):
                (statistics,) = self._update(*samples)
                rows.append(statistics)
                if not (goes_on := not self._is_too_far(statistics)):
                    break
            self._n_updates += 1
            if not goes_on:
                if self.verbose >= 1:
                    print(f"Early stopping at step {epoch} due to reaching max kl: {float(rows[-1][_KL]):.2f}")
                break
        return th.stack(rows).cpu().numpy(), first

    def _is_too_far(self, statistics: Tensor) -> bool:
        """Whether the policy moved further than target_kl; without one nothing is looked at."""
        return self.target_kl is not None and bool(statistics[_KL].cpu().numpy() > 1.5 * self.target_kl)

    def _minibatch(self, *samples: Any) -> tuple[Tensor]:
        """One update, by what SB3's buffers give; all statistics in one tensor."""
        loss, statistics = self._losses(*samples)
        if not self._is_too_far(statistics):
            self._step(loss)
        return (statistics,)

    def _losses(
        self,
        observations: Any,
        actions: Tensor,
        old_values: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        returns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        _, clip_range, low, high, clip_range_vf = self._rates.unbind()
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = self.policy.evaluate_actions(observations, actions)
        values = values.flatten()
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_prob - old_log_prob
        ratio = log_ratio.exp()
        policy_loss = -th.min(advantages * ratio, advantages * ratio.clamp(low, high)).mean()
        if self.clip_range_vf is not None:
            values = old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)
        value_loss = F.mse_loss(returns, values)
        entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        with th.no_grad():
            approx_kl = ((ratio - 1) - log_ratio).mean()
            clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
        # In the order of STATISTICS.
        return loss, th.stack([entropy_loss, policy_loss, value_loss, approx_kl, clip_fraction, loss]).detach()

    def _step(self, loss: Tensor) -> None:
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        with rate_on_device(optimizer, self._rates[0]) if self.captures else nullcontext():
            optimizer.step()

    def _log_update(self, statistics: np.ndarray, last_epoch: int, ranges: dict[str, float]) -> None:
        means = dict(zip(STATISTICS, statistics.mean(0, dtype=np.float64), strict=True))
        means["approx_kl"] = np.mean(statistics[last_epoch:, _KL].copy())  # SB3 logs the last epoch's
        means["loss"] = float(statistics[-1, -1])  # and the last minibatch's
        buffer = self.rollout_buffer
        variance = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        for name, value in (means | {"explained_variance": variance}).items():
            self.logger.record(f"train/{name}", value)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in ranges.items():
            self.logger.record(f"train/{name}", value)

    def _weights(self) -> list[Tensor]:
        return [*self.policy.parameters(), *self.policy.buffers()]

    def _trained(self) -> list[Tensor]:
        states = self.policy.optimizer.state.values()
        return [*self._weights(), *(part for state in states for part in state.values() if isinstance(part, Tensor))]


def why_not_captured(model: PPO) -> str | None:
    """What keeps acting and updates from being recorded, None if nothing does."""
    optimizer = model.policy.optimizer
    reasons = {
        "target_kl is looked at in every minibatch": model.target_kl is not None,
        f"its actions are {model.action_space}, not Discrete": not isinstance(model.action_space, spaces.Discrete),
        "its observations are several": isinstance(model.observation_space, spaces.Dict),
        "use_sde draws new noise now and then": model.use_sde,
        "its optimiser is not Adam with fused=True": not (
            isinstance(optimizer, th.optim.Adam) and all(group["fused"] for group in optimizer.param_groups)
        ),
        f"it is on {model.device}, and only a GPU records": model.device.type != "cuda",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@contextmanager
def rate_on_device(optimizer: th.optim.Optimizer, rate: Tensor) -> Iterator[None]:
    """Let a fused Adam read its learning rate from the device, as it counts its steps there.

    Between two steps the optimiser is as any other, in checkpoints too.
    """
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(lr=rate, capturable=True)
    try:
        yield
    finally:
        for group, was in zip(optimizer.param_groups, before, strict=True):
            group.update(lr=was["lr"], capturable=was["capturable"])


class PinnedSteps:
    """Environments whose observations lie in page-locked memory, from which a GPU fetches them by itself.

    Args:
        env: The environments.
    """

    def __init__(self, env: VecEnv) -> None:
        self._env, self.num_envs = env, env.num_envs

    def step(self, actions: np.ndarray) -> VecEnvStepReturn:
        """A step; its observations are in memory of their own, as SB3 and callbacks keep them."""
        observations, rewards, dones, infos = self._env.step(actions)
        return th.from_numpy(observations).pin_memory().numpy(), rewards, dones, infos
