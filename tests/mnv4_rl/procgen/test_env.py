import importlib

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from mnv4_rl.procgen import ProcgenOptions, make_procgen_env
from mnv4_rl.procgen import env as env_module
from mnv4_rl.procgen import pool as pool_module
from mnv4_rl.procgen.env import ACTIONS
from tests.mnv4_rl.procgen.scripted_pool import ScriptedPool
from tests.needs import needs_envpool


@pytest.fixture
def make():
    """`make_procgen_env` on one worker thread, closed after the test."""
    envs = []

    def build(*args, **kwargs):
        envs.append(make_procgen_env(*args, **{"num_threads": 1, **kwargs}))
        return envs[-1]

    yield build
    for env in envs:
        env.close()


@pytest.fixture
def scripted(make, monkeypatch):
    """An environment on a scripted pool: lengths of the episodes, one list an environment -> environment, pool."""

    def build(*lengths, **kwargs):
        pool = ScriptedPool(lengths)
        monkeypatch.setattr(env_module, "make_pool", lambda *_: pool)
        return make("starpilot", len(lengths), **kwargs), pool

    return build


def play(env, actions):
    """Observations, rewards, dones and infos of a whole run, the reset's observation first."""
    observations, steps = [env.reset()], []
    for action in actions:
        observation, *rest = env.step(action)
        observations.append(observation)
        steps.append(rest)
    rewards, dones, infos = zip(*steps, strict=True)
    return np.array(observations), np.array(rewards), np.array(dones), infos


def random_actions(n_steps, n_envs, seed=0):
    return np.random.default_rng(seed).integers(len(ACTIONS), size=(n_steps, n_envs))


def test_the_reset_step_is_never_seen(scripted):
    env, pool = scripted([3, 2], [2])
    observations, rewards, dones, _ = play(env, np.arange(12).reshape(6, 2))
    pixels = observations[:, :, 0, 0, 0]
    assert pixels[:, 0].tolist() == [0, 1, 2, 100, 101, 0, 1]  # of the next episode where one ended
    assert pixels[:, 1].tolist() == [16, 17, 116, 117, 16, 17, 116]
    assert rewards.tolist() == [[1, 1], [2, 2], [3, 1], [1, 2], [2, 1], [1, 2]]
    assert dones.tolist() == [[0, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]]
    # every action of the learner reaches every environment, and a reset step only those whose episode ended
    assert [step for step in pool.taken if step[0] == [0, 1]] == [([0, 1], [2 * t, 2 * t + 1]) for t in range(6)]
    assert [step[0] for step in pool.taken if step[0] != [0, 1]] == [[1], [0], [1], [0], [1]]


def test_several_episodes_that_end_together_get_their_own_observations(scripted):
    env, pool = scripted([1], [2], [1], [1])
    observations, *_ = play(env, np.zeros((1, 4), int))
    assert observations[1, :, 0, 0, 0].tolist() == [100, 17, 132, 148]
    assert pool.taken[1][0] == [0, 2, 3]


def test_an_end_says_what_ended(scripted, tmp_path):
    env, _ = scripted([3, -2], [4], monitor_path=tmp_path / "run")
    _, _, dones, infos = play(env, np.zeros((5, 2), int))
    first, second, other = infos[2][0], infos[4][0], infos[3][1]
    assert (first["terminal_observation"] == 3).all() and first["terminal_observation"].shape == (3, 64, 64)
    assert (second["terminal_observation"] == 102).all() and (other["terminal_observation"] == 20).all()
    assert (first["episode"]["r"], first["episode"]["l"]) == (6, 3)
    assert (second["episode"]["r"], second["episode"]["l"]) == (3, 2)
    assert (other["episode"]["r"], other["episode"]["l"]) == (10, 4)
    assert not first["TimeLimit.truncated"] and second["TimeLimit.truncated"]
    assert first["level_complete"] and first["level_seed"] == 0 and second["level_seed"] == 1
    for row, ended in zip(infos, dones, strict=True):
        for info, done in zip(row, ended, strict=True):
            assert ("episode" in info) == ("terminal_observation" in info) == ("level_complete" in info) == done
    env.close()
    rows = load_results(str(tmp_path))
    assert rows["r"].tolist() == [6, 10, 3] and rows["env"].tolist() == [0, 1, 0]


