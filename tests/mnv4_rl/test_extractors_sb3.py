"""The extractors inside SB3's algorithms: they train, they save, and nothing reaches into their weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

from mnv4_rl import MNV4CombinedExtractor, MNV4Extractor

PONG = partial(FakeImageEnv, screen_height=84, screen_width=84, n_channels=4, channel_first=True)
ON_POLICY: dict[str, Any] = dict(n_steps=16)
OFF_POLICY: dict[str, Any] = dict(buffer_size=100, learning_starts=8, batch_size=4, train_freq=8)
ALGORITHMS: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: dict(ON_POLICY, batch_size=8, n_epochs=1),
    A2C: ON_POLICY,
    DQN: dict(OFF_POLICY, target_update_interval=8),
    SAC: OFF_POLICY,
    TD3: OFF_POLICY,
}


def make_agent(algorithm: type[BaseAlgorithm], env: Any = None, **kwargs: Any) -> BaseAlgorithm:
    """A small agent on 16x20 RGB pictures, or on ``env``; keyword arguments not the algorithm's go to the policy."""
    if env is None:
        env = FakeImageEnv(4, screen_height=16, screen_width=20, n_channels=3, discrete=algorithm not in (SAC, TD3))
    is_dict = isinstance(env.observation_space, spaces.Dict)
    policy_kwargs = dict(features_extractor_class=MNV4CombinedExtractor if is_dict else MNV4Extractor, net_arch=[])
    own = {key: kwargs.pop(key) for key in ("seed", "learning_rate") if key in kwargs}
    return algorithm(
        "MultiInputPolicy" if is_dict else "CnnPolicy", env, device="cpu", policy_kwargs=policy_kwargs | kwargs,
        **ALGORITHMS[algorithm], **own,
    )  # fmt: skip


def extractors_of(agent: BaseAlgorithm) -> list[MNV4Extractor]:
    """Every distinct encoder in an agent's policy, targets included."""
    return [module for module in agent.policy.modules() if isinstance(module, MNV4Extractor)]


def first_encoder(agent: BaseAlgorithm) -> MNV4Extractor:
    return extractors_of(agent)[0]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(th.equal(a[name], b[name]) for name in a)


def observations(agent: BaseAlgorithm, n: int = 6) -> Any:
    """Samples of the observation space that the agent was given, stacked."""
    space = agent.observation_space
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def assert_learns_saves_and_loads(agent: BaseAlgorithm, folder: Path) -> None:
    before = snapshot(agent.policy)
    agent.learn(32)
    assert not same_weights(before, snapshot(agent.policy))
    assert all(value.isfinite().all() for value in agent.policy.state_dict().values())
    obs = observations(agent)
    actions, _ = agent.predict(obs, deterministic=True)
    assert np.array_equal(actions, agent.predict(obs, deterministic=True)[0])
    agent.save(folder / "agent.zip")
    loaded = type(agent).load(folder / "agent.zip", device="cpu")
    assert np.array_equal(actions, loaded.predict(obs, deterministic=True)[0])
    assert same_weights(snapshot(agent.policy), snapshot(loaded.policy))


