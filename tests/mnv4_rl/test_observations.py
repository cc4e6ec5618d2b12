"""Which spaces are images, and where their channels lie: alone, and as SB3 hands them over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from mnv4_rl import MNV4CombinedExtractor, MNV4Extractor
from mnv4_rl.baselines import ImpalaCNN
from mnv4_rl.image_extractor import ImageExtractor
from mnv4_rl.policies import PixelActorCriticPolicy, PixelDQNPolicy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "observations.md"
SETTINGS: dict[Any, dict[str, Any]] = {
    PPO: dict(n_steps=8, batch_size=8, n_epochs=1),
    A2C: dict(n_steps=8),
    DQN: dict(buffer_size=50, learning_starts=4, batch_size=4, target_update_interval=4),
    SAC: dict(buffer_size=50, learning_starts=4, batch_size=4),
}


def uint8_box(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


class Pictures(gym.Env):
    """Shows one observation for ever, 6 steps an episode."""

    def __init__(self, space: spaces.Space, observation: Any = None, continuous: bool = False) -> None:
        self.observation_space = space
        self.action_space = spaces.Box(-1, 1, (2,)) if continuous else spaces.Discrete(3)
        self._observation = space.sample() if observation is None else observation

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self._steps += 1
        return self._observation, 0.0, self._steps == 6, False, {}


def agent_on(env: Any, algorithm: Any = PPO, policy: Any = None, **image_kwargs: Any) -> BaseAlgorithm:
    """A small agent on an environment or a space."""
    if isinstance(env, spaces.Space):
        env = Pictures(env, continuous=algorithm is SAC)
    is_dict = isinstance(env.observation_space, spaces.Dict)
    extractor = MNV4CombinedExtractor if is_dict else MNV4Extractor
    width = {"cnn_output_dim" if is_dict else "features_dim": 8}
    kwargs = dict(features_extractor_class=extractor, features_extractor_kwargs=width | image_kwargs, net_arch=[])
    policy = policy or ("MultiInputPolicy" if is_dict else "CnnPolicy")
    return algorithm(policy, env, device="cpu", seed=0, policy_kwargs=kwargs, **SETTINGS[algorithm])


def encoder_of(agent: BaseAlgorithm) -> ImageExtractor:
    return next(module for module in agent.policy.modules() if isinstance(module, ImageExtractor))


def what_the_network_reads(agent: BaseAlgorithm) -> th.Tensor:
    """The image, (C, H, W) float in [0, 1], that comes out of preprocessing the environment's first observation."""
    seen: list[th.Tensor] = []
    hook = encoder_of(agent).network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    agent.predict(agent.get_env().reset(), deterministic=True)
    hook.remove()
    image = seen[0][0]
    return image.float() / 255 if image.dtype == th.uint8 else image


def channels_as_levels(height: int, width: int, channels: int) -> np.ndarray:
    """(H, W, C) uint8 whose channel c is 7 (c + 1) everywhere."""
    levels = 7 * np.arange(1, channels + 1, dtype=np.uint8)
    return np.broadcast_to(levels, (height, width, channels)).copy()


def assert_levels(image: th.Tensor, shape: tuple[int, int, int]) -> None:
    levels = 7 * th.arange(1, shape[0] + 1) / 255
    assert image.shape == shape
    assert th.allclose(image, levels[:, None, None].expand(shape))


# What SB3 moves, and what it leaves

SIDES = st.integers(2, 30)


@settings(max_examples=15, deadline=None)
@given(height=SIDES, width=SIDES, channels=SIDES, pixel=st.booleans())
@example(height=20, width=4, channels=8, pixel=False)
@example(height=40, width=12, channels=16, pixel=True)
@example(height=84, width=10, channels=12, pixel=False)
@example(height=64, width=64, channels=3, pixel=True)
@example(height=64, width=3, channels=30, pixel=False)
def test_inside_sb3_the_network_reads_the_channels_of_any_uint8_image(height, width, channels, pixel):
    moved = channels < height or width < height  # SB3: the smallest axis is not the first
    picture = channels_as_levels(height, width, channels)
    env = Pictures(uint8_box(*picture.shape), picture)
    agent = agent_on(env, policy=PixelActorCriticPolicy if pixel else None, channels_last=None if moved else True)
    assert_levels(what_the_network_reads(agent), (channels, height, width))


