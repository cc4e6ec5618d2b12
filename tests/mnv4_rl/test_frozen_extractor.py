"""Paper models as RL encoders: pretrained, frozen, from scratch; in training, and on a machine without the file."""

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from safetensors.torch import save_file
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.envs import FakeImageEnv
from torch import nn

from mnv4_rl import MNV4CombinedExtractor, MNV4Extractor, create_model, list_models
from mnv4_rl.weights.loading import adapt_stem, save_weights, to_timm_state_dict

SIDE = 40
SPACE = spaces.Box(0, 255, (4, SIDE, SIDE), np.uint8)
ALGORITHMS = {
    PPO: {"n_steps": 16, "batch_size": 8, "n_epochs": 1, "learning_rate": 0.01},
    DQN: {"buffer_size": 64, "learning_starts": 8, "batch_size": 8, "target_update_interval": 8, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A classifier with statistics and scales unlike those of a fresh model."""
    model = create_model("mnv4_conv_s", num_classes=3)
    generator = th.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.dim() == 1:
            tensor.normal_(0.5, 0.1, generator=generator)
    return model


@pytest.fixture
def checkpoint(trained: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "mobilenetv4_conv_small.safetensors"
    save_file({key: tensor.clone() for key, tensor in to_timm_state_dict(trained).items()}, path)
    return path


def make_env() -> gym.Env:
    return FakeImageEnv(screen_height=SIDE, screen_width=SIDE, n_channels=4, discrete=True)


def make_agent(algorithm: type[BaseAlgorithm], **extractor_kwargs: object) -> BaseAlgorithm:
    policy_kwargs = {
        "features_extractor_class": MNV4Extractor,
        "features_extractor_kwargs": {"variant": "mnv4_conv_s", "features_dim": 16, **extractor_kwargs},
        "net_arch": [],
    }
    kwargs = ALGORITHMS[algorithm]
    return algorithm("CnnPolicy", make_env(), policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)


def extractor_of(agent: BaseAlgorithm) -> MNV4Extractor:
    return agent.policy.features_extractor if isinstance(agent, PPO) else agent.policy.q_net.features_extractor


def trunk(extractor: MNV4Extractor) -> dict[str, th.Tensor]:
    state = extractor.network.state_dict()
    return {key: tensor.clone() for key, tensor in state.items() if not key.startswith("head.")}


def changed(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    return {key for key in before if not th.equal(before[key], after[key])}


def some_observations() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, SIDE, SIDE), dtype=np.uint8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_weights_survive_the_algorithms_initialisation(
    algorithm: type[BaseAlgorithm], checkpoint: Path, trained: nn.Module
) -> None:
    expected = trained.state_dict()
    for key, tensor in trunk(extractor_of(make_agent(algorithm, pretrained=checkpoint))).items():
        if key == "stem.conv.conv.weight":
            assert th.equal(tensor, adapt_stem(expected[key], 4))
        else:
            assert th.equal(tensor, expected[key]), key


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_frozen_trunk_never_changes(algorithm: type[BaseAlgorithm], checkpoint: Path) -> None:
    agent = make_agent(algorithm, pretrained=str(checkpoint), frozen=True)
    extractor = extractor_of(agent)
    before = trunk(extractor)
    head = extractor.network.head.fc.weight.clone()
    agent.learn(32)
    assert changed(before, trunk(extractor)) == set()
    assert not th.equal(extractor.network.head.fc.weight, head)
    frozen = [*extractor.network.stem.parameters(), *extractor.network.stages.parameters()]
    assert frozen and all(parameter.grad is None for parameter in frozen)
    assert not any(parameter in agent.policy.optimizer.state for parameter in frozen)
    assert extractor.network.head.fc.weight in agent.policy.optimizer.state


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_pretrained_trunk_is_trained_but_for_its_statistics(algorithm: type[BaseAlgorithm], checkpoint: Path) -> None:
    agent = make_agent(algorithm, pretrained=checkpoint)
    before = trunk(extractor_of(agent))
    agent.learn(32)
    moved = changed(before, trunk(extractor_of(agent)))
    assert "stem.conv.conv.weight" in moved and "stages.4.0.norm.weight" in moved
    assert not any("running" in key or "num_batches" in key for key in moved)


@pytest.mark.parametrize("frozen", [True, False])
def test_train_and_eval_mode_agree(frozen: bool, checkpoint: Path) -> None:
    extractor = MNV4Extractor(SPACE, variant="mnv4_conv_s", pretrained=checkpoint, frozen=frozen)
    before = trunk(extractor)
    images = th.rand(5, 4, SIDE, SIDE)
    as_built = extractor(images)
    assert th.equal(extractor.train()(images), as_built)
    assert th.equal(extractor.eval()(images), as_built)
    assert changed(before, trunk(extractor)) == set()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_agent_loads_where_the_file_is_not(
    algorithm: type[BaseAlgorithm], frozen: bool, checkpoint: Path, tmp_path: Path
) -> None:
    agent = make_agent(algorithm, pretrained=checkpoint, frozen=frozen)
    agent.learn(32)
    agent.save(tmp_path / "agent.zip")
    actions = agent.predict(some_observations(), deterministic=True)[0]
    checkpoint.unlink()
    with pytest.warns(UserWarning, match="an agent that is being loaded brings its own weights".capitalize()):
        loaded = algorithm.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    assert changed(trunk(extractor_of(agent)), trunk(extractor_of(loaded))) == set()
    assert np.array_equal(loaded.predict(some_observations(), deterministic=True)[0], actions)
    before = trunk(extractor_of(loaded))
    loaded.learn(32)
    assert bool(changed(before, trunk(extractor_of(loaded)))) is not frozen


def test_a_loaded_agents_weights_win_over_the_files(checkpoint: Path, tmp_path: Path) -> None:
    agent = make_agent(PPO, pretrained=checkpoint)
    agent.learn(16)
    agent.save(tmp_path / "agent.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the file is there: nothing to warn of
        loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    assert changed(trunk(extractor_of(agent)), trunk(extractor_of(loaded))) == set()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_new_agent_without_its_file_warns_and_refuses_to_run(algorithm: type[BaseAlgorithm]) -> None:
    with pytest.warns(UserWarning, match=r"There is no file 'typo\.safetensors'.*a new one will refuse to run"):
        agent = make_agent(algorithm, pretrained="typo.safetensors")
    with pytest.raises(FileNotFoundError, match=r"The encoder has no weights: There is no file 'typo\.safetensors'"):
        agent.predict(some_observations())
    with pytest.raises(FileNotFoundError, match="The encoder has no weights"):
        agent.learn(32)


def test_copying_from_an_encoder_without_weights_does_not_count() -> None:
    """DQN copies the online network's state into its target network, whether or not it has weights."""
    with pytest.warns(UserWarning):
        one, other = (MNV4Extractor(SPACE, variant="mnv4_conv_s", pretrained="typo.safetensors") for _ in range(2))
    other.load_state_dict(one.state_dict())
    with pytest.raises(FileNotFoundError):
        other(th.rand(1, 4, SIDE, SIDE))


def test_a_file_that_does_not_fit_is_refused_at_once(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit mnv4_conv_m"):
        MNV4Extractor(SPACE, variant="mnv4_conv_m", pretrained=checkpoint)
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        make_agent(PPO, pretrained=tmp_path / "text.safetensors")


def test_every_image_of_a_dict_is_pretrained_and_frozen(checkpoint: Path, trained: nn.Module) -> None:
    space = spaces.Dict({"left": SPACE, "right": SPACE, "speed": spaces.Box(-1, 1, (2,))})
    combined = MNV4CombinedExtractor(space, 8, variant="mnv4_conv_s", pretrained=checkpoint, frozen=True)
    for key in ("left", "right"):
        stages = combined.extractors[key].network.stages
        assert th.equal(stages[4][0].conv.weight, trained.stages[4][0].conv.weight)
        assert not any(parameter.requires_grad for parameter in stages.parameters())


def test_random_weights_are_not_frozen() -> None:
    with pytest.raises(ValueError, match="frozen=True would keep random weights: pass pretrained"):
        MNV4Extractor(SPACE, variant="mnv4_conv_s", frozen=True)


def test_an_encoders_own_file_starts_the_next_encoder(tmp_path: Path) -> None:
    """Also the head, where it is the same; and a paper model trained from scratch has norms of its own."""
    first = MNV4Extractor(SPACE, features_dim=32, variant="rl_s")
    save_weights(first.network, tmp_path / "a.safetensors")
    second = MNV4Extractor(SPACE, features_dim=32, variant="rl_s", pretrained=tmp_path / "a.safetensors", frozen=True)
    images = th.rand(3, 4, SIDE, SIDE)
    assert th.equal(first(images), second(images))
    wider = MNV4Extractor(SPACE, features_dim=64, variant="rl_s", pretrained=tmp_path / "a.safetensors")
    assert changed(trunk(first), trunk(wider)) == set()


@pytest.mark.parametrize("name", list_models("paper"))
def test_from_scratch_there_is_no_batch_norm_and_the_signal_is_healthy(name: str) -> None:
    """The hybrids' layer scale and untrained BatchNorm would make features that ignore the image."""
    th.manual_seed(0)
    extractor = MNV4Extractor(spaces.Box(0, 255, (3, 64, 64), np.uint8), features_dim=64, variant=name)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in extractor.modules())
    images = th.rand(4, 3, 64, 64)
    features = extractor.train()(images)
    assert th.equal(features, extractor.eval()(images))
    assert 0.1 < float(features.detach().std(0).mean()) < 3
    features.square().mean().backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())
