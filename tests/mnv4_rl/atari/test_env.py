import ast
import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.env_util import make_atari_env as make_sb3_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage, VecVideoRecorder

from mnv4_rl.atari import AtariVecEnv, make_atari_env
from mnv4_rl.atari.options import PROTOCOLS

GOLDEN = Path(__file__).parents[2] / "golden" / "preprocessing.json"


@pytest.fixture
def make():
    """`make_atari_env` on one worker thread, closed after the test."""
    envs = []

    def build(*args, **kwargs):
        envs.append(make_atari_env(*args, **{"num_threads": 1, **kwargs}))
        return envs[-1]

    yield build
    for env in envs:
        env.close()


def random_actions(env, n_steps, seed=0):
    return np.random.default_rng(seed).integers(env.action_space.n, size=(n_steps, env.num_envs))


def play(env, actions):
    """Observations, rewards, dones and infos of a whole run, the reset's observation first."""
    observations, steps = [env.reset()], []
    for action in actions:
        observation, *rest = env.step(action)
        observations.append(observation)
        steps.append(rest)
    rewards, dones, infos = zip(*steps, strict=True)
    return np.array(observations), np.array(rewards), np.array(dones), infos


def serve(env, observation, actions):
    """Play fixed actions in the one environment of `env`; the last observation."""
    for action in actions:
        observation, *_ = env.step(np.array([action]))
    return observation


@pytest.mark.parametrize("game, sb3_id", [("breakout", "BreakoutNoFrameskip-v4"), ("pong", "PongNoFrameskip-v4")])
def test_means_the_same_as_sb3s_wrappers(make, game, sb3_id):
    """Side by side with SB3: rewards, dones and scores are identical, pixels nearly.

    What is hidden in SB3's resets (NOOP, FIRE, action 2) is played openly here; random NOOPs are off in both. Pixels
    may differ where frames are pooled, as ALE turns them grey first: by less than 32 of 255, and by more than 8 on less
    than 1 % of them. After SB3 has cleared its stack, only the images since then are compared. The newest image of a
    game's last observation is not: SB3 may pool the very last frame into it, ALE does not.
    """
    single = make_sb3_atari_env(sb3_id, n_envs=1, seed=0, wrapper_kwargs={"noop_max": 0})
    theirs = VecTransposeImage(VecFrameStack(single, 4))
    ours = make(game, 1, noop_max=0, fire_reset=False)
    their_obs, our_obs, age, games = theirs.reset(), serve(ours, ours.reset(), [1, 2]), 1, 0
    for action in random_actions(ours, 1000):
        difference = np.abs(their_obs.astype(int) - our_obs)[:, -min(age, 4) :]
        assert difference.max() < 32 and (difference > 8).mean() < 0.01
        their_obs, their_rewards, their_dones, their_infos = theirs.step(action)
        our_obs, our_rewards, our_dones, our_infos = ours.step(action)
        assert our_rewards == their_rewards and our_dones == their_dones
        age += 1
        if our_dones[0]:
            theirs_last, ours_last = (
                infos[0]["terminal_observation"].astype(int) for infos in (their_infos, our_infos)
            )
            assert ("episode" in our_infos[0]) == ("episode" in their_infos[0])
            game_over = "episode" in our_infos[0]
            assert np.abs(theirs_last - ours_last)[: 3 if game_over else 4][-min(age, 3) :].max() < 32
            if game_over:
                assert our_infos[0]["episode"]["r"] == their_infos[0]["episode"]["r"]
            our_obs = serve(ours, our_obs, [1, 2] if game_over else [0, 1, 2])
            age, games = 1, games + game_over
    assert games >= 1
    theirs.close()


def test_lost_life_ends_the_return_but_not_the_game(make):
    env = make("breakout", 4)
    observations, _, dones, infos = play(env, random_actions(env, 250))
    lost, over = 0, 0
    for step, index in zip(*np.nonzero(dones), strict=True):
        info = infos[step][index]
        last = info["terminal_observation"]
        assert not info["TimeLimit.truncated"]
        # whatever ended, the older images are those of the step before: no reset, no uninitialised memory
        np.testing.assert_array_equal(last[:-1], observations[step, index, 1:])
        if "episode" in info:
            over += 1
            assert info["lives"] == 5 and not observations[step + 1, index, :-1].any()
        else:
            lost += 1
            assert info["lives"] in (1, 2, 3, 4)
            np.testing.assert_array_equal(last, observations[step + 1, index])
    assert over >= 4 and lost >= 4 * over