@settings(max_examples=10, deadline=None)
@given(sides=st.tuples(SIDES, SIDES), channels=SIDES)
def test_inside_sb3_a_uint8_image_with_the_smallest_axis_first_has_its_channels_there(sides, channels):
    channels = min(channels, *sides)
    picture = channels_as_levels(*sides, channels).transpose(2, 0, 1)
    agent = agent_on(Pictures(uint8_box(*picture.shape), picture))
    assert_levels(what_the_network_reads(agent), (channels, *sides))


@pytest.mark.parametrize("shape", [(20, 4, 8), (40, 12, 16), (84, 10, 12)])
@pytest.mark.parametrize(
    ("algorithm", "policy"), [(PPO, None), (A2C, None), (DQN, None), (SAC, None), (DQN, PixelDQNPolicy)]
)
def test_a_narrow_image_is_read_alike_by_every_algorithm_and_after_loading(algorithm, policy, shape, tmp_path):
    picture = channels_as_levels(*shape)
    agent = agent_on(Pictures(uint8_box(*shape), picture, continuous=algorithm is SAC), algorithm, policy)
    assert_levels(what_the_network_reads(agent), (shape[2], *shape[:2]))
    agent.learn(8)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", device="cpu")
    observation = agent.get_env().reset()
    assert encoder_of(loaded).image_shape == (shape[2], *shape[:2])
    assert (
        loaded.predict(observation, deterministic=True)[0] == agent.predict(observation, deterministic=True)[0]
    ).all()


@pytest.mark.parametrize("shape", [(20, 4, 8), (40, 12, 16), (84, 10, 12)])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_narrow_image_in_a_dict_is_read_alike(algorithm, shape):
    space = spaces.Dict(narrow=uint8_box(*shape), speed=spaces.Box(-1, 1, (2,)))
    observation = dict(narrow=channels_as_levels(*shape), speed=np.zeros(2, np.float32))
    assert_levels(what_the_network_reads(agent_on(Pictures(space, observation), algorithm)), (shape[2], *shape[:2]))


def test_what_sb3_leaves_alone_can_be_declared_channels_last(tmp_path):
    picture = channels_as_levels(5, 7, 8)
    agent = agent_on(Pictures(uint8_box(5, 7, 8), picture), channels_last=True)
    assert_levels(what_the_network_reads(agent), (8, 5, 7))
    agent.save(tmp_path / "agent")
    assert encoder_of(PPO.load(tmp_path / "agent", device="cpu")).image_shape == (8, 5, 7)
    assert encoder_of(agent_on(uint8_box(5, 7, 8))).image_shape == (5, 7, 8)  # SB3's own reading
    assert MNV4Extractor(uint8_box(5, 7, 8), channels_last=True).image_shape == (8, 5, 7)


def test_what_sb3_moved_cannot_be_declared_channels_last():
    with pytest.raises(ValueError, match="SB3 moves them"):
        agent_on(uint8_box(7, 8, 5), channels_last=True)  # arrives as (5, 7, 8)


def test_an_env_that_was_told_not_to_be_moved_is_asked_about():
    picture = channels_as_levels(20, 16, 3)

    def env() -> VecTransposeImage:
        return VecTransposeImage(DummyVecEnv([lambda: Pictures(uint8_box(20, 16, 3), picture)]), skip=True)

    with pytest.raises(ValueError, match="channels_last=False"):
        agent_on(env())
    assert_levels(what_the_network_reads(agent_on(env(), channels_last=True)), (3, 20, 16))
    wrapped = VecTransposeImage(DummyVecEnv([lambda: Pictures(uint8_box(20, 16, 3), picture)]))
    assert_levels(what_the_network_reads(agent_on(wrapped)), (3, 20, 16))


