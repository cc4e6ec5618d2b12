"""A policy as one plain network: observations in, the numbers it decides by and the action out."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from mnv4_rl.export.folding import absorb, fold_extractor


@dataclass(frozen=True)
class Acting:
    """The parts of a policy that choose an action.

    Attributes:
        extractor: The encoder that sees the observation.
        layers: What follows the features.
        scores: What the last layer puts out: ``"logits"``, ``"q_values"`` or ``"mean"``.
        squash: Whether a tanh and the action space's bounds follow.
    """

    extractor: Any
    layers: list[nn.Module]
    scores: str
    squash: bool = False


class FoldedAgent(nn.Module):
    """A policy folded into plain layers: what it decides by, and the likeliest (or best, or mean) action.

    Attributes:
        scores: What the first output is: ``"logits"`` or ``"mean"`` (PPO and its kin, SAC, TD3), or ``"q_values"``.

    Shape:
        Observations as the environment gives them, batched, channels where SB3 has them ->
        (N, n) float, and actions (N,) or (N, *the action space's shape) as ``predict(deterministic=True)`` gives them.
    """

    def __init__(self, encoder: nn.Module, layers: nn.Sequential, scores: str, decide: nn.Module) -> None:
        super().__init__()
        self.encoder, self.layers, self.scores, self.decide = encoder, layers, scores, decide

    def forward(self, observations: Tensor | dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encode, score, decide."""
        scores = self.layers(self.encoder(observations))
        return scores, self.decide(scores)


class Largest(nn.Module):
    """The action with the largest score, one for each dimension of a MultiDiscrete space.

    Args:
        sizes: Actions in each dimension.
        flat: Whether the actions are (N,), as for a Discrete space.
    """

    def __init__(self, sizes: list[int], flat: bool) -> None:
        super().__init__()
        self.sizes, self.flat = sizes, flat

    def forward(self, scores: Tensor) -> Tensor:
        """(N, sum of sizes) -> actions, int64."""
        if self.flat:
            return scores.argmax(1)
        return th.stack([part.argmax(1) for part in scores.split(self.sizes, 1)], 1)

    def explain(self, scores: Tensor, actions: Tensor, slack: float) -> Tensor:
        """Whether actions (N, ...) have the largest of the scores (N, n), to ``slack``: (N,) bool."""
        columns = actions.reshape(len(scores), -1).long().split(1, 1)
        parts = zip(scores.split(self.sizes, 1), columns, strict=True)
        lost = [part.amax(1) - part.gather(1, action)[:, 0] for part, action in parts]
        return th.stack(lost, 1).amax(1) <= slack


class Positive(nn.Module):
    """The buttons of a MultiBinary space that are likelier pressed than not."""

    def forward(self, scores: Tensor) -> Tensor:
        """(N, n) -> 0 or 1, int64."""
        return (scores > 0).long()

    def explain(self, scores: Tensor, actions: Tensor, slack: float) -> Tensor:
        """Whether buttons (N, n) are pressed by the signs of scores that are not 0 to ``slack``: (N,) bool."""
        return ((self(scores) == actions) | (scores.abs() <= slack)).all(1)


class Bounded(nn.Module):
    """A continuous action within its space: cut off at the bounds, or squashed onto them.

    Args:
        space: The action space.
        tanh: Apply a tanh first, as SAC does; TD3's network ends in one.
        unscale: Map [-1, 1] onto the bounds, instead of cutting off.
    """

    low: Tensor
    high: Tensor

    def __init__(self, space: spaces.Box, tanh: bool, unscale: bool) -> None:
        super().__init__()
        self.tanh, self.unscale, self.shape = tanh, unscale, space.shape
        self.register_buffer("low", th.as_tensor(space.low, dtype=th.float32).flatten())
        self.register_buffer("high", th.as_tensor(space.high, dtype=th.float32).flatten())

    def forward(self, scores: Tensor) -> Tensor:
        """(N, n) -> (N, *shape) float."""
        if self.tanh:
            scores = scores.tanh()
        if self.unscale:
            actions = self.low + 0.5 * (scores + 1.0) * (self.high - self.low)
        else:
            actions = scores.clamp(self.low, self.high)
        return actions if len(self.shape) == 1 else actions.reshape(-1, *self.shape)

    def explain(self, scores: Tensor, actions: Tensor, slack: float) -> Tensor:
        """Whether scores within ``slack`` of these, (N, n), give the actions (N, ...): (N,) bool."""
        least, most = (self(scores + shift).reshape(len(scores), -1) for shift in (-slack, slack))
        given = actions.reshape(len(scores), -1)
        rounding = 1e-5 * (1 + given.abs())
        return ((least - rounding <= given) & (given <= most + rounding)).all(1)


def policy_of(agent: BaseAlgorithm | BasePolicy) -> BasePolicy:
    """The policy of an agent, or the policy itself.

    Raises:
        TypeError: For anything else.
    """
    policy = getattr(agent, "policy", agent)
    if not isinstance(policy, BasePolicy):
        raise TypeError(f"An SB3 algorithm or policy is needed, got {type(agent).__name__}.")
    return policy


@th.no_grad()
def fold(agent: BaseAlgorithm | BasePolicy) -> FoldedAgent:
    """A policy's way from observations to actions in plain layers (``nn.Conv2d``, ``nn.Linear``, ...), on the CPU.

    The numbers are the policy's to about 1e-5. The value network, exploration and sampling are left out.

    Args:
        agent: PPO, A2C, TRPO, MaskablePPO (apply the mask to the logits yourself), DQN, QR-DQN, SAC, TD3, DDPG, or the
            policy of one, with an encoder of this package or NatureCNN. It is not changed.

    Raises:
        TypeError: For a policy or an encoder of another kind.
    """
    policy = policy_of(agent)
    parts = _acting(policy)
    encoder, features = fold_extractor(parts.extractor, policy.normalize_images)
    layers = [deepcopy(layer).cpu().requires_grad_(False).eval() for layer in parts.layers]
    first = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    layers[first] = absorb(layers[first], features)  # type: ignore[arg-type]
    decide = _decide(policy, parts)
    return FoldedAgent(encoder.cpu(), nn.Sequential(*layers), parts.scores, decide).requires_grad_(False).eval()


def _acting(policy: Any) -> Acting:
    modules = dict(policy.named_children())
    if "lstm_actor" in modules:
        raise TypeError(f"{type(policy).__name__} remembers: a recurrent policy has no single network to fold.")
    if "quantile_net" in modules:
        net = policy.quantile_net
        return Acting(net.features_extractor, _mean_of_quantiles(net), "q_values")
    if "q_net" in modules:
        return Acting(policy.q_net.features_extractor, [*policy.q_net.q_net], "q_values")
    if "action_net" in modules:
        extractor = getattr(policy, "pi_features_extractor", policy.features_extractor)
        discrete = not isinstance(policy.action_space, spaces.Box)
        layers = [*policy.mlp_extractor.policy_net, policy.action_net]
        return Acting(extractor, layers, "logits" if discrete else "mean", policy.squash_output)
    if "actor" in modules:
        actor = policy.actor
        mean = [*actor.mu] if isinstance(actor.mu, nn.Sequential) else [actor.mu]
        return Acting(actor.features_extractor, [*getattr(actor, "latent_pi", ()), *mean], "mean", squash=True)
    raise TypeError(f"{type(policy).__name__} cannot be folded; policies of SB3's and sb3-contrib's algorithms can.")


def _mean_of_quantiles(net: Any) -> list[nn.Module]:
    """QR-DQN's layers, the mean over the quantiles taken in the last one's weights."""
    *hidden, last = net.quantile_net
    n_actions = int(net.action_space.n)
    mean = nn.Linear(last.in_features, n_actions)
    mean.weight.copy_(last.weight.unflatten(0, (net.n_quantiles, n_actions)).mean(0))
    mean.bias.copy_(last.bias.unflatten(0, (net.n_quantiles, n_actions)).mean(0))
    return [*hidden, mean]


def _decide(policy: BasePolicy, parts: Acting) -> nn.Module:
    match policy.action_space:
        case spaces.Discrete() as space:
            return Largest([int(space.n)], flat=True)
        case spaces.MultiDiscrete() as space:
            return Largest([int(n) for n in space.nvec], flat=False)
        case spaces.MultiBinary():
            return Positive()
        case spaces.Box() as space:
            ends_in_tanh = isinstance(parts.layers[-1], nn.Tanh)  # TD3's
            return Bounded(space, tanh=parts.squash and not ends_in_tanh, unscale=parts.squash)
        case space:
            raise TypeError(f"Actions of {space} are not known to any algorithm here.")
