"""Models of timm as RL encoders: what they see, what training leaves alone, files, refusals."""

import json
import sys
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

from mnv4_rl import MNV4CombinedExtractor, MNV4Extractor, create_model, load_agent, save_agent
from mnv4_rl.agent_files import AGENT, TENSORS, writer
from mnv4_rl.export import OnnxAgent, fold, to_onnx
from mnv4_rl.models.timm_network import TIMM_INSTALL_LINE, import_timm
from mnv4_rl.policies import MNV4DQNPolicy, MNV4Policy
from mnv4_rl.sealed_folders import write_folder
from mnv4_rl.weights import save_weights
from tests.mnv4_rl.weights.timm_reference import timm_model

SIDE = 64
# timm's own toys: norms with activations in them, a transformer of fixed size, a map with its channels last.
MODELS = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"]
ALGORITHMS = {
    PPO: {"policy": MNV4Policy, "n_steps": 16, "batch_size": 8, "n_epochs": 1, "learning_rate": 0.01},
    DQN: {"policy": MNV4DQNPolicy, "buffer_size": 64, "learning_starts": 8, "batch_size": 8, "learning_rate": 0.01},
}


def space(channels: int = 4, side: int = SIDE) -> spaces.Box:
    return spaces.Box(0, 255, (channels, side, side), np.uint8)


def images(channels: int = 4, n: int = 3, side: int = SIDE) -> th.Tensor:
    return th.randint(0, 256, (n, channels, side, side), dtype=th.uint8, generator=th.Generator().manual_seed(0))


def checkpoint(name: str, folder: Path) -> Path:
    """A classifier's file, with statistics unlike those of a fresh model."""
    th.manual_seed(1)
    model = timm_model(name)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif key.endswith("running_mean"):
            tensor.normal_(0, 0.2)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    return checkpoint("test_resnet", tmp_path)


def make_agent(algorithm: type[BaseAlgorithm], variant: str = "timm:test_resnet", **kwargs: object) -> BaseAlgorithm:
    env = FakeImageEnv(screen_height=SIDE, screen_width=SIDE, n_channels=4, discrete=True)
    policy_kwargs = {"variant": variant, "features_dim": 16, "features_extractor_kwargs": kwargs}
    settings = ALGORITHMS[algorithm]
    policy = settings["policy"]
    rest = {key: value for key, value in settings.items() if key != "policy"}
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **rest)


def extractor_of(agent: BaseAlgorithm) -> MNV4Extractor:
    return agent.policy.features_extractor if isinstance(agent, PPO) else agent.policy.q_net.features_extractor


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_timms_own_of_normalised_images(name: str, channels: int, tmp_path: Path) -> None:
    path = checkpoint(name, tmp_path)
    extractor = MNV4Extractor(space(channels), 16, variant=f"timm:{name}", pretrained=path, frozen=True)
    timm = import_timm()
    size = {"img_size": SIDE} if name == "test_vit" else {}
    overlay = {"file": str(path)}
    theirs = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=(-1,),
        in_chans=channels, **size,
    ).eval()  # fmt: skip
    config = timm.get_pretrained_cfg(name)
    repeats = channels // 3 if channels % 3 == 0 else 0
    mean, std = (
        th.tensor(colours * repeats if repeats else [sum(colours) / 3] * channels).view(-1, 1, 1)
        for colours in (list(config.mean), list(config.std))
    )
    batch = images(channels)
    expected = theirs((batch.float() / 255 - mean) / std)[-1]
    th.testing.assert_close(extractor.network.trunk(extractor.normalize(batch)), expected, rtol=1e-4, atol=1e-4)
    assert extractor(batch).shape == (3, 16)
    th.testing.assert_close(extractor(batch.float() / 255), extractor(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_grid_of_one_reads_what_the_model_pools(name: str, tmp_path: Path) -> None:
    path = checkpoint(name, tmp_path)
    extractor = MNV4Extractor(space(3), 16, variant=f"timm:{name}", pretrained=path, grid=1)
    overlay, size = {"file": str(path)}, {"img_size": SIDE} if name == "test_vit" else {}
    theirs = timm_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **size).eval()
    normal = extractor.normalize(images(3))
    th.testing.assert_close(extractor.network.trunk(normal).flatten(1), theirs(normal))


def test_channels_last_maps_are_turned() -> None:
    extractor = MNV4Extractor(space(3), 16, variant="timm:swin_tiny_patch4_window7_224")
    assert extractor.network.trunk(th.zeros(1, 3, SIDE, SIDE)).shape == (1, 768, 2, 2)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_leaves_statistics_alone_and_a_frozen_trunk_whole(
    algorithm: type[BaseAlgorithm], frozen: bool, resnet: Path
) -> None:
    agent = make_agent(algorithm, pretrained=resnet, frozen=frozen)
    network = extractor_of(agent).network
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    agent.learn(32)
    moved = {key for key, tensor in network.state_dict().items() if not th.equal(tensor, before[key])}
    assert "head.fc.weight" in moved
    assert any(key.startswith("trunk") for key in moved) is not frozen
    assert not any("running" in key or "num_batches" in key for key in moved)
    network.train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


@pytest.mark.parametrize("name", MODELS)
def test_train_and_eval_mode_agree(name: str) -> None:
    extractor = MNV4Extractor(space(), 16, variant=f"timm:{name}")
    as_built = extractor(images())
    assert th.equal(extractor.train()(images()), as_built) and th.equal(extractor.eval()(images()), as_built)


def test_from_scratch_there_is_no_batch_norm_and_every_weight_learns() -> None:
    extractor = MNV4Extractor(space(), 16, variant="timm:test_resnet")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in extractor.modules())
    extractor(images()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())


