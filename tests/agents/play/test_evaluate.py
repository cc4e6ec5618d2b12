from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecEnv

from agents.play.evaluate import Evaluation, evaluate, own_randomness
from agents.play.protocols import ALL_ACTIONS, ActionsByMeaning, known_actions, make_protocol_env, protocol_options
from agents.ppo import PPOHyperparameters, build_ppo
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari.games import minimal_actions

SHORT_GAMES = {"max_episode_frames": 120}  # about 30 agent timesteps


def ppo(env: VecEnv, seed: int = 0) -> PPO:
    settings = PPOHyperparameters(n_steps=16, batch_size=16, n_epochs=1)
    return build_ppo(env, "nature", total_timesteps=64, hyperparameters=settings, seed=seed, device="cpu")


class FakeGames(VecEnv):
    """Environment i plays games of 2 + 3i timesteps that score 100i, 100i + 1, ...; every step ends a return."""

    def __init__(self, n_envs: int) -> None:
        self.render_mode = None
        super().__init__(n_envs, spaces.Box(0, 255, (4, 36, 36), np.uint8), spaces.Discrete(2))

    def reset(self):
        self.time, self.games = 0, [0] * self.num_envs
        return np.zeros((self.num_envs, 4, 36, 36), np.uint8)

    def step_async(self, actions):
        self.time += 1

    def step_wait(self):
        infos: list[dict] = [{} for _ in range(self.num_envs)]
        for i, info in enumerate(infos):
            if self.time % (2 + 3 * i) == 0:
                info["episode"] = {"r": 100 * i + self.games[i]}
                self.games[i] += 1
        n = self.num_envs
        return np.zeros((n, 4, 36, 36), np.uint8), np.ones(n), np.ones(n, bool), infos

    def close(self): ...

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name, value, indices=None): ...

    def env_method(self, *args, **kwargs): ...

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [True] * self.num_envs


def test_mean_and_interval_are_student_t():
    evaluation = Evaluation.of([10.0, 12.0, 14.0])
    # t(0.975, 2 degrees of freedom) = 4.302653, standard error 2 / sqrt(3)
    assert evaluation.mean == 12
    assert evaluation.high - 12 == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    assert evaluation.low + evaluation.high == pytest.approx(24)
    assert evaluation.to_dict()["games"] == 3
    assert str(evaluation) == "12.0 [7.0, 17.0] over 3 games"


def test_one_game_has_no_interval_and_none_is_an_error():
    single = Evaluation.of([5.0])
    assert single.mean == 5 and math.isnan(single.low) and math.isnan(single.high)
    said = json.loads(json.dumps(single.to_dict(), allow_nan=False))
    assert said == {"scores": [5.0], "mean": 5.0, "low": None, "high": None, "games": 1}
    assert str(single) == "5.0 in a single game"
    with pytest.raises(ValueError, match="at least one whole game"):
        Evaluation.of([])


def test_every_environment_plays_the_same_number_of_games_whatever_their_length():
    env, heard = FakeGames(2), []
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, device="cpu")
    evaluation = evaluate(model, env, 3, on_game=heard.append)
    assert evaluation.scores == (0, 1, 100, 101)  # 3 rounded up to 2 each; environment 0 played 5 by then
    assert heard == [0, 1, 100, 101]


def test_fewer_than_one_game_is_refused():
    env = FakeGames(1)
    with pytest.raises(ValueError, match="n_games"):
        evaluate(PPO("CnnPolicy", env, n_steps=8, batch_size=8, device="cpu"), env, 0)


def test_the_same_seed_gives_the_same_scores():
    def scores(seed: int) -> tuple[float, ...]:
        env = make_atari_env("breakout", 2, 3, max_episode_frames=600)
        th.rand(1)  # the state of the global generators must not matter
        result = evaluate(model, env, 2, seed=seed)
        env.close()
        return result.scores

    model = ppo(make_atari_env("breakout", 1, **SHORT_GAMES))
    assert scores(1) == scores(1) != scores(2)