def test_whole_games_without_the_life_loss_signal(make):
    env = make("breakout", 4, terminal_on_life_loss=False)
    _, _, dones, infos = play(env, random_actions(env, 250))
    assert dones.any()
    np.testing.assert_array_equal([["episode" in info for info in row] for row in infos], dones)


def test_episode_has_the_raw_score_while_the_learner_gets_signs(make):
    raw_env, clipped_env = make("qbert", 2, clip_reward=False), make("qbert", 2)
    actions = random_actions(raw_env, 450)
    _, raw, dones, infos = play(raw_env, actions)
    _, clipped, _, clipped_infos = play(clipped_env, actions)
    assert clipped.dtype == raw.dtype == np.float32
    np.testing.assert_array_equal(clipped, np.sign(raw))
    assert raw.max() >= 25
    games = 0
    for index in range(2):
        start = 0
        for step in np.flatnonzero(dones[:, index]):
            if "episode" not in infos[step][index]:
                continue
            episode = infos[step][index]["episode"]
            assert episode["r"] == raw[start : step + 1, index].sum()
            assert episode["l"] == step + 1 - start
            assert episode["t"] >= 0
            assert clipped_infos[step][index]["episode"]["r"] == episode["r"]
            start, games = step + 1, games + 1
    assert games >= 2


@pytest.mark.parametrize("terminal_on_life_loss", [True, False])
@pytest.mark.parametrize("full_action_space", [True, False])
def test_fire_serves_after_a_lost_life(make, monkeypatch, terminal_on_life_loss, full_action_space):
    """A policy that only waits would watch an empty Breakout court for ever; each new ball is one FIRE, no more."""
    sent = []
    send = AtariVectorEnv.send
    monkeypatch.setattr(AtariVectorEnv, "send", lambda self, actions: (sent.append(actions), send(self, actions)))
    env = make("breakout", 2, terminal_on_life_loss=terminal_on_life_loss, full_action_space=full_action_space)
    _, _, _, infos = play(env, np.zeros((300, 2), dtype=int))
    lives = np.array([[info["lives"] for info in row] for row in infos])
    lost = np.diff(lives, axis=0) == -1
    over = np.array([["episode" in info for info in row] for row in infos])
    assert (over.sum(axis=0) >= 1).all()
    new_ball = np.vstack([[True, True], over[0], lost | over[1:]])  # before the first step, and after every step
    np.testing.assert_array_equal(np.array(sent) == 1, new_ball[:-1])


def test_sticky_actions_do_not_swallow_the_serve(make):
    env = make("breakout", 8, repeat_action_probability=0.25)
    _, _, dones, _ = play(env, np.zeros((60, 8), dtype=int))
    assert dones.any(axis=0).all()  # every ball came into play, and was lost


@pytest.mark.parametrize(
    "game, options", [("breakout", {"fire_reset": False}), ("pacman", {"full_action_space": True})]
)
def test_no_fire_where_it_is_off_or_the_game_does_not_need_it(make, monkeypatch, game, options):
    sent = []
    send = AtariVectorEnv.send
    monkeypatch.setattr(AtariVectorEnv, "send", lambda self, actions: (sent.append(actions), send(self, actions)))
    env = make(game, 2, **options)
    _, _, dones, _ = play(env, np.zeros((150, 2), dtype=int))
    assert not np.any(sent)
    assert dones.any() == (game == "pacman")  # lives are lost there, and in Breakout nothing ever happens