def test_from_scratch_norms_start_as_timms_and_the_head_as_our_own() -> None:
    """The last norm of a residual branch starts at 0 in timm, so that the branch adds nothing at first."""
    network = MNV4Extractor(space(), 16, variant="timm:test_resnet").network
    silent = [
        sum(not module.weight.any() for module in model.modules() if isinstance(module, kind))
        for model, kind in ((timm_model("test_resnet"), nn.BatchNorm2d), (network.trunk, nn.GroupNorm))
    ]
    assert silent[0] == silent[1] > 0
    fc = network.head.fc
    assert fc.weight.std().item() == pytest.approx((2 / fc.in_features) ** 0.5, rel=0.05)  # He's, not PyTorch's


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_agent_needs_no_file(
    algorithm: type[BaseAlgorithm], pretrained: bool, resnet: Path, tmp_path: Path
) -> None:
    agent = make_agent(algorithm, pretrained=resnet if pretrained else False, frozen=pretrained)
    agent.learn(32)
    save_agent(agent, tmp_path / "agent")
    resnet.unlink()
    loaded = load_agent(tmp_path / "agent", device="cpu")
    assert extractor_of(loaded).network.spec.name == "timm:test_resnet"
    for key, tensor in agent.policy.state_dict().items():
        assert th.equal(loaded.policy.state_dict()[key], tensor), key
    batch = images(n=8).numpy()
    assert np.array_equal(loaded.predict(batch, deterministic=True)[0], agent.predict(batch, deterministic=True)[0])


@pytest.mark.parametrize("name", ["hf-hub:somebody/model", "local-dir:/tmp", "../model", "", "resnet18.nope", 7])
def test_an_agents_file_names_models_of_timm_alone(name: object, tmp_path: Path) -> None:
    save_agent(make_agent(PPO), tmp_path / "agent")
    folder = tmp_path / "agent"
    data = json.loads((folder / AGENT).read_text())
    data["encoder"]["spec"]["model"] = name
    content = {AGENT: json.dumps(data).encode(), TENSORS: (folder / TENSORS).read_bytes()}
    write_folder(folder, {file: writer(written) for file, written in content.items()})
    with pytest.raises(ValueError, match=r"model|weights"):
        load_agent(folder, device="cpu")


