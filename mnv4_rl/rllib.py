"""Our encoders in RLlib's PPO, and agents from there to agent files and back; needs Ray, the extra ``rllib``.

    config = (
        PPOConfig()
        .environment("ale_py:ALE/Pong-v5", env_config={"repeat_action_probability": 0.0})
        .env_runners(gym_env_vectorize_mode="vector_entry_point")
        .rl_module(rl_module_spec=rl_module())
    )
    algorithm = config.build_algo()
    algorithm.train()
    save_agent(to_agent(algorithm), "agent", optimizer=False)
    from_agent(algorithm, load_agent("agent"))

RLlib's own heads, distributions, learners and env runners stay as they are; docs/scale.md says which versions of Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor, nn

from mnv4_rl.extractors import MNV4Extractor
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.observations import is_bytes
from mnv4_rl.policies import PixelActorCriticPolicy
from mnv4_rl.weights.tensors import check_tensors, copy_tensors, own_tensors, portable

try:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.models.base import ENCODER_OUT, Encoder
    from ray.rllib.core.models.configs import ModelConfig
    from ray.rllib.core.models.torch.base import TorchModel
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
except ImportError as error:
    raise ModuleNotFoundError(
        'mnv4_rl.rllib needs RLlib, in an environment of its own: pip install "mnv4_rl[rllib]", or in a checkout '
        f'pip install -c constraints-rllib.txt -e ".[rllib]" ({error}).'
    ) from error

_KEY = "mnv4_rl"  # of the encoder's arguments in a model_config
_GAINS = {"pi": 0.01, "vf": 1.0}  # SB3's of the orthogonal start of its last layers
# RLlib's name of each part -> SB3's.
_PARTS = {
    "encoder.encoder.extractor": "features_extractor",
    "pi.net.mlp.0": "action_net",
    "vf.net.mlp.0": "value_net",
}
_OURS = {ours: theirs for theirs, ours in _PARTS.items()}


def rl_module(variant: Any = DEFAULT_VARIANT, features_dim: int = 512, **extractor_kwargs: Any) -> RLModuleSpec:
    """What ``PPOConfig.rl_module(rl_module_spec=...)`` takes: one of our encoders under policy and value.

    Args:
        variant: Any name of :func:`mnv4_rl.list_models`, or a :class:`mnv4_rl.models.specs.NetworkSpec` of your own.
        features_dim: Width of the features.
        **extractor_kwargs: Other arguments of :class:`mnv4_rl.MNV4Extractor`. ``channels_last`` is found out for uint8
            images, as the environment has them; RLlib moves no channels.
    """
    arguments = {"variant": variant, "features_dim": features_dim, **extractor_kwargs}
    return RLModuleSpec(
        module_class=DefaultPPOTorchRLModule,
        catalog_class=MNV4PPOCatalog,
        model_config={"vf_share_layers": True, "head_fcnet_hiddens": [], _KEY: arguments},
    )


@dataclass
class MNV4EncoderConfig(ModelConfig):
    """What RLlib builds an encoder from.

    Attributes:
        observation_space: Images.
        arguments: Of :class:`mnv4_rl.MNV4Extractor`.
    """

    observation_space: spaces.Box = field(default_factory=lambda: spaces.Box(0, 255, (4, 84, 84), np.uint8))
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output_dims(self) -> tuple[int]:
        """Width of the features."""
        return (self.arguments["features_dim"],)

    def build(self, framework: str = "torch") -> MNV4Encoder:
        """The encoder."""
        return MNV4Encoder(self)


class MNV4Encoder(TorchModel, Encoder):
    """An :class:`mnv4_rl.MNV4Extractor` where RLlib wants an encoder."""

    def __init__(self, config: MNV4EncoderConfig) -> None:
        TorchModel.__init__(self, config)
        Encoder.__init__(self, config)
        self.extractor = MNV4Extractor(config.observation_space, **config.arguments)

    def _forward(self, inputs: dict[str, Any], **_kwargs: Any) -> dict[str, Tensor]:
        return {ENCODER_OUT: self.extractor(inputs[Columns.OBS])}


class MNV4PPOCatalog(PPOCatalog):
    """RLlib's parts of a PPO module, with our encoder and SB3's start of the last layers."""

    @classmethod
    def _get_encoder_config(
        cls, observation_space: Any, model_config_dict: dict[str, Any], action_space: gym.Space | None = None
    ) -> ModelConfig:
        arguments = dict(model_config_dict[_KEY])
        if _is_turned(observation_space):
            arguments.setdefault("channels_last", True)
        return MNV4EncoderConfig(observation_space=observation_space, arguments=arguments)

    def build_pi_head(self, framework: str) -> nn.Module:
        """One linear layer."""
        return _started(super().build_pi_head(framework), _GAINS["pi"])

    def build_vf_head(self, framework: str) -> nn.Module:
        """One linear layer."""
        return _started(super().build_vf_head(framework), _GAINS["vf"])


def to_agent(algorithm: Algorithm, module_id: str = DEFAULT_MODULE_ID) -> PPO:
    """An SB3 agent with an RLlib algorithm's weights: for ``save_agent``, to play, to export, to train on.

    Its optimiser is fresh, and its hyperparameters are SB3's: what RLlib trains with is in RLlib's config.

    Args:
        algorithm: A PPO with :func:`rl_module`.
        module_id: Which of its modules.

    Raises:
        ValueError: If the module is not of :func:`rl_module`, or its actions are no Discrete.
    """
    module = algorithm.get_module(module_id)
    if _KEY not in module.model_config:
        raise ValueError(f"the algorithm's module is not one of mnv4_rl.rllib.rl_module, but {type(module).__name__}.")
    if not isinstance(module.action_space, spaces.Discrete):
        raise ValueError(f"agents with Discrete actions can leave RLlib, these are {module.action_space}.")
    arguments = {**module.model_config[_KEY]}
    if _is_turned(module.observation_space):
        arguments.pop("channels_last", None)
    policy_kwargs = {"features_extractor_class": MNV4Extractor, "features_extractor_kwargs": arguments, "net_arch": []}
    made: Any = PPO  # which needs no environment to be set up by hand
    agent = made(PixelActorCriticPolicy, None, policy_kwargs=policy_kwargs, device="cpu", _init_setup_model=False)
    agent.observation_space, agent.action_space, agent.n_envs = (
        _as_sb3(module.observation_space),
        module.action_space,
        1,
    )
    agent._setup_model()
    state = algorithm.learner_group.get_weights([module_id])[module_id]
    _copy(_weights(state), own_tensors(agent.policy), "the module is not one of rl_module")
    return agent


def from_agent(algorithm: Algorithm, agent: PPO, module_id: str = DEFAULT_MODULE_ID) -> None:
    """Put an agent's weights into an RLlib algorithm, its learners and env runners alike.

    Args:
        algorithm: A PPO with :func:`rl_module`, of the same encoder and spaces.
        agent: From ``load_agent``, or trained by SB3.
        module_id: Which of its modules.

    Raises:
        ValueError: If the weights do not fit; the algorithm is left as it was.
    """
    state = algorithm.learner_group.get_weights([module_id])[module_id]
    weights = _weights(state)
    given = {name: portable(tensor) for name, tensor in own_tensors(agent.policy).items()}
    _copy(given, weights, "the agent is not of this module")
    state |= {_renamed(name, _OURS): tensor.numpy() for name, tensor in weights.items()}
    algorithm.learner_group.set_weights({module_id: state})
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, inference_only=True)


def _weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of the weights in a module's state, under SB3's names; its constants are left out."""
    named = {_renamed(name, _PARTS): value for name, value in state.items()}
    return {name: th.tensor(value) for name, value in named.items() if name not in state}


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    """A tensor's name with its part's in the other library."""
    part = next((part for part in parts if name.startswith(f"{part}.")), "")
    return parts.get(part, "") + name.removeprefix(part)


def _copy(given: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    check_tensors(own, given, what)
    copy_tensors(own, given)


def _started(head: Any, gain: float) -> Any:
    """A head whose last layer starts as SB3's does."""
    last = head.net.mlp[-1]
    nn.init.orthogonal_(last.weight, gain)
    nn.init.zeros_(last.bias)
    return head


def _is_turned(space: gym.Space) -> bool:
    """Whether a space is of uint8 images (H, W, C), whose channels SB3 moves to the front and RLlib leaves."""
    return is_bytes(space) and len(space.shape or ()) == 3 and not is_image_space_channels_first(space)  # type: ignore[arg-type]


def _as_sb3(space: gym.Space) -> gym.Space:
    """An observation space as SB3's policies see it."""
    return VecTransposeImage.transpose_space(space) if _is_turned(space) else space  # type: ignore[arg-type]
