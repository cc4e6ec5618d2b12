"""Every kind of agent a user builds comes back: algorithm x policy x encoder x spaces, compiled or not."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from mnv4_rl import MNV4CombinedExtractor, MNV4Extractor, create_model, load_agent, save_agent
from mnv4_rl.agent_format import describe
from mnv4_rl.baselines import ImpalaCNN, ImpoolaCNN
from mnv4_rl.models import registry
from mnv4_rl.models.width import scale_width
from mnv4_rl.policies import MNV4DQNPolicy, MNV4Policy, MNV4SACPolicy, MNV4TD3Policy, PixelActorCriticPolicy
from mnv4_rl.weights import save_weights
from tests.tiny_env import same

OURS = {"features_extractor_class": MNV4Extractor, "features_extractor_kwargs": {"features_dim": 16}, "net_arch": []}
OFF = {"buffer_size": 16, "learning_starts": 4, "batch_size": 4, "train_freq": 4}
OWN_SPEC = replace(registry.get_spec("rl_s"), name="mine", activation="gelu")


def images(discrete=True, **kwargs):
    return DummyVecEnv([lambda: FakeImageEnv(4, screen_height=40, screen_width=40, discrete=discrete, **kwargs)])


class Robot(gym.Env):
    """A camera, joints and a button."""

    observation_space = spaces.Dict(
        camera=spaces.Box(0, 255, (3, 40, 40), np.uint8),
        joints=spaces.Box(-np.inf, np.array([0.1, 2, np.inf], np.float32), (3,), np.float32),
        button=spaces.Discrete(2),
    )
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}


def robot():
    return DummyVecEnv([Robot])


class Switches(Robot):
    """A camera, and switches that are on or off."""

    observation_space = spaces.Dict(
        camera=spaces.Box(0, 255, (3, 40, 40), np.uint8), switches=spaces.Box(0, 1, (2, 2), np.bool_)
    )


def switches():
    return DummyVecEnv([Switches])


class Chess(Robot):
    """A camera, and twelve planes of a board: by its shape it could be eight."""

    observation_space = spaces.Dict(
        board=spaces.Box(0, 1, (12, 8, 8), np.float32), camera=spaces.Box(0, 255, (40, 40, 3), np.uint8)
    )


def chess():
    return DummyVecEnv([Chess])


class LeRobot(Robot):
    """A robot whose observations are named as LeRobot names them."""

    observation_space = spaces.Dict(
        {"observation.image": spaces.Box(0, 255, (3, 40, 40), np.uint8), "observation.state": spaces.Box(-1, 1, (2,))}
    )


def cameras(n_envs):
    return DummyVecEnv([lambda: FakeImageEnv(1, screen_height=40, screen_width=40, discrete=False)] * n_envs)


NORMAL = NormalActionNoise(np.zeros(5), np.full(5, 0.1))
DRIFTING = OrnsteinUhlenbeckActionNoise(np.zeros(5), np.full(5, 0.2), theta=0.1, dt=0.5, initial_noise=np.full(5, 0.3))


def ppo(env=images, policy="CnnPolicy", **policy_kwargs):
    return PPO(policy, env(), n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=policy_kwargs or None, device="cpu")


def compiled(make, part):
    def made():
        model = make()
        owner, name = (model, part) if part == "policy" else (model.policy, part)
        setattr(owner, name, th.compile(getattr(owner, name), backend="eager"))
        return model

    return made


def compiled_network():
    model = ppo(**OURS)
    extractor = model.policy.features_extractor
    extractor.network = th.compile(extractor.network, backend="eager")
    return model


KINDS = {
    "readme": lambda: ppo(features_extractor_class=MNV4Extractor, net_arch=[]),
    "nature": lambda: ppo(),
    "impala": lambda: ppo(features_extractor_class=ImpalaCNN),
    "impoola": lambda: ppo(
        features_extractor_class=ImpoolaCNN, features_extractor_kwargs={"channels": (4, 8), "features_dim": 9}
    ),
    "own spec": lambda: ppo(features_extractor_class=MNV4Extractor, features_extractor_kwargs={"variant": OWN_SPEC}),
    "paper": lambda: ppo(
        features_extractor_class=MNV4Extractor,
        features_extractor_kwargs={"variant": scale_width(registry.get_spec("mnv4_conv_s"), 0.35), "grid": 1},
    ),
    "tuples": lambda: ppo(**OURS | {"net_arch": (8, 8)}),
    "net_arch": lambda: ppo(**OURS | {"net_arch": {"pi": [8], "vf": [4, 4]}, "activation_fn": th.nn.SiLU}),
    "not shared": lambda: ppo(**OURS, share_features_extractor=False),
    "adamw": lambda: ppo(**OURS, optimizer_class=th.optim.AdamW, optimizer_kwargs={"amsgrad": True}),
    "sgd": lambda: ppo(**OURS, optimizer_class=th.optim.SGD, optimizer_kwargs={"momentum": 0.9}),
    "pixel": lambda: ppo(policy=PixelActorCriticPolicy, **OURS),
    "one argument": lambda: ppo(policy=MNV4Policy),
    "one argument, own variant": lambda: ppo(policy=MNV4Policy, variant="rl_m", features_dim=8),
    "dict": lambda: ppo(robot, "MultiInputPolicy", features_extractor_class=MNV4CombinedExtractor),
    "dict by sb3": lambda: ppo(robot, "MultiInputPolicy", features_extractor_class=CombinedExtractor),
    "dict, one argument": lambda: ppo(robot, MNV4Policy),
    "dict told by key": lambda: ppo(chess, MNV4Policy, features_extractor_kwargs={"channels_last": {"board": False}}),
    "dict with dots": lambda: ppo(lambda: DummyVecEnv([LeRobot]), MNV4Policy),
    "dict with a Box of bools": lambda: ppo(switches, MNV4Policy),
    "a2c": lambda: A2C("CnnPolicy", images(), policy_kwargs=dict(OURS), device="cpu"),
    "a2c, one argument": lambda: A2C(MNV4Policy, images(), device="cpu"),
    "a2c, adam": lambda: A2C("CnnPolicy", images(), policy_kwargs=dict(OURS), use_rms_prop=False, device="cpu"),
    "sde": lambda: PPO(
        "CnnPolicy", images(False), n_steps=8, batch_size=8, use_sde=True, policy_kwargs=dict(OURS), device="cpu"
    ),
    "dqn": lambda: DQN("CnnPolicy", images(), **OFF, policy_kwargs=dict(OURS), device="cpu"),
    "dqn, one argument": lambda: DQN(MNV4DQNPolicy, images(), **OFF, n_steps=3, device="cpu"),
    "sac": lambda: SAC("CnnPolicy", images(False), **OFF, policy_kwargs=dict(OURS), device="cpu"),
    "sac, one argument": lambda: SAC(MNV4SACPolicy, images(False), **OFF, ent_coef=0.1, device="cpu"),
    "td3": lambda: TD3(MNV4TD3Policy, images(False), **OFF, device="cpu"),
    "td3, noise": lambda: TD3(MNV4TD3Policy, cameras(2), **OFF, action_noise=NORMAL, device="cpu"),
    "ddpg": lambda: DDPG(
        "CnnPolicy", images(False), **OFF, policy_kwargs=dict(OURS), action_noise=DRIFTING, device="cpu"
    ),
    "compiled policy": compiled(lambda: ppo(**OURS), "policy"),
    "compiled extractor": compiled(lambda: ppo(**OURS), "features_extractor"),
    "compiled network": compiled_network,
}
CONTRIB = {
    "qrdqn": ("QRDQN", "MNV4QRDQNPolicy", images, OFF),
    "trpo": ("TRPO", "CnnPolicy", images, {"n_steps": 8, "batch_size": 8}),
    "recurrent": ("RecurrentPPO", "CnnLstmPolicy", images, {"n_steps": 8, "batch_size": 8}),
    "recurrent, one argument": ("RecurrentPPO", "MNV4RecurrentPolicy", images, {"n_steps": 8, "batch_size": 8}),
    "maskable": ("MaskablePPO", "CnnPolicy", images, {"n_steps": 8, "batch_size": 8}),
    "maskable, one argument": ("MaskablePPO", "MNV4MaskablePolicy", images, {"n_steps": 8, "batch_size": 8}),
    "tqc": ("TQC", "CnnPolicy", lambda: images(False), OFF),
}


def contrib(key):
    algorithm, policy, env, settings = CONTRIB[key]
    sb3_contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is an extra: pip install sb3-contrib")
    if policy.startswith("MNV4"):
        from mnv4_rl import contrib as ours

        policy = getattr(ours, policy)
    kwargs = dict(OURS) if isinstance(policy, str) else None
    return getattr(sb3_contrib, algorithm)(policy, env(), **settings, policy_kwargs=kwargs, device="cpu")


def actions(model, n=6):
    model.observation_space.seed(0)
    found = [model.observation_space.sample() for _ in range(n)]
    return [np.asarray(model.predict(each, deterministic=True)[0]).tolist() for each in found]


def train(model):
    masking = {"use_masking": False} if type(model).__name__ == "MaskablePPO" else {}
    model.learn(16, **masking)


def plain(state):
    return {key.replace("_orig_mod.", ""): value for key, value in state.items()}


SLOW = {"trpo", "recurrent", "recurrent, one argument"}


@pytest.mark.filterwarnings("error:.*precision lowered:UserWarning")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in (*KINDS, *CONTRIB)]
)
def test_an_agent_comes_back_and_trains_on(kind, tmp_path):
    model = KINDS[kind]() if kind in KINDS else contrib(kind)
    if not kind.startswith("compiled"):
        train(model)
    path = save_agent(model, tmp_path / "agent")
    loaded = load_agent(path, device="cpu")
    assert type(loaded) is type(model) and loaded.policy_class is model.policy_class
    assert (loaded.observation_space, loaded.action_space) == (model.observation_space, model.action_space)
    assert same(plain(model.policy.state_dict()), loaded.policy.state_dict())
    assert actions(model) == actions(loaded)
    assert json.loads((path / "agent.json").read_text()) == json.loads(
        (save_agent(loaded, tmp_path / "again") / "agent.json").read_text()
    )
    trained = load_agent(path, model.get_env(), device="cpu")
    for mine, theirs in zip(optimizers(model), optimizers(trained), strict=True):
        assert same(mine.state_dict(), theirs.state_dict())
    train(trained)
    assert not same(plain(model.policy.state_dict()), trained.policy.state_dict())


@pytest.mark.parametrize("kind", ["readme", "impala"])
def test_a_file_says_where_the_channels_are(kind):
    """It was found out when the agent was built, and later versions may find otherwise."""
    assert describe(KINDS[kind]()).encoder.arguments["channels_last"] is False


def optimizers(model):
    owners = (model.policy, getattr(model, "actor", None), getattr(model, "critic", None))
    return [owner.optimizer for owner in owners if hasattr(owner, "optimizer")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    spec = scale_width(registry.get_spec("mnv4_conv_s"), 0.35)
    path = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    save_weights(create_model(spec, 4, 0), path)
    return spec, path


@pytest.mark.parametrize("frozen", [False, True])
def test_a_pretrained_agent_needs_its_checkpoint_no_more_and_fetches_nothing(frozen, checkpoint, tmp_path, monkeypatch):
    spec, weights = checkpoint
    own = tmp_path / "own.safetensors"
    own.write_bytes(weights.read_bytes())
    arguments = {"variant": spec, "pretrained": own, "frozen": frozen, "features_dim": 16}
    model = ppo(
        lambda: images(n_channels=4), features_extractor_class=MNV4Extractor, features_extractor_kwargs=arguments
    )
    model.learn(16)
    path = save_agent(model, tmp_path / "agent")
    own.unlink()
    monkeypatch.setattr("mnv4_rl.weights.files._download", lambda *_: pytest.fail("a download was started"))
    loaded = load_agent(path, device="cpu")
    assert actions(model) == actions(loaded)
    assert same(model.policy.state_dict(), loaded.policy.state_dict())
    again = load_agent(save_agent(loaded, tmp_path / "again"), images(n_channels=4), device="cpu")
    again.learn(16)
    loaded.save(tmp_path / "model.zip")
    assert actions(PPO.load(tmp_path / "model.zip", device="cpu")) == actions(model)


def test_a_row_of_the_registry_may_change_or_go(tmp_path, monkeypatch):
    model = ppo(features_extractor_class=MNV4Extractor, features_extractor_kwargs={"variant": "rl_s"})
    path = save_agent(model, tmp_path / "agent")
    monkeypatch.setitem(registry.SPECS, "rl_s", replace(registry.SPECS["rl_s"], activation="silu"))
    assert actions(load_agent(path, device="cpu")) == actions(model)
    # Not delitem: what it puts back comes last, and the table is in order.
    monkeypatch.setattr(registry, "SPECS", {name: spec for name, spec in registry.SPECS.items() if name != "rl_s"})
    assert actions(load_agent(path, device="cpu")) == actions(model)


def test_loading_to_play_takes_no_memory_of_transitions_and_says_so_on_learning(tmp_path):
    model = DQN("CnnPolicy", images(), **OFF | {"buffer_size": 20}, device="cpu")
    model.buffer_size = 10**8
    loaded = load_agent(save_agent(model, tmp_path / "agent"), device="cpu")
    assert loaded.buffer_size == 10**8 and actions(loaded) == actions(model)
    loaded.set_env(images())
    with pytest.raises(ValueError, match=r"load_agent\(path, env\)"):
        loaded.learn(16)
    with pytest.raises(ValueError, match="fills"):
        load_agent(tmp_path / "agent", images(), device="cpu")