@pytest.mark.parametrize("steps_per_game", [1, 3, 10])
def test_frame_limit_ends_the_game(make, steps_per_game):
    """Games as short as their random NOOPs: the next game's frame count may exceed the last one's."""
    env = make("pong", 4, max_episode_frames=4 * steps_per_game)
    observations, _, dones, infos = play(env, random_actions(env, 30))
    expected = np.arange(1, 31) % steps_per_game == 0
    np.testing.assert_array_equal(dones, np.repeat(expected[:, None], 4, axis=1))
    for step in np.flatnonzero(expected):
        for index, info in enumerate(infos[step]):
            assert info["TimeLimit.truncated"] and info["episode"]["l"] == steps_per_game
            np.testing.assert_array_equal(info["terminal_observation"][:-1], observations[step, index, 1:])


def test_life_lost_on_the_frame_limit_is_a_terminal_state_and_a_finished_game(make):
    waiting = np.zeros((100, 1), dtype=int)
    _, _, dones, _ = play(make("breakout", 1), waiting)
    first_loss = int(np.flatnonzero(dones[:, 0])[0])
    _, _, dones, infos = play(make("breakout", 1, max_episode_frames=4 * (first_loss + 1)), waiting)
    assert np.flatnonzero(dones[:, 0])[0] == first_loss
    info = infos[first_loss][0]
    assert info["episode"]["l"] == first_loss + 1
    assert not info["TimeLimit.truncated"]  # no bootstrapping from a lost life