# Algorithms


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_cnn_policy_learns_saves_and_loads(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    assert_learns_saves_and_loads(make_agent(algorithm), tmp_path)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_class_alone_is_enough(algorithm: type[BaseAlgorithm]) -> None:
    env = FakeImageEnv(screen_height=8, screen_width=8, discrete=algorithm not in (SAC, TD3))
    policy_kwargs = dict(features_extractor_class=MNV4Extractor)
    agent = algorithm("CnnPolicy", env, policy_kwargs=policy_kwargs, device="cpu", **ALGORITHMS[algorithm])
    agent.learn(16)
    assert {extractor.features_dim for extractor in extractors_of(agent)} == {512}


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_multi_input_policy_learns_saves_and_loads(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    env = SimpleMultiObsEnv(discrete_actions=algorithm is not SAC)
    kwargs = dict(cnn_output_dim=16, grid=2)
    assert_learns_saves_and_loads(make_agent(algorithm, env, features_extractor_kwargs=kwargs), tmp_path)


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, TD3])
@pytest.mark.parametrize("shared", [True, False])
def test_actor_and_critic_share_an_extractor_only_when_asked(
    algorithm: type[BaseAlgorithm], shared: bool, tmp_path: Path
) -> None:
    agent = make_agent(algorithm, share_features_extractor=shared)
    on_policy = algorithm in (PPO, A2C)
    if on_policy:
        actor, critic = agent.policy.pi_features_extractor, agent.policy.vf_features_extractor
    else:
        actor, critic = agent.policy.actor.features_extractor, agent.policy.critic.features_extractor
    assert (actor is critic) == shared
    assert_learns_saves_and_loads(agent, tmp_path)


@pytest.mark.parametrize("saved", ["rl_s", "rl_s2"])
def test_a_zip_of_another_variant_says_which_and_loads_as_told(saved: str, tmp_path: Path) -> None:
    """As when a zip that named no variant meets a version with another default."""
    agent = make_agent(PPO, features_extractor_kwargs=dict(variant=saved))
    agent.save(tmp_path / "agent")
    told = dict(agent.policy_kwargs, features_extractor_kwargs=dict(variant="rl_m"))
    with pytest.raises(RuntimeError, match=f"weights of the variant '{saved}'") as refused:
        PPO.load(tmp_path / "agent", device="cpu", custom_objects=dict(policy_kwargs=told))
    assert str(refused.value).count("weights of the variant") == 1
    told["features_extractor_kwargs"] = dict(variant=saved)
    loaded = PPO.load(tmp_path / "agent", device="cpu", custom_objects=dict(policy_kwargs=told))
    assert same_weights(snapshot(loaded.policy), snapshot(agent.policy))


def test_weights_of_no_variant_for_rl_are_called_nothing() -> None:
    space = spaces.Box(0, 255, (3, 16, 20), np.uint8)
    with pytest.raises(RuntimeError, match="size mismatch") as refused:
        MNV4Extractor(space).load_state_dict(MNV4Extractor(space, features_dim=64).state_dict())
    assert "variant" not in str(refused.value)


def test_weights_that_load_draw_no_random_numbers() -> None:
    """Neither those of the head alone, nor those beside numbers that are not the network's."""
    space = spaces.Box(0, 255, (3, 16, 20), np.uint8)
    extractor, beside = MNV4Extractor(space), MNV4Extractor(space)
    head = {key: value for key, value in extractor.state_dict().items() if ".head." in key}
    beside.normalize = nn.BatchNorm2d(3)
    before = th.get_rng_state()
    extractor.load_state_dict(head, strict=False)
    beside.load_state_dict(beside.state_dict())
    assert th.equal(th.get_rng_state(), before)


class FloatImageEnv(FakeImageEnv):
    """Pictures as floats in [0, 1], height x width x channels: SB3 does not transpose those."""

    def __init__(self) -> None:
        super().__init__(4, 16, 20, 3)
        self.observation_space = spaces.Box(0.0, 1.0, (16, 20, 3), np.float32)


def test_sb3_moves_the_channels_of_uint8_images_and_the_extractor_those_of_floats(tmp_path: Path) -> None:
    by_sb3, by_extractor = make_agent(PPO), make_agent(PPO, FloatImageEnv())
    assert not first_encoder(by_sb3).channels_last
    assert first_encoder(by_extractor).channels_last
    assert first_encoder(by_sb3).image_shape == first_encoder(by_extractor).image_shape == (3, 16, 20)
    assert_learns_saves_and_loads(by_extractor, tmp_path)


