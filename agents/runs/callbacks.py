"""What a run logs beside SB3's own keys, and the progress bar. One class a concern, each rate-limited and cheap.

docs/tensorboard.md defines every key.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import numpy as np
import psutil
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor, nn
from tqdm import tqdm

from agents.encoders import encoder_of
from agents.runs.event_file import EventFile
from agents.runs.output import courteous
from agents.runs.state import Clock
from mnv4_rl.models.network import Network
from mnv4_rl.models.specs import GridHeadSpec

DORMANT_THRESHOLD = 0.025
TIME_SPLIT_SECONDS = 1.0  # shares are of at least so long: off-policy rollouts last milliseconds


class EnvTimer(VecEnvWrapper):
    """Adds up the seconds a step of the environments takes.

    Attributes:
        seconds: Wall seconds spent between a step's start and its end.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.seconds = 0.0
        self._started = 0.0

    def reset(self) -> Any:
        """Reset all environments."""
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step."""
        self._started = time.perf_counter()
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Finish a step."""
        result = self.venv.step_wait()
        self.seconds += time.perf_counter() - self._started
        return result


class ProgressBar(BaseCallback):
    """A bar in agent timesteps with rate, time left and the mean raw score of the last 100 games."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None

    def _on_training_start(self) -> None:
        total = self.locals["total_timesteps"]  # of the whole run, a resumed one's past included
        stderr = courteous(sys.stderr)
        self._bar = tqdm(
            total=total,
            initial=self.num_timesteps,
            unit="step",
            smoothing=0.05,
            mininterval=0.1 if stderr.isatty() else 30.0,  # seconds; a log file needs no animation
            dynamic_ncols=True,
            file=stderr,
        )

    def _on_step(self) -> bool:
        assert self._bar is not None
        self._bar.update(self.num_timesteps - self._bar.n)
        return True

    def _on_rollout_end(self) -> None:
        score = recent_score(self.model)
        if self._bar is not None and score is not None:
            self._bar.set_postfix_str(f"raw score {score:.1f}", refresh=False)

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.close()


class GameScores(BaseCallback):
    """Each whole game's raw score, as its own point in TensorBoard."""

    def _on_step(self) -> bool:
        # Games that end in the same step get the timesteps of their own environments: one point each.
        before = self.num_timesteps - self.training_env.num_envs
        for index, info in enumerate(self.locals["infos"], start=1):
            if "episode" in info:
                for file in tensorboard_files(self.model):
                    file.add({"score/game": info["episode"]["r"]}, before + index)
        return True