def test_seed_fixes_the_stream(make):
    env = make("breakout", 2, seed=3, repeat_action_probability=0.25)
    actions = random_actions(env, 40)
    stream = play(env, actions)
    for same in (make("breakout", 2, seed=3, repeat_action_probability=0.25, num_threads=2), env):
        same.seed(3)
        for ours, theirs in zip(stream[:3], play(same, actions)[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    other = play(make("breakout", 2, seed=4, repeat_action_probability=0.25), actions[:, ::-1])
    assert (stream[0][:, 0] != other[0][:, 1]).any()
    np.testing.assert_array_equal(stream[0][:, 1], other[0][:, 0])  # environment 1 of seed 3 is environment 0 of seed 4
    assert (stream[0] != play(make("breakout", 2, seed=3), actions)[0]).any()  # sticky actions did something
    assert (play(env, actions)[0] != play(env, actions)[0]).any()  # resets without a seed go on with other numbers


def test_preprocessing_is_what_it_was(make):
    """A changed ALE, or a changed option here, moves published numbers: it must be seen."""
    env = make("pong", 2, seed=0)
    observations, rewards, dones, infos = play(env, random_actions(env, 300))
    lives = [[info["lives"] for info in row] for row in infos]
    game = np.concatenate([rewards, dones, lives], axis=1).astype(np.int32)
    found = {
        "ale_py": ale_py.__version__.partition("+")[0],
        "observations": hashlib.sha256(observations.tobytes()).hexdigest(),
        "rewards_dones_lives": hashlib.sha256(game.tobytes()).hexdigest(),
        "reward_sum": int(rewards.sum()),
    }
    assert found == json.loads(GOLDEN.read_text()), f"if this is meant, say so in CHANGELOG.md and write it to {GOLDEN}"


def test_screens_are_those_of_the_game_that_is_played(make):
    env = make("ms_pacman", 2, seed=5, render_mode="rgb_array")
    plain = make("ms_pacman", 2, seed=5)
    observations, twin = env.reset(), plain.reset()
    for action in random_actions(env, 200):
        assert np.array_equal(observations, twin)  # showing it changes nothing
        for observation, screen in zip(observations, env.get_images(), strict=True):
            assert screen.shape == (210, 160, 3) and screen.dtype == np.uint8
            shrunk = cv2.resize(cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY), (84, 84), interpolation=cv2.INTER_AREA)
            assert np.abs(shrunk.astype(int) - observation[-1]).mean() < 1
        observations, twin = env.step(action)[0], plain.step(action)[0]
    assert env.render().shape == (420, 160, 3)  # SB3 tiles them
    with pytest.raises(NotImplementedError, match="render_mode='rgb_array'"):
        plain.render()


def test_screens_can_be_asked_for_later(make):
    env = make("ms_pacman", 1)
    env.reset()
    env.show_screens()
    observation = env.reset()
    shrunk = cv2.resize(cv2.cvtColor(env.get_images()[0], cv2.COLOR_RGB2GRAY), (84, 84), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - observation[0, -1]).mean() < 1 and env.render_mode == "rgb_array"


def test_a_reset_without_a_seed_keeps_the_screen_with_the_game(make):
    env = make("ms_pacman", 1, seed=5, render_mode="rgb_array")
    env.reset()
    observation = env.reset()
    shrunk = cv2.resize(cv2.cvtColor(env.get_images()[0], cv2.COLOR_RGB2GRAY), (84, 84), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - observation[0, -1]).mean() < 1
    env.step(np.array([0]))


def test_sb3s_tools_for_watching_take_it(make, tmp_path, monkeypatch):
    saved = []

    def clip(frames, fps):  # moviepy's, which SB3 brings along only as an extra
        saved.append((len(frames), frames[0].shape, fps))
        return SimpleNamespace(write_videofile=lambda path: Path(path).touch())

    module = SimpleNamespace(ImageSequenceClip=clip)
    for name in ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"):
        monkeypatch.setitem(sys.modules, name, module)
    env = VecVideoRecorder(
        make("pong", 1, render_mode="rgb_array", max_episode_frames=200), str(tmp_path), lambda step: step == 0, 10
    )
    model = PPO("CnnPolicy", make("pong", 1), n_steps=8, batch_size=8, device="cpu")
    evaluate_policy(model, env, n_eval_episodes=1, render=True)
    env.close()
    assert saved == [(11, (210, 160, 3), 15)] and list(tmp_path.glob("*.mp4"))


def test_rgb_images_keep_their_channels_together(make):
    rgb, single = (make("ms_pacman", 2, grayscale=False, frame_stack=stack, screen_size=(60, 48)) for stack in (4, 1))
    actions = random_actions(rgb, 5)
    stacked, newest = play(rgb, actions)[0], play(single, actions)[0]
    assert rgb.observation_space.shape == (12, 60, 48) and stacked.flags.c_contiguous
    for age in range(4):
        np.testing.assert_array_equal(stacked[-1, :, 9 - 3 * age : 12 - 3 * age], newest[-1 - age])


def test_returned_arrays_are_never_overwritten(make):
    env = make("breakout", 2, max_episode_frames=40)
    actions = random_actions(env, 100)
    observations, infos = [env.reset()], []
    copies = [observations[0].copy()]
    for action in actions:
        observation, *_, info = env.step(action)
        observations.append(observation)
        copies.append(observation.copy())
        infos += [(i["terminal_observation"], i["terminal_observation"].copy()) for i in info if "episode" in i]
    assert infos and all(np.array_equal(kept, copy) for kept, copy in zip(observations, copies, strict=True))
    assert all(np.array_equal(kept, copy) for kept, copy in infos)


def test_ppo_learns_on_it_as_it_stands(make):
    env = make("pong", 2, max_episode_frames=80)
    model = PPO("CnnPolicy", env, n_steps=32, batch_size=32, n_epochs=1, device="cpu").learn(128)
    assert model.get_env() is env  # neither Monitor nor VecTransposeImage around it
    assert [episode["l"] for episode in model.ep_info_buffer] == [20] * 6


def test_evaluate_policy_counts_whole_games(make):
    env = make("breakout", 2)
    model = PPO("CnnPolicy", make("breakout", 2), n_steps=8, batch_size=16, device="cpu")
    scores, lengths = evaluate_policy(model, env, n_eval_episodes=2, deterministic=False, return_episode_rewards=True)
    assert len(scores) == 2 and min(lengths) > 100  # a single life of a random player lasts about 30


def test_machado_protocol(make):
    env = make("breakout", 1, protocol="machado")
    assert env.action_space.n == 18 and env.action_meanings[:3] == ("NOOP", "FIRE", "UP")
    assert env.options.repeat_action_probability == 0.25 and not env.options.terminal_on_life_loss
    assert make("breakout", 1, protocol="machado", frame_skip=2).options.frame_skip == 2
    assert make("breakout", 1).action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT")


def test_sticky_actions_part_games_that_are_played_alike(make):
    """Without them, and without NOOPs at the start, the seed changes nothing."""
    actions = random_actions(make("pong", 1), 60).repeat(2, axis=1)
    for probability, alike in ((0.0, True), (0.25, False)):
        env = make("pong", 2, noop_max=0, repeat_action_probability=probability)
        observations = play(env, actions)[0]
        assert np.array_equal(observations[:, 0], observations[:, 1]) is alike


def test_vec_env_contract(make):
    env = make("pong", 2, seed=1)
    assert env.render_mode is None and env.get_attr("game") == ["pong", "pong"] and env.get_attr("game", 0) == ["pong"]
    env.set_attr("note", 7)
    assert env.get_attr("note", [1]) == [7] and not env.has_attr("absent")
    assert env.env_method("get_attr", "game") == [["pong", "pong"]] * 2
    assert env.seed(10) == [10, 11]
    first = env.reset()
    assert [set(info) for info in env.reset_infos] == [{"lives"}] * 2
    env.step_async(np.array([0, 1], dtype=np.int32))
    env.seed(10)
    np.testing.assert_array_equal(env.reset(), first)  # a step under way is cancelled
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="environment is closed"):
        env.reset()