@pytest.mark.parametrize("env", [None, SimpleMultiObsEnv()], ids=["image", "Dict"])
def test_unscaled_images_are_refused_at_first_use(env: Any) -> None:
    agent = make_agent(PPO, env, normalize_images=False)
    with pytest.raises(ValueError, match=r"divided by 255. Drop normalize_images=False from policy_kwargs"):
        agent.predict(observations(agent))


# Initialisation: the same under every algorithm, and nobody's but the extractor's own


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_agents_encoder_is_the_one_its_seed_gives_alone(algorithm: type[BaseAlgorithm], seed: int) -> None:
    agent = make_agent(algorithm, seed=seed)
    set_random_seed(seed)
    alone = MNV4Extractor(agent.observation_space)
    assert same_weights(snapshot(first_encoder(agent)), snapshot(alone))


class Recorded(MNV4Extractor):
    """Remembers the weights it was built with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.at_birth = snapshot(self)


class RecordedCombined(MNV4CombinedExtractor):
    """Remembers the weights it was built with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.at_birth = snapshot(self)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("env", "extractor"), [(None, Recorded), (SimpleMultiObsEnv(), RecordedCombined)], ids=["image", "Dict"]
)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_orthogonal_init_passes_every_encoder_by(
    algorithm: type[BaseAlgorithm], env: Any, extractor: type, shared: bool
) -> None:
    agent = make_agent(algorithm, env, features_extractor_class=extractor, share_features_extractor=shared)
    built = {agent.policy.pi_features_extractor, agent.policy.vf_features_extractor}
    assert len(built) == (1 if shared else 2)
    for encoder in built:
        assert same_weights(encoder.at_birth, snapshot(encoder))


def test_actor_and_critic_keep_sb3s_orthogonal_init() -> None:
    policy = make_agent(PPO).policy
    for layer, gain in ((policy.action_net, 0.01), (policy.value_net, 1.0)):
        gram = layer.weight @ layer.weight.T
        assert th.allclose(gram, gain**2 * th.eye(len(gram)), atol=1e-5 * gain**2)
        assert not layer.bias.any()


def test_every_other_function_still_applies() -> None:
    extractor = MNV4Extractor(spaces.Box(0, 255, (3, 16, 16), np.uint8), features_dim=8)

    def fill(module: nn.Module, value: float) -> None:
        for parameter in module.parameters(recurse=False):
            nn.init.constant_(parameter, value)

    assert extractor.apply(partial(fill, value=0.25)) is extractor
    assert all((parameter == 0.25).all() for parameter in extractor.parameters())
    before = snapshot(extractor)
    assert extractor.apply(partial(BasePolicy.init_weights, gain=1.0)) is extractor
    assert same_weights(before, snapshot(extractor))


class Pretrained(MNV4Extractor):
    """Loads weights while it is built, as one would from a file."""

    def __init__(self, observation_space: spaces.Box, state: dict[str, Tensor]) -> None:
        super().__init__(observation_space)
        self.load_state_dict(state)


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_pretrained_weights_survive_the_policy(algorithm: type[BaseAlgorithm]) -> None:
    state = MNV4Extractor(spaces.Box(0, 255, (3, 16, 20), np.uint8)).state_dict()
    kwargs = dict(state=state)
    agent = make_agent(algorithm, features_extractor_class=Pretrained, features_extractor_kwargs=kwargs)
    assert all(same_weights(state, snapshot(extractor)) for extractor in extractors_of(agent))


# Signal on real pictures


@pytest.fixture(scope="module")
def pong() -> Tensor:
    """256 stacked Pong frames of random play, (256, 4, 84, 84) uint8."""
    env = AtariVectorEnv("pong", 8, autoreset_mode="SameStep", num_threads=1)
    actions = np.random.default_rng(0).integers(0, 6, (32, 8))
    env.reset(seed=0)
    frames = [env.step(action)[0].copy() for action in actions]
    env.close()
    return th.as_tensor(np.concatenate(frames))