def test_an_evaluation_does_not_change_the_training():
    def trained(evaluations: int) -> th.Tensor:
        env = make_atari_env("pong", 2, 0, **SHORT_GAMES)
        model = ppo(env)
        for part in range(2):
            model.learn(32, reset_num_timesteps=part == 0)
            for _ in range(evaluations):
                evaluate(model, make_atari_env("pong", 1, 9, **SHORT_GAMES), 1)
        return th.cat([p.detach().flatten() for p in model.policy.parameters()])

    assert th.equal(trained(0), trained(1))


def test_dqns_random_actions_come_from_the_separate_generators_too():
    env = FakeGames(1)
    model = DQN("CnnPolicy", env, buffer_size=8, device="cpu", seed=0)
    model.exploration_rate = 1.0

    def drawn() -> list:
        return [np.random.rand(), model.action_space.sample(), float(th.rand(1))]

    def draw_after(seed: int) -> tuple[list, list]:
        np.random.seed(5), th.manual_seed(5), model.action_space.seed(5)
        with own_randomness(model, seed):
            inside = [model.predict(np.zeros((1, 4, 36, 36), np.uint8))[0].item() for _ in range(20)]
        return inside, drawn()

    first, after_first = draw_after(1)
    second, after_second = draw_after(2)
    assert first == draw_after(1)[0] != second
    np.random.seed(5), th.manual_seed(5), model.action_space.seed(5)
    assert after_first == after_second == drawn()


def test_an_agent_with_the_games_own_actions_presses_the_same_buttons_among_all_18():
    own = make_atari_env("breakout", 1)
    env = make_protocol_env(ppo(own), "breakout", "machado", 1, 0)
    assert own.action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT")
    assert env.action_space.n == 4 and env.venv.action_space.n == 18
    sent: list[np.ndarray] = []
    env.venv.step_async = sent.append  # type: ignore[method-assign]
    for action, meaning in enumerate(own.action_meanings):
        env.step_async(np.array([action]))
        assert env.venv.action_meanings[sent[-1].item()] == meaning


def test_buttons_and_not_numbers_decide_what_happens_on_the_screen():
    # The same seed and the same meanings in both action sets: the same pictures, rewards and ends.
    options = {"fire_reset": True, "noop_max": 30, "repeat_action_probability": 0.0, "terminal_on_life_loss": True}
    own = make_atari_env("breakout", 2, 7)
    full = ActionsByMeaning(make_atari_env("breakout", 2, 7, protocol="machado", **options), own.action_meanings)
    assert np.array_equal(own.reset(), full.reset())
    generator = np.random.default_rng(0)
    for _ in range(300):
        actions = generator.integers(0, 4, 2)
        (observations, rewards, dones, _), (twins, twin_rewards, twin_dones, _) = own.step(actions), full.step(actions)
        assert np.array_equal(observations, twins)
        assert np.array_equal(rewards, twin_rewards) and np.array_equal(dones, twin_dones)


@pytest.mark.parametrize("protocol", ["sb3", "machado"])
def test_an_agent_with_all_18_actions_keeps_them_under_every_protocol(protocol):
    model = ppo(make_atari_env("breakout", 1, full_action_space=True))
    env = make_protocol_env(model, "breakout", protocol, 1, 0)
    assert known_actions(model, "breakout") == ALL_ACTIONS == env.venv.action_meanings
    assert env.action_space.n == 18


def test_a_game_that_uses_every_action_needs_no_change():
    assert minimal_actions("seaquest") == ALL_ACTIONS
    assert protocol_options(ALL_ACTIONS, "seaquest") == {}


def test_actions_that_do_not_fit_are_refused():
    model = ppo(make_atari_env("breakout", 1))
    with pytest.raises(ValueError, match="An agent for pong has 6 or 18 actions, this one has Discrete"):
        known_actions(model, "pong")
    with pytest.raises(ValueError, match="no action UP, UPFIRE"):
        ActionsByMeaning(make_atari_env("breakout", 1), ("NOOP", "UP", "UPFIRE"))


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_likeliest_action_is_taken_where_it_is_asked_for(deterministic, monkeypatch):
    env, asked = FakeGames(1), set()
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, device="cpu")
    predict = model.predict

    def noted(observations, **kwargs):
        asked.add(kwargs.get("deterministic", False))
        return predict(observations, **kwargs)

    monkeypatch.setattr(model, "predict", noted)
    evaluate(model, env, 1, deterministic)
    assert asked == {deterministic}