def test_answers_what_sb3s_own_environment_answers(make):
    theirs = make_sb3_atari_env("BreakoutNoFrameskip-v4", n_envs=2, seed=0)
    ours = make("breakout", 2)
    assert ours.env_method("get_action_meanings") == theirs.env_method("get_action_meanings")
    assert ours.env_method("get_action_meanings", indices=1) == theirs.env_method("get_action_meanings", indices=1)
    wrappers = [
        atari_wrappers.AtariWrapper,
        atari_wrappers.ClipRewardEnv,
        atari_wrappers.EpisodicLifeEnv,
        atari_wrappers.FireResetEnv,
        atari_wrappers.MaxAndSkipEnv,
        atari_wrappers.NoopResetEnv,
        atari_wrappers.StickyActionEnv,
        atari_wrappers.WarpFrame,
        Monitor,
        gym.wrappers.TimeAwareObservation,
    ]
    for wrapper in wrappers:
        assert ours.env_is_wrapped(wrapper) == theirs.env_is_wrapped(wrapper), wrapper
    theirs.close()


def test_a_wrapper_whose_effect_is_off_is_not_there(make):
    plain = make("breakout", 1, clip_reward=False, terminal_on_life_loss=False, fire_reset=False, noop_max=0)
    for name in ("ClipRewardEnv", "EpisodicLifeEnv", "FireResetEnv", "NoopResetEnv"):
        assert plain.env_is_wrapped(getattr(atari_wrappers, name)) == [False]
    assert make("breakout", 1, protocol="machado").env_is_wrapped(atari_wrappers.StickyActionEnv) == [True]
    assert make("pong", 1).env_is_wrapped(atari_wrappers.FireResetEnv, [0]) == [True]
    assert make("ms_pacman", 1).env_is_wrapped(atari_wrappers.FireResetEnv) == [False]


def test_spec_makes_the_same_emulator(make):
    spec = make("ms_pacman", 2, protocol="machado", frame_skip=3, max_episode_frames=400).get_attr("spec")[1]
    assert spec.id == "ALE/MsPacman-v5"
    assert (spec.kwargs["frameskip"], spec.kwargs["max_num_frames_per_episode"]) == (3, 400)
    single = spec.make()
    assert single.action_space.n == 18
    assert single.unwrapped.ale.getFloat("repeat_action_probability") == 0.25
    single.close()


@pytest.mark.parametrize("seed", [2**31 - 1, 2**31, 2**32 - 1, 2**40 + 7, np.int64(3)])
def test_seeds_that_sb3_accepts_fix_the_games(make, seed):
    envs = [make("breakout", 2, seed=seed), make("breakout", 2, seed=0)]
    assert envs[1].seed(seed) == [seed, seed + 1]
    first, second = (env.reset() for env in envs)
    np.testing.assert_array_equal(first, second)


def test_calls_out_of_order(make):
    env = make("pong", 1)
    with pytest.raises(RuntimeError, match="before reset") as refused:
        env.step(np.array([0]))
    assert "ale" not in str(refused.value).lower()
    env.reset()
    with pytest.raises(RuntimeError, match="Call step_async"):
        env.step_wait()
    env.step_async(np.array([0]))
    with pytest.raises(RuntimeError, match="already under way"):
        env.step_async(np.array([0]))


