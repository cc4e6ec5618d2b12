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

from mnv4_rl import (
    MNV4CombinedExtractor,
    MNV4Extractor,
    create_model,
    list_models,
    load_agent,
    load_zip_weights,
    save_agent,
)
from mnv4_rl.export import fold
from mnv4_rl.weights.files import read_header, write_safetensors
from mnv4_rl.weights.loading import adapt_stem, load_weights, save_weights, to_timm_state_dict
from mnv4_rl.weights.tensors import plain_names

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


class TestStatistics:
    """Images reach trained weights as they were in that training; the borders too, which are padded behind it."""

    def extractor(self, checkpoint, channels=3, **kwargs):
        space = spaces.Box(0, 255, (channels, SIDE, SIDE), np.uint8)
        return MNV4Extractor(space, 16, variant="mnv4_conv_s", pretrained=checkpoint, **kwargs)

    def expected(self, extractor, images, mean, std):
        shape = (1, -1, 1, 1)
        return extractor.network((images.float() / 255 - th.tensor(mean).view(shape)) / th.tensor(std).view(shape))

    @pytest.mark.parametrize("channels", [1, 3, 4, 6])
    def test_imagenets_by_default(self, checkpoint: Path, channels: int) -> None:
        extractor = self.extractor(checkpoint, channels)
        images = th.randint(0, 256, (2, channels, SIDE, SIDE), dtype=th.uint8)
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        if channels % 3:
            mean, std = [sum(mean) / 3], [sum(std) / 3]
        else:
            mean, std = mean * (channels // 3), std * (channels // 3)
        expected = self.expected(extractor, images, mean, std)
        th.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-4)
        th.testing.assert_close(extractor(images.float() / 255), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["mobilenetv4_conv_small.e3600_r256_in1k", "mobilenetv4_conv_small_050"])
    def test_timms_other_ones_by_the_files_name(self, checkpoint: Path, name: str) -> None:
        extractor = self.extractor(checkpoint.rename(checkpoint.with_name(f"{name}.safetensors")))
        assert extractor.normalize.mean.unique().item() == extractor.normalize.std.unique().item() == 0.5

    @pytest.mark.parametrize(
        ("config", "mean"),
        [
            ('{"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}', 0.1),
            ('{"pretrained_cfg": {"mean": [0.1], "std": [0]}}', 0.485),
            ('{"pretrained_cfg": {"mean": [NaN, 0, 0], "std": [1, 1, 1]}}', 0.485),
            ('{"pretrained_cfg": {"mean": [1' + 400 * "0" + ', 0, 0], "std": [1, 1, 1]}}', 0.485),
            ("[]", 0.485),
            ("{", 0.485),
        ],
    )
    def test_the_hubs_config_knows_best(self, checkpoint: Path, config: str, mean: float) -> None:
        checkpoint.with_name("config.json").write_text(config)
        assert self.extractor(checkpoint).normalize.mean[0].item() == pytest.approx(mean)

    def test_none_for_images_that_are_normalised_and_for_our_own_weights(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        assert self.extractor(checkpoint, normalized_image=True).normalize.mean.abs().sum() == 0
        save_weights(create_model("mnv4_conv_s", num_classes=0), tmp_path / "own.safetensors")
        own = self.extractor(tmp_path / "own.safetensors").normalize
        assert own.mean.abs().sum() == 0 and own.std.unique().item() == 1

    def test_saved_weights_say_theirs(self, checkpoint: Path, tmp_path: Path) -> None:
        again, grey = tmp_path / "again.safetensors", tmp_path / "grey.safetensors"
        save_weights(create_model("mnv4_conv_s", pretrained=checkpoint), again)
        assert self.extractor(again).normalize.mean[:, 0, 0].tolist() == pytest.approx([0.485, 0.456, 0.406])
        for extractor in (self.extractor(again, 1), self.extractor(checkpoint, 1)):
            save_weights(extractor.network, grey)
            read = self.extractor(grey, 1).normalize
            assert read.mean.item() == pytest.approx(0.449) and read.std.item() == pytest.approx(0.226)
        save_weights(create_model("mnv4_conv_s"), again, ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)))
        assert self.extractor(again).normalize.std[:, 0, 0].tolist() == [1, 2, 3]
        model = create_model("mnv4_conv_s")
        load_weights(model, again)
        assert model.image_statistics[0] == (0.1, 0.2, 0.3)

    def test_weights_of_a_loaded_agent_say_theirs(self, checkpoint: Path, tmp_path: Path) -> None:
        save_agent(make_agent(PPO, pretrained=checkpoint), tmp_path / "agent")
        loaded = extractor_of(load_agent(tmp_path / "agent", device="cpu"))
        save_weights(loaded.network, tmp_path / "own.safetensors")
        again = self.extractor(tmp_path / "own.safetensors", 4)
        assert th.equal(again.normalize.mean, loaded.normalize.mean) and loaded.normalize.mean.min() > 0.4

    def test_weights_of_a_zip_say_theirs(self, checkpoint: Path, tmp_path: Path) -> None:
        agent = make_agent(PPO, pretrained=checkpoint)
        agent.save(tmp_path / "agent.zip")
        checkpoint.unlink()
        with pytest.warns(UserWarning, match="brings its own weights"):
            loaded = make_agent(PPO, pretrained=checkpoint)
        load_zip_weights(loaded, tmp_path / "agent.zip")
        save_weights(extractor_of(loaded).network, tmp_path / "own.safetensors")
        again = self.extractor(tmp_path / "own.safetensors", 4)
        assert th.equal(again.normalize.mean, extractor_of(agent).normalize.mean) and again.normalize.mean.min() > 0.4

    @pytest.mark.parametrize("said", ["[[0.5], [0]]", "[[0.5, 0.5], [1]]", "[[0.5], [NaN]]", "{}", "[[], []]"])
    def test_what_is_no_statistics_is_refused(self, tmp_path: Path, said: str, trained: nn.Module) -> None:
        path = tmp_path / "own.safetensors"
        save_weights(trained, path)
        _, metadata = read_header(path.open("rb"), path)
        write_safetensors(path, plain_names(trained.state_dict()), metadata | {"image_statistics": said})
        with pytest.raises(ValueError, match="image_statistics of "):
            self.extractor(path)

    @pytest.mark.parametrize("statistics", [((0.5,), (0.0,)), ((0.5, 0.5), (1.0,)), ((float("nan"),), (1.0,))])
    def test_what_could_not_be_read_is_not_written(self, tmp_path: Path, statistics, trained: nn.Module) -> None:
        path = tmp_path / "own.safetensors"
        path.write_bytes(b"as it was")
        with pytest.raises(ValueError, match="image_statistics of "):
            save_weights(trained, path, statistics)
        assert path.read_bytes() == b"as it was"

    def test_images_below_zero_are_refused(self, checkpoint: Path) -> None:
        space = spaces.Box(-1, 1, (3, SIDE, SIDE), np.float32)
        with pytest.raises(ValueError, match=r"know images in \[0, 1\] less their mean, and this space begins at -1"):
            MNV4Extractor(space, 16, variant="mnv4_conv_s", pretrained=checkpoint)
        MNV4Extractor(space, 16, variant="mnv4_conv_s", pretrained=checkpoint, normalized_image=True)

    def test_in_half_precision(self, checkpoint: Path) -> None:
        images = th.randint(0, 256, (2, 3, SIDE, SIDE), dtype=th.uint8)
        extractor = self.extractor(checkpoint)
        exact = extractor(images)
        th.testing.assert_close(extractor.bfloat16()(images).float(), exact, rtol=0.2, atol=0.2)

    def test_they_are_part_of_a_saved_agent(self, checkpoint: Path, tmp_path: Path) -> None:
        agent = make_agent(PPO, pretrained=checkpoint)
        save_agent(agent, tmp_path / "agent")
        checkpoint.unlink()
        loaded = load_agent(tmp_path / "agent", device="cpu")
        assert th.equal(extractor_of(loaded).normalize.mean, extractor_of(agent).normalize.mean)
        batch = th.as_tensor(some_observations())
        th.testing.assert_close(loaded.policy.predict_values(batch), agent.policy.predict_values(batch))

    def test_folded(self, checkpoint: Path) -> None:
        agent = make_agent(PPO, pretrained=checkpoint)
        batch = th.as_tensor(some_observations())
        expected = agent.policy.get_distribution(batch).distribution.logits
        th.testing.assert_close(fold(agent)(batch)[0].log_softmax(1), expected, rtol=1e-3, atol=1e-4)