def named_outputs(extractor: MNV4Extractor, images: Tensor) -> dict[str, Tensor]:
    """What the stem, every block and the head return, channels first and everything else flattened; no constants."""
    outputs: dict[str, Tensor] = {}
    network = extractor.network
    blocks = itertools.chain.from_iterable(network.stages)
    modules = dict(stem=network.stem, **{f"block {i}": block for i, block in enumerate(blocks)}, head=network.head)

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[name] = output.transpose(0, 1).flatten(1).clone()  # (channels, N * H * W)

    handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules.items()]
    with th.inference_mode():
        extractor(images)
    for handle in handles:
        handle.remove()
    outputs["head"] = outputs["head"][: network.spec.head.image_features]
    return outputs


def signal(extractor: MNV4Extractor, images: Tensor) -> Iterator[tuple[str, float, float, int]]:
    """Name, std over everything, mean std of a channel over batch and space, dead channels."""
    for name, output in named_outputs(extractor, images).items():
        by_channel = output.std(1)
        yield name, float(output.std()), float(by_channel.mean()), int((by_channel < 1e-5).sum())


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_every_block_carries_a_healthy_signal_from_real_frames(algorithm: type[BaseAlgorithm], pong: Tensor) -> None:
    extractor = first_encoder(make_agent(algorithm, PONG(), seed=0))
    for name, pooled, by_channel, dead in signal(extractor, pong):
        assert dead == 0, f"{name}: {dead} channels do not change over the frames"
        if name != "head":  # features of one game's first seconds differ little, which is no fault
            assert 0.5 <= pooled <= 2.0, name
        if name.startswith("block"):  # the stem sees mostly one constant background patch
            assert 0.5 <= by_channel <= 2.0, name


def test_the_signal_does_not_hang_on_a_lucky_seed(pong: Tensor) -> None:
    by_block: dict[str, list[float]] = {}
    for seed in range(5):
        th.manual_seed(seed)
        for name, pooled, by_channel, dead in signal(MNV4Extractor(PONG().observation_space), pong):
            assert dead == 0, (name, seed)
            assert name == "head" or 0.5 <= pooled <= 2.0, (name, seed)
            by_block.setdefault(name, []).append(by_channel)
    assert all(0.5 <= np.mean(stds) <= 2.0 for name, stds in by_block.items() if name.startswith("block")), by_block


# Modes


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_collecting_and_predicting_change_nothing(algorithm: type[BaseAlgorithm]) -> None:
    agent = make_agent(algorithm, learning_rate=0.0)  # what still moves moves by collecting, or by a module's mode
    named = agent.policy.named_modules()  # targets are left out: averaging a weight with itself rounds
    online = [module for name, module in named if isinstance(module, MNV4Extractor) and "target" not in name]
    before = [snapshot(extractor) for extractor in online]
    agent.learn(32)
    agent.predict(observations(agent))
    assert online
    assert all(map(same_weights, before, map(snapshot, online)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_acts_the_same_in_train_and_eval_mode(algorithm: type[BaseAlgorithm]) -> None:
    agent = make_agent(algorithm)
    obs = th.as_tensor(observations(agent))
    actions = []
    for mode in (True, False):
        agent.policy.set_training_mode(mode)
        with th.inference_mode():
            actions.append(agent.policy(obs, deterministic=True))
    first, second = [out[0] if isinstance(out, tuple) else out for out in actions]
    assert th.equal(first, second)


@pytest.mark.parametrize(
    ("make", "cure"),
    [(PONG, {"norm_obs": False}), (partial(SimpleMultiObsEnv, channel_last=False), {"norm_obs_keys": ["vec"]})],
    ids=["image", "dict"],
)
def test_an_image_that_vec_normalize_normalised_is_told_its_cure(make: Any, cure: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\[-10, 10\].*norm_obs=False.*norm_obs_keys"):
        make_agent(PPO, VecNormalize(DummyVecEnv([make])))
    make_agent(PPO, VecNormalize(DummyVecEnv([make]), **cure))