@pytest.mark.parametrize(
    "actions, words",
    [
        ([0, 6], "must lie in 0..5 for pong .NOOP, FIRE"),
        ([-1, 0], "must lie in 0..5"),
        ([0], "must be 2 integers"),
        ([0.0, 1.0], "float64"),
        ([[0], [1]], r"shape \(2, 1\)"),
    ],
)
def test_wrong_actions_are_refused_and_change_nothing(make, actions, words):
    env = make("pong", 2)
    env.reset()
    with pytest.raises(ValueError, match=words):
        env.step(np.array(actions))
    env.step(np.array([0, 1]))


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        ({"n_envs": 0}, ValueError, "n_envs must be at least 1, got 0"),
        ({"n_envs": 1.5}, TypeError, "n_envs must be a whole number, got 1.5"),
        ({"frame_stack": 0}, ValueError, "frame_stack must be at least 1"),
        ({"frame_skip": 0}, ValueError, "frame_skip must be at least 1"),
        ({"noop_max": -1}, ValueError, "noop_max must be at least 0"),
        ({"num_threads": -1}, ValueError, "num_threads must be at least 0"),
        ({"max_episode_frames": 0}, ValueError, "max_episode_frames must be at least 1"),
        ({"screen_size": 0}, ValueError, "screen_size must be at least 1"),
        ({"screen_size": (84, -1)}, ValueError, "screen_size must be at least 1"),
        ({"screen_size": (84, 84, 3)}, ValueError, r"a side or \(height, width\)"),
        ({"screen_size": "84"}, TypeError, "screen_size must be a whole number"),
        ({"repeat_action_probability": 1.5}, ValueError, "must lie in 0..1, got 1.5"),
        ({"repeat_action_probability": float("nan")}, ValueError, "must lie in 0..1"),
        ({"grayscale": 1}, TypeError, "grayscale must be True or False"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"render_mode": "human"}, ValueError, "rgb_array"),
        ({"framestack": 4}, TypeError, "Did you mean 'frame_stack'"),
        ({"protocol": "dopamine"}, ValueError, "allowed: 'sb3', 'machado'"),
    ],
)
def test_wrong_options_say_what_is_allowed(kwargs, error, words):
    with pytest.raises(error, match=words):
        make_atari_env("pong", **{"n_envs": 2, **kwargs})


def test_some_environments_cannot_be_set_apart(make):
    env = make("pong", 2)
    assert isinstance(env, AtariVecEnv)
    with pytest.raises(ValueError, match="reaches all 2 environments"):
        env.set_attr("note", 1, indices=[0])
    with pytest.raises(ValueError, match="reaches all 2 environments"):
        env.env_method("seed", indices=0)


def test_protocols_are_those_the_field_compares_under():
    machado = PROTOCOLS["machado"]
    assert not machado.fire_reset and machado.noop_max == 0
    assert {options.max_episode_frames for options in PROTOCOLS.values()} == {108_000}


@pytest.mark.parametrize(("lives", "presses"), [(4, True), (0, False), (5, False)])
def test_fire_is_for_a_lost_life_not_for_the_last(make, lives, presses):
    env = make("breakout", 1)
    env.reset()
    n = np.array([100])
    env._track_games({"frame_number": env._game_starts + n, "episode_frame_number": n, "lives": np.array([lives])})
    assert env._press_fire.tolist() == [presses]


def test_numpys_numbers_are_taken_as_pythons(make):
    env = make("pong", frame_skip=np.int64(2), grayscale=np.True_)
    assert (type(env.options.frame_skip), env.options.grayscale) == (int, True)


def test_rllibs_example_plays_whole_games():
    text = (Path(__file__).parents[3] / "examples" / "rllib_pong.py").read_text(encoding="utf-8")
    options = ast.literal_eval(re.search(r"^ATARI = (.*)$", text, re.MULTILINE)[1])
    env = AtariVectorEnv("breakout", 1, **options)
    env.reset(seed=np.array([0]))
    assert {int(env.step(np.array([step % 2]))[4]["lives"][0]) for step in range(400)} >= {1, 2, 3}