class TimeSplit(BaseCallback):
    """Where the wall time goes: emulators, policy, learner, optimiser; and the process's own CPU time.

    What other callbacks do at a rollout's end counts as theirs, not the learner's, if this one is the last in the list.

    Args:
        timer: The environments.
        clock: Seconds of the whole run, earlier sessions included.
    """

    def __init__(self, timer: EnvTimer, clock: Clock) -> None:
        super().__init__()
        self._timer, self._clock = timer, clock

    def _on_training_start(self) -> None:
        self._mark, self._env_mark = time.perf_counter(), self._timer.seconds
        self._learner_seconds = self._optimiser_seconds = 0.0
        self._rollout_end: float | None = None
        optimiser: Any = self.model.policy.optimizer
        self._hooks = [
            optimiser.register_step_pre_hook(self._before_optimiser),
            optimiser.register_step_post_hook(self._after_optimiser),
        ]

    def _on_training_end(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before_optimiser(self, *_: Any) -> None:
        self._optimiser_start = time.perf_counter()

    def _after_optimiser(self, *_: Any) -> None:
        self._optimiser_seconds += time.perf_counter() - self._optimiser_start

    def _on_rollout_start(self) -> None:
        if self._rollout_end is not None:  # updates ran since the last rollout
            self._learner_seconds += time.perf_counter() - self._rollout_end

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        now = self._rollout_end = time.perf_counter()
        self.logger.record("time/wall_seconds", self._clock.wall_seconds)
        self.logger.record("time/cpu_seconds", self._clock.cpu_seconds)
        elapsed = now - self._mark
        if elapsed < TIME_SPLIT_SECONDS:
            return
        self.logger.record("time/env_fraction", (self._timer.seconds - self._env_mark) / elapsed)
        self.logger.record("time/learner_fraction", self._learner_seconds / elapsed)
        self.logger.record("time/optimiser_fraction", self._optimiser_seconds / elapsed)
        self._mark, self._env_mark = now, self._timer.seconds
        self._learner_seconds = self._optimiser_seconds = 0.0


class MemoryUse(BaseCallback):
    """Resident memory of the process, and how full the replay buffer of an off-policy algorithm is."""

    def __init__(self) -> None:
        super().__init__()
        self._process = psutil.Process()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.logger.record("time/resident_mib", self._process.memory_info().rss / 2**20)
        if isinstance(self.model, OffPolicyAlgorithm) and self.model.replay_buffer is not None:
            replay = self.model.replay_buffer
            self.logger.record("replay/transitions", replay.size() * replay.n_envs)


class EncoderHealth(BaseCallback):
    """Signal, gradient and dormant features of the encoder on recent observations.

    Args:
        every_timesteps: Agent timesteps between two looks.
        n_observations: Recent observations looked at.
    """

    def __init__(self, every_timesteps: int = 10_000, n_observations: int = 256) -> None:
        super().__init__()
        self._every, self._n_observations = every_timesteps, n_observations
        self._recent: deque[np.ndarray] = deque(maxlen=n_observations)

    def _on_training_start(self) -> None:
        self._looks = self.num_timesteps // self._every  # a resumed run goes on at the same marks

    def _on_step(self) -> bool:
        # Spread over the interval, so that neighbours in time do not make up the whole batch.
        if self.n_calls % max(1, self._every // self._n_observations) == 0:
            self._recent.extend(self.locals["new_obs"])
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps // self._every == self._looks or not self._recent:
            return
        self._looks = self.num_timesteps // self._every
        for name, value in encoder_health(self.model, np.stack(self._recent)).items():
            self.logger.record(f"encoder/{name}", value)


@th.no_grad()
def encoder_health(model: BaseAlgorithm, observations: np.ndarray) -> dict[str, float]:
    """Signal and weights of a model's encoder.

    Args:
        model: Any SB3 algorithm on images.
        observations: (N, C, H, W) as the environment returns them.

    Returns:
        Name -> value; docs/tensorboard.md explains the names.
    """
    encoder = encoder_of(model)
    values: dict[str, float] = {}
    hooks = [block.register_forward_hook(_std_hook(values, name)) for name, block in _blocks(encoder)]
    try:
        tensor = model.policy.obs_to_tensor(observations)[0]
        with th.compiler.set_stance("force_eager"):  # a compiled encoder runs no hooks
            features = model.policy.extract_features(tensor, encoder)  # type: ignore[arg-type]  # (N, features_dim)
    finally:
        for hook in hooks:
            hook.remove()
    features = _of_the_image(features, encoder)
    sizes = features.abs().mean(0)
    values["feature_std"] = float(features.std())
    values["feature_norm"] = float(features.norm(dim=1).mean())
    values["dormant_fraction"] = float((sizes < DORMANT_THRESHOLD * sizes.mean()).float().mean())
    values["weight_norm"] = _norm(list(encoder.parameters()))
    values["grad_norm"] = _norm([p.grad for p in encoder.parameters() if p.grad is not None])
    return values


def _of_the_image(features: Tensor, encoder: nn.Module) -> Tensor:
    """Features without the constants that a head puts behind them: those hide what becomes of the others."""
    network = getattr(encoder, "network", None)
    head = network.spec.head if isinstance(network, Network) else None
    return features[:, : head.image_features] if isinstance(head, GridHeadSpec) else features


def _blocks(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Stem and blocks of our networks; nothing of another encoder."""
    found: list[tuple[str, nn.Module]] = []
    for network in encoder.modules():
        if isinstance(network, Network):
            found.append(("stem", network.stem))
            for s, stage in enumerate(network.stages.children()):
                found += [(f"stage{s}_block{b}", block) for b, block in enumerate(stage.children())]
    return found


def _std_hook(values: dict[str, float], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        values[f"std_{name}"] = float(output.std())

    return hook


def _norm(tensors: list[Tensor]) -> float:
    return float(th.stack([t.norm() for t in tensors]).norm()) if tensors else 0.0


def recent_score(model: BaseAlgorithm) -> float | None:
    """Mean raw score of the last 100 whole games, None before the first."""
    games = model.ep_info_buffer
    return float(np.mean([game["r"] for game in games])) if games else None


def tensorboard_files(model: BaseAlgorithm) -> list[EventFile]:
    """TensorBoard's file of a run's logger, none of another logger."""
    return [output for output in model.logger.output_formats if isinstance(output, EventFile)]