@pytest.mark.parametrize("shape", [(8, 20, 4), (16, 40, 12), (12, 84, 10), (20, 4, 8), (30, 12, 12), (10, 16, 3)])
def test_alone_a_uint8_image_that_can_be_either_is_asked_about(shape):
    with pytest.raises(ValueError, match=r"channels_last=False.*channels_last=True"):
        MNV4Extractor(uint8_box(*shape))
    a, b, c = shape
    assert MNV4Extractor(uint8_box(*shape), channels_last=False).image_shape == (a, b, c)
    assert MNV4Extractor(uint8_box(*shape), channels_last=True).image_shape == (c, a, b)


@pytest.mark.parametrize("shape", [(12, 8, 8), (119, 8, 8), (8, 8, 12), (8, 8, 111), (20, 4, 8)])
@pytest.mark.parametrize("inside", [True, False])
def test_boards_that_sb3_never_moves_are_asked_about(shape, inside):
    build = agent_on if inside else MNV4Extractor
    space = spaces.Box(-1, 1, shape, np.int8)
    with pytest.raises(ValueError, match=r"channels_last=False.*channels_last=True"):
        build(space, normalized_image=True)
    build(space, normalized_image=True, channels_last=True)


# Stacks and grey pictures, which SB3 takes for vectors

FOLDED = {
    "frames of CHW": ((4, 3, 24, 20), lambda o: o.reshape(12, 24, 20)),
    "frames of HWC": ((4, 24, 20, 3), lambda o: o.transpose(0, 3, 1, 2).reshape(12, 24, 20)),
    "frames of HW1": ((4, 24, 20, 1), lambda o: o.reshape(4, 24, 20)),
    "frames of 1HW": ((4, 1, 24, 20), lambda o: o.reshape(4, 24, 20)),
    "one frame": ((1, 24, 20, 3), lambda o: o.transpose(0, 3, 1, 2).reshape(3, 24, 20)),
    "grey": ((24, 20), lambda o: o[None]),
}


FOLDERS = {
    "PPO": (PPO, None, False),
    "PPO Pixel": (PPO, PixelActorCriticPolicy, False),
    "PPO Dict": (PPO, None, True),
    "DQN": (DQN, None, False),
    "DQN Pixel": (DQN, PixelDQNPolicy, False),
    "DQN Dict": (DQN, None, True),
}


@pytest.mark.parametrize(("shape", "by_hand"), FOLDED.values(), ids=FOLDED)
@pytest.mark.parametrize(("algorithm", "policy", "in_dict"), FOLDERS.values(), ids=FOLDERS)
def test_folded_observations_act_as_those_folded_by_hand(shape, by_hand, algorithm, policy, in_dict):
    observation = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def build(picture: np.ndarray) -> BaseAlgorithm:
        space: spaces.Space = uint8_box(*picture.shape)
        speed = np.zeros(2, np.float32)
        env = Pictures(space, picture)
        if in_dict:
            space = spaces.Dict(picture=space, speed=spaces.Box(-1, 1, (2,)))
            env = Pictures(space, dict(picture=picture, speed=speed))
        return agent_on(env, algorithm, policy)

    folded, by_hand_agent = build(observation), build(by_hand(observation))
    assert encoder_of(folded).image_shape == by_hand(observation).shape
    assert th.equal(what_the_network_reads(folded), what_the_network_reads(by_hand_agent))
    assert same_weights(folded, by_hand_agent)
    folded.learn(8)
    assert not same_weights(folded, by_hand_agent)