def test_a_terminal_observation_is_not_overwritten_by_the_next_episode(scripted):
    env, _ = scripted([2])
    *_, infos = play(env, np.zeros((4, 1), int))
    assert [info[0]["terminal_observation"].max() for info in infos if "episode" in info[0]] == [2, 102]


def test_a_reset_forgets_the_running_episode(scripted):
    env, _ = scripted([3])
    env.reset()
    env.step(np.array([0]))
    env.step_async(np.array([0]))
    env.reset()  # a step under way is cancelled
    *_, infos = play(env, np.zeros((3, 1), int))
    assert infos[-1][0]["episode"]["r"] == 6


@needs_envpool
def test_is_envpools_stream_without_its_reset_steps(make):
    """Side by side with envpool's own steps, whose reset steps are left out by hand."""
    ours = make("starpilot", 4, seed=3, num_levels=5, start_level=7)
    theirs = pool_module.make_pool("starpilot", 4, 3, ours.options, 1)
    actions = random_actions(250, 4)
    observations, rewards, dones, infos = play(ours, actions)
    expected, first_info = theirs.reset()
    assert [info["level_seed"] for info in ours.reset_infos] == first_info["level_seed"].tolist()
    np.testing.assert_array_equal(observations[0], expected)
    for step, action in enumerate(actions):
        expected, their_rewards, terminated, truncated, info = theirs.step(action)
        ended = terminated | truncated
        np.testing.assert_array_equal(rewards[step], their_rewards)
        np.testing.assert_array_equal(dones[step], ended)
        for index in np.flatnonzero(ended):
            np.testing.assert_array_equal(infos[step][index]["terminal_observation"], expected[index])
            assert infos[step][index]["level_seed"] == info["level_seed"][index]
            again, reward, *_ = theirs.step(np.array([14]), np.array([index], np.int32))
            assert reward == [0]
            expected[index] = again[0]
        np.testing.assert_array_equal(observations[step + 1], expected)
    assert dones.sum() >= 4
    assert {info["level_seed"] for row in infos for info in row} <= set(range(7, 12))


@needs_envpool
def test_a_time_limit_is_told_from_an_end(make):
    env = make("leaper", 2)  # 500 timesteps
    *_, dones, infos = play(env, np.full((500, 2), ACTIONS.index("NOOP")))
    assert dones[-1].all() and not dones[:-1].any()
    for info in infos[-1]:
        assert info["TimeLimit.truncated"] and info["episode"]["l"] == 500 and not info["level_complete"]


@needs_envpool
@pytest.mark.parametrize("num_threads", [1, 2])
def test_seed_fixes_the_stream(make, num_threads):
    actions = random_actions(60, 3)
    first = make("bigfish", 3, seed=1, num_threads=num_threads)
    once = play(first, actions)[0]
    np.testing.assert_array_equal(once, play(make("bigfish", 3, seed=1), actions)[0])
    assert (once != play(make("bigfish", 3, seed=2), actions)[0]).any()
    carried_on = play(first, actions)[0]  # without a seed the next levels come
    assert (once[0] != carried_on[0]).any()
    first.seed(1)
    np.testing.assert_array_equal(once, play(first, actions)[0])


@needs_envpool
def test_returned_arrays_are_never_overwritten(make):
    env = make("starpilot", 3)
    env.reset()
    kept, copies = [], []
    for action in random_actions(120, 3):
        observations, *_ = env.step(action)
        kept.append(observations)
        copies.append(observations.copy())
    np.testing.assert_array_equal(np.array(kept), np.array(copies))


@needs_envpool
def test_screens_are_what_the_agent_sees(make):
    env = make("coinrun", 2)
    observations = env.reset()
    screens = env.get_images()
    np.testing.assert_array_equal(np.stack(screens).transpose(0, 3, 1, 2), observations)
    assert env.render().shape == (128, 64, 3)


@needs_envpool
def test_modes_and_levels_are_chosen(make):
    easy, hard = make("maze", 2).reset(), make("maze", 2, distribution_mode="hard").reset()
    assert (easy != hard).any()
    one_level = make("starpilot", 3, num_levels=1, start_level=41)
    observations = one_level.reset()
    assert [info["level_seed"] for info in one_level.reset_infos] == [41] * 3
    np.testing.assert_array_equal(observations[0], observations[2])
    with pytest.raises(ValueError, match="easy, hard, got 'extreme'"):
        make("bigfish", 1, distribution_mode="extreme")