@pytest.mark.parametrize("pretrained", [True, False])
def test_folded(pretrained: bool, resnet: Path) -> None:
    agent = make_agent(PPO, pretrained=resnet if pretrained else False)
    expected = agent.policy.get_distribution(images()).distribution.logits
    th.testing.assert_close(fold(agent)(images())[0].log_softmax(1), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_exported(name: str, tmp_path: Path) -> None:
    agent = make_agent(DQN, f"timm:{name}", pretrained=checkpoint(name, tmp_path))
    batch = images(n=16).numpy()
    assert to_onnx(agent, tmp_path / "agent.onnx", frames=batch).same_actions == 16
    actions, _ = OnnxAgent(tmp_path / "agent.onnx").predict(batch, deterministic=True)
    assert np.array_equal(actions, agent.predict(batch, deterministic=True)[0])


class TwoCameras(gym.Env):
    observation_space = spaces.Dict(left=space(3), right=space(1), speed=spaces.Box(-1, 1, (2,)))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_every_image_of_a_dict(resnet: Path, tmp_path: Path) -> None:
    kwargs = {"variant": "timm:test_resnet", "features_extractor_kwargs": {"pretrained": resnet, "frozen": True}}
    agent = PPO(MNV4Policy, TwoCameras(), n_steps=8, batch_size=8, policy_kwargs=kwargs, seed=0, device="cpu")
    assert isinstance(agent.policy.features_extractor, MNV4CombinedExtractor)
    agent.learn(8)
    save_agent(agent, tmp_path / "agent")
    resnet.unlink()
    loaded = load_agent(tmp_path / "agent", device="cpu")
    samples = [TwoCameras.observation_space.sample() for _ in range(6)]
    batch = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    expected, _ = agent.predict(batch, deterministic=True)
    assert np.array_equal(loaded.predict(batch, deterministic=True)[0], expected)
    tensors = {key: th.as_tensor(values) for key, values in batch.items()}
    assert np.array_equal(fold(loaded)(tensors)[1].numpy(), expected)


class TestRefusals:
    def test_without_timm_the_install_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ModuleNotFoundError) as refused:
            MNV4Extractor(space(), variant="timm:resnet18")
        assert TIMM_INSTALL_LINE in str(refused.value)

    def test_an_unknown_model_its_close_matches(self) -> None:
        with pytest.raises(ValueError, match="resnet18"):
            MNV4Extractor(space(), variant="timm:resnet81")

    def test_unknown_weights_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match="a1_in1k"):
            MNV4Extractor(space(), variant="timm:resnet18.nope")

    def test_images_that_the_model_cannot_read(self) -> None:
        with pytest.raises(ValueError, match=r"84x84.*160x160"):
            MNV4Extractor(space(side=84), variant="timm:test_vit")

    def test_another_models_file(self, resnet: Path) -> None:
        with pytest.raises(ValueError, match="does not fit timm's test_vit"):
            MNV4Extractor(space(), variant="timm:test_vit", pretrained=resnet)
        with pytest.raises(ValueError, match="does not fit timm's test_efficientnet"):
            MNV4Extractor(space(), variant="timm:test_efficientnet", pretrained=resnet)

    def test_weights_that_are_no_numbers(self, tmp_path: Path) -> None:
        state = {key: tensor.clone() for key, tensor in timm_model("test_resnet").state_dict().items()}
        next(iter(state.values())).fill_(np.nan)
        save_file(state, tmp_path / "nan.safetensors")
        with pytest.raises(ValueError, match="NaN"):
            MNV4Extractor(space(), variant="timm:test_resnet", pretrained=tmp_path / "nan.safetensors")

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.warns(UserWarning, match="There is no file"):
            extractor = MNV4Extractor(space(), variant="timm:test_resnet", pretrained="typo.safetensors")
        with pytest.raises(FileNotFoundError):
            extractor(images())

    def test_frozen_random_weights(self) -> None:
        with pytest.raises(ValueError, match="pretrained"):
            MNV4Extractor(space(), variant="timm:test_resnet", frozen=True)

    def test_what_belongs_to_our_own_networks_alone(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="MNV4Extractor"):
            create_model("timm:resnet18")
        extractor = MNV4Extractor(space(), variant="timm:test_resnet")
        with pytest.raises(TypeError, match="NetworkSpec"):
            save_weights(extractor.network, tmp_path / "a.safetensors")
        assert not (tmp_path / "a.safetensors").exists()


def test_the_statistics_beside_the_file_win(resnet: Path) -> None:
    config = {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    resnet.with_name("config.json").write_text(json.dumps(config))
    normalize = MNV4Extractor(space(3), variant="timm:test_resnet", pretrained=resnet).normalize
    assert normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_torchvision_is_not_left_behind() -> None:
    import_timm()
    assert "torchvision" not in sys.modules or sys.modules["torchvision"].__spec__ is not None