def same_weights(one: BaseAlgorithm, other: BaseAlgorithm) -> bool:
    weights, others = one.policy.state_dict(), other.policy.state_dict()
    return all(th.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("extractor", [MNV4Extractor, ImpalaCNN])
@pytest.mark.parametrize("shape", [(4, 3, 24, 20), (24, 20)])
def test_a_folded_extractor_alone_takes_bytes_and_what_sb3_makes_of_them(extractor, shape):
    build = extractor(uint8_box(*shape), features_dim=8)
    observations = th.randint(0, 256, (2, *shape), dtype=th.uint8)
    th.testing.assert_close(build(observations), build(observations.float()))


def test_gymnasiums_frame_stack_is_a_stack_of_frames():
    env = FrameStackObservation(Pictures(uint8_box(24, 20, 3)), 4)
    agent = agent_on(env)
    assert encoder_of(agent).image_shape == (12, 24, 20)
    agent.learn(8)


def stacked(space: spaces.Space, order: Any = None) -> VecFrameStack:
    return VecFrameStack(DummyVecEnv([lambda: Pictures(space)]), 4, channels_order=order)


FLOATS = spaces.Box(0, 1, (3, 24, 24), np.float32)
STACK = uint8_box(2, 3, 24, 24)


@pytest.mark.parametrize(
    ("space", "order", "cure"),
    [
        (uint8_box(24, 20), None, "ReshapeObservation(env, (24, 20, 1))"),
        (uint8_box(24, 20), "first", "ReshapeObservation(env, (24, 20, 1))"),
        (FLOATS, None, "channels_order='first'"),
        (spaces.Box(0, 1, (24, 24, 3), np.float32), "first", "channels_order='last'"),
        (STACK, None, "leave it out"),
    ],
)
@pytest.mark.parametrize("in_dict", [False, True], ids=["image", "dict"])
def test_frames_that_sb3_stacked_side_by_side_are_refused(space, order, cure, in_dict):
    policy = "MultiInputPolicy" if in_dict else "CnnPolicy"
    env = stacked(spaces.Dict(camera=space, speed=spaces.Box(-1, 1, (2,))) if in_dict else space, order)
    with pytest.raises(
        ValueError, match=rf"frames of shape {re.escape(str(space.shape))}, side by side.*{re.escape(cure)}"
    ):
        agent_on(env, policy=policy)


@pytest.mark.parametrize(
    ("space", "order", "read"),
    [
        (uint8_box(24, 20, 1), None, (4, 24, 20)),
        (uint8_box(3, 24, 20), None, (12, 24, 20)),
        (uint8_box(24, 20, 3), None, (12, 24, 20)),
        (FLOATS, "first", (12, 24, 24)),
        (spaces.Box(0, 1, (48, 48, 3), np.float32), None, (12, 48, 48)),
        (STACK, "first", (24, 24, 24)),
    ],
)
def test_frames_that_sb3_stacked_along_the_channels_are_read(space, order, read):
    assert agent_on(stacked(space, order)).policy.features_extractor.image_shape == read


def test_float_stacks_are_folded_and_not_divided():
    space = spaces.Box(0, 1, (4, 3, 24, 20), np.float32)
    observation = np.random.default_rng(0).random((4, 3, 24, 20), dtype=np.float32)
    image = what_the_network_reads(agent_on(Pictures(space, observation)))
    assert th.equal(image, th.as_tensor(observation).reshape(12, 24, 20))


def test_a_matrix_that_is_no_picture_stays_flat_in_a_dict():
    space = spaces.Dict(
        camera=uint8_box(24, 20, 3), joints=spaces.Box(-1, 1, (30, 3)), ram=uint8_box(4, 128), grey=uint8_box(24, 20)
    )
    extractor = MNV4CombinedExtractor(space, cnn_output_dim=8)
    assert extractor.features_dim == 8 + 30 * 3 + 4 * 128 + 8


def test_a_large_matrix_is_flattened_with_a_warning():
    space = spaces.Dict(camera=uint8_box(24, 20, 3), depth=spaces.Box(0, 1, (48, 48)))
    with pytest.warns(UserWarning, match=r"'depth'.*\(1, 48, 48\)"):
        assert MNV4CombinedExtractor(space, cnn_output_dim=8).features_dim == 8 + 48 * 48


# Numbers

TRUSTED = {
    "int8 board": spaces.Box(-1, 1, (3, 16, 16), np.int8),
    "uint16 depth": spaces.Box(0, 65535, (1, 16, 16), np.uint16),
    "int32": spaces.Box(0, 255, (3, 16, 16), np.int32),
    "bool": spaces.Box(0, 1, (3, 16, 16), np.bool_),
    "uint8 mask": spaces.Box(0, 1, (3, 16, 16), np.uint8),
    "uint8 tiles": spaces.Box(0, 10, (3, 16, 16), np.uint8),
    "float depth": spaces.Box(0, np.inf, (1, 16, 16), np.float32),
    "float64": spaces.Box(-5, 5, (3, 16, 16), np.float64),
}


@pytest.mark.parametrize("space", TRUSTED.values(), ids=TRUSTED)
@pytest.mark.parametrize("algorithm", [PPO, DQN])
@pytest.mark.parametrize("in_dict", [False, True])
def test_normalized_image_takes_any_number_as_sb3_casts_it(space, algorithm, in_dict):
    space.seed(0)
    picture = space.sample()
    env = Pictures(space, picture)
    if in_dict:
        env = Pictures(spaces.Dict(board=space, speed=uint8_box(2)), dict(board=picture, speed=np.zeros(2, np.uint8)))
    agent = agent_on(env, algorithm, normalized_image=True)
    image = what_the_network_reads(agent)
    assert image.dtype == th.float32
    assert np.array_equal(image.numpy(), picture.astype(np.float32))
    agent.learn(8)
    if picture.dtype.kind != "f":
        alone = encoder_of(agent)
        assert th.equal(alone(th.as_tensor(picture)[None]), alone(image[None]))


@pytest.mark.parametrize("high", [1.00000024, 1.0009])
def test_rounding_past_one_is_no_lack_of_scale(high):
    MNV4Extractor(uint8_box(3, 16, 16))(th.full((1, 3, 16, 16), high))
    MNV4Extractor(spaces.Box(0, high, (3, 16, 16), np.float32))
    with pytest.raises(ValueError, match="divided by 255"):
        MNV4Extractor(uint8_box(3, 16, 16))(th.full((1, 3, 16, 16), 2.0))
    with pytest.raises(ValueError, match="normalized_image"):
        MNV4Extractor(spaces.Box(0, 1.1, (3, 16, 16), np.float32))


def test_a_bilinearly_resized_image_is_taken():
    resized = th.nn.functional.interpolate(th.ones(1, 3, 37, 41), size=(16, 16), mode="bilinear")
    MNV4Extractor(uint8_box(3, 16, 16))(resized * (1 + 2.4e-7))


REFUSED = {
    "vector": (spaces.Box(0, 1, (7,)), r"shape \(7,\).*'MlpPolicy'"),
    "no axis": (spaces.Box(0, 1, ()), r"shape \(\)"),
    "Discrete": (spaces.Discrete(4), r"Discrete\(4\).*'MlpPolicy'"),
    "MultiBinary": (spaces.MultiBinary([8, 8, 3]), r"np.bool_.*normalized_image=True"),
    "Dict": (spaces.Dict(a=uint8_box(3, 16, 16)), r"MNV4CombinedExtractor with 'MultiInputPolicy'"),
    "no pixels": (uint8_box(3, 0, 16), r"no pixels: shape \(3, 0, 16\)"),
    "no channels": (uint8_box(0, 16, 16), r"no pixels: shape \(0, 16, 16\)"),
    "unbounded": (spaces.Box(-np.inf, np.inf, (3, 16, 16)), r"\[-inf, inf\].*normalized_image=True"),
    "float to 255": (spaces.Box(0, 255, (3, 16, 16)), r"\[0, 255\].*np.uint8 in \[0, 255\]"),
    "float from -2": (spaces.Box(-2, 1, (3, 16, 16)), r"\[-2, 1\].*dividing by 2"),
    "float matrix": (spaces.Box(0, 1, (16, 16)), r"'MlpPolicy'.*ReshapeObservation\(env, \(1, 16, 16\)\)"),
    "stack of RAM": (uint8_box(4, 128), "'MlpPolicy'"),
    "frames last": (uint8_box(64, 64, 3, 4), "first.*to the front"),
    "grey, frames last": (uint8_box(84, 84, 1, 4), "first.*to the front"),
    "many channels, frames last": (
        uint8_box(64, 64, 12, 4),
        "first, so shape .* 64 frames of 64x12 pixels.*to the front",
    ),
    "stack of stacks": (uint8_box(4, 2, 3, 16, 16), "only one axis may count frames"),
    "int8 board": (TRUSTED["int8 board"], "int8.*normalized_image=True"),
    "uint16 depth": (TRUSTED["uint16 depth"], "uint16.*dividing by 65535.*normalized_image=True"),
    "int32": (TRUSTED["int32"], "int32.*np.uint8.*normalized_image=True"),
    "bool": (TRUSTED["bool"], "bool.*normalized_image=True"),
    "uint8 mask": (TRUSTED["uint8 mask"], "uint8.*normalized_image=True"),
    "uint8 tiles": (TRUSTED["uint8 tiles"], "dividing by 10.*normalized_image=True"),
}


@pytest.mark.parametrize(("space", "message"), REFUSED.values(), ids=REFUSED)
def test_a_space_that_is_no_image_is_refused_with_its_cure(space, message):
    with pytest.raises(ValueError, match=message):
        MNV4Extractor(space)


@pytest.mark.parametrize("kind", ["int8 board", "uint16 depth", "bool", "uint8 mask", "uint8 tiles"])
def test_no_advice_would_destroy_data(kind):
    with pytest.raises(ValueError) as refusal:
        MNV4Extractor(TRUSTED[kind])
    assert "declare the box as np.uint8" not in str(refusal.value).lower()


# The page


def table_rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading of docs/observations.md, without its head."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def reading(build: Any) -> str:
    """What a table says of a space: the shape the network reads, or how it is refused."""
    try:
        return "x".join(map(str, build().image_shape))
    except ValueError as error:
        return "asks" if "Which axis" in str(error) and "Frames" not in str(error) else "refused"


@pytest.mark.parametrize(("space", "inside", "alone", "_why"), table_rows("Shapes"))
def test_the_table_of_shapes_is_true(space, inside, alone, _why):
    dtypes = dict(uint8=np.uint8, float32=np.float32)
    box = eval(space.strip("`"), {"Box": spaces.Box, **dtypes})
    arriving = VecTransposeImage.transpose_space(box) if (inside, alone) == ("8x20x4", "asks") else box
    assert reading(lambda: encoder_of(agent_on(box))) == inside
    assert reading(lambda: MNV4Extractor(arriving)) == alone
    in_dict = spaces.Dict(camera=uint8_box(16, 16, 3) if inside == "3x84x84" else uint8_box(3, 16, 16), z=box)
    if inside not in ("refused", "8x20x4"):  # SB3 refuses a Dict in which it has to move only some images
        assert reading(lambda: MNV4CombinedExtractor(in_dict).extractors["z"]) == alone


@pytest.mark.parametrize(("numbers", "by_default", "trusted"), table_rows("Numbers"))
def test_the_table_of_numbers_is_true(numbers, by_default, trusted):
    dtype, low, high = re.fullmatch(r"(\w+) \[(\S+), (\S+)\]", numbers).groups()
    space = spaces.Box(float(low), float(high), (3, 16, 16), np.dtype(dtype))
    space.seed(0)
    observation = th.as_tensor(space.sample())
    for outcome, kwargs in ((by_default, {}), (trusted, dict(normalized_image=True))):
        if outcome.startswith("refused"):
            hint = dict(scale="scale", normalized_image="normalized_image=True", declare="Declare the Box as np.uint8")
            with pytest.raises(ValueError, match=f"(?i){hint[outcome.split()[1].strip(':,')]}"):
                agent_on(space, **kwargs)
        else:
            divisor = 255 if outcome == "divided by 255" else 1
            image = what_the_network_reads(agent_on(Pictures(space, observation.numpy()), **kwargs))
            assert th.equal(image, observation.float() / divisor), outcome