@needs_envpool
def test_ppo_learns_and_sb3_evaluates_on_it_as_it_stands(make):
    env = VecNormalize(make("starpilot", 4), norm_obs=False)
    model = PPO("CnnPolicy", env, n_steps=256, batch_size=256, n_epochs=1, seed=0).learn(1024)
    assert model.ep_info_buffer
    returns, lengths = evaluate_policy(model, make("starpilot", 2), 2, return_episode_rewards=True)
    assert len(returns) == 2 and min(lengths) > 1


@pytest.mark.parametrize(
    "actions, words",
    [
        (np.zeros(3, int), "2 integers"),
        (np.zeros(2), "2 integers"),
        (np.array([0, 15]), r"0\.\.14"),
        (np.array([-1, 0]), r"0\.\.14"),
    ],
)
def test_wrong_actions_are_refused_and_change_nothing(scripted, actions, words):
    env, pool = scripted([3], [3])
    env.reset()
    with pytest.raises(ValueError, match=words):
        env.step(actions)
    assert pool.taken == []


def test_calls_out_of_order(scripted):
    env, _ = scripted([3])
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(np.array([0]))
    env.reset()
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()
    env.step_async(np.array([0]))
    with pytest.raises(RuntimeError, match="under way"):
        env.step_async(np.array([0]))
    env.close()
    for call in (env.reset, env.get_images, lambda: env.step_async(np.array([0]))):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_vec_env_contract(scripted):
    env, _ = scripted([3], [3])
    assert env.get_attr("game") == ["starpilot"] * 2 and env.get_attr("action_meanings", 0) == [ACTIONS]
    assert env.render_mode == "rgb_array" and env.action_space.n == len(ACTIONS) == 15
    with pytest.raises(ValueError, match="indices"):
        env.set_attr("game", "bigfish", indices=[0])
    with pytest.raises(ValueError, match="indices"):
        env.env_method("reset", indices=[1])


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        ({"game": "pong"}, ValueError, "no game"),
        ({"game": "starpilto"}, ValueError, "starpilot"),
        ({"n_envs": 0}, ValueError, "n_envs"),
        ({"n_envs": 1.5}, TypeError, "n_envs"),
        ({"num_threads": -1}, ValueError, "num_threads"),
        ({"seed": -1}, ValueError, "seed"),
        ({"num_levels": -1}, ValueError, "num_levels"),
        ({"start_level": True}, TypeError, "start_level"),
        ({"distribution_mode": "medium"}, ValueError, "easy"),
        ({"levels": 3}, TypeError, "levels"),
        ({"num_level": 3}, TypeError, "Did you mean 'num_levels'"),
    ],
)
def test_wrong_options_say_what_is_allowed(kwargs, error, words):
    with pytest.raises(error, match=words):
        make_procgen_env(**{"game": "starpilot", "n_envs": 2, **kwargs})


@pytest.mark.parametrize("missing", ["envpool", "Qt"])
def test_what_is_missing_comes_with_the_commands_that_install_it(monkeypatch, missing):
    def without(name, *args):
        raise ModuleNotFoundError("No module named 'envpool'") if missing == "envpool" else ImportError("libQt5Gui.so")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[procgen\].*apt-get install \S+ \S+") as error:
        make_procgen_env("starpilot", 1)
    assert "\n" not in str(error.value)


def test_unseen_levels_are_all_the_others_past_the_seen():
    options = ProcgenOptions(num_levels=200, start_level=10, distribution_mode="hard")
    unseen = options.unseen()
    assert unseen.levels.start == 210 and unseen.levels.stop == 2**31 - 1 and unseen.distribution_mode == "hard"
    assert ProcgenOptions().unseen() is None
    assert unseen.unseen() is None
    with pytest.raises(ValueError, match="2147483647"):
        ProcgenOptions(num_levels=1, start_level=2**31 - 1)


def test_a_score_is_on_the_scale_of_its_mode(scripted):
    assert scripted([1], distribution_mode="hard")[0].normalised(35) == 1
