"""Copying an agent: a policy anyone can learn is learnt, noise is not, and the scale has its 0 and 1 where it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th

from agents.dqn import DQNHyperparameters, build_dqn
from agents.ppo import build_ppo
from experiments.study import cloning
from experiments.study.cloning import Lesson, Play, as_rewards_teach, clone, clone_to, examine, published_agent, record
from mnv4_rl.agent_files import save_agent
from mnv4_rl.atari import make_atari_env

N = 600


def play(probabilities, observations):
    values = probabilities[:, 0]
    return Play(observations, probabilities, (values - values.mean()) / values.std())


def lesson_of(bright):
    """An agent on Pong that acts on whether the picture is bright: (600,) bool for train and test alike."""
    observations = th.where(bright, 200, 40).to(th.uint8)[:, None, None, None].expand(-1, 4, 84, 84).clone()
    observations[:, :, :10] = 90
    acts = th.tensor([[0.9] + [0.02] * 5, [0.02] * 5 + [0.9]])[bright.long()]
    part = play(acts, observations)
    return Lesson("pong", part, part)


def test_a_policy_that_depends_on_what_is_seen_is_learnt(monkeypatch):
    monkeypatch.setattr(cloning, "BATCH", 32)
    learnt = clone("rl_s", lesson_of(th.rand(N, generator=th.Generator().manual_seed(0)) < 0.5), 0, updates=240)
    assert learnt.policy > 0.8
    assert learnt.value > 0.8


def test_an_update_weighs_values_and_clips_gradients_as_ppo_does(monkeypatch):
    monkeypatch.setattr(cloning, "BATCH", 8)
    found, clip, ppo = [], th.nn.utils.clip_grad_norm_, cloning.PRESETS["atari"]

    def note(parameters, max_norm):
        parameters = list(parameters)
        found.append((max_norm, next(p.grad.clone() for p in parameters if p.shape == (1, 512))))
        return clip(parameters, max_norm)

    monkeypatch.setattr(th.nn.utils, "clip_grad_norm_", note)
    for vf_coef in (0.25, 0.5):
        monkeypatch.setitem(cloning.PRESETS, "atari", replace(ppo, vf_coef=vf_coef, max_grad_norm=0.3))
        clone("rl_s", lesson_of(th.arange(16) % 2 == 0), 0, updates=1)
    (norm, half), (_, whole) = found
    assert norm == 0.3 and half.any()
    th.testing.assert_close(2 * half, whole)


def test_what_is_not_in_the_picture_is_not_learnt(monkeypatch):
    monkeypatch.setattr(cloning, "BATCH", 32)
    lesson = lesson_of(th.rand(N, generator=th.Generator().manual_seed(0)) < 0.5)
    shuffled = lesson.train._replace(observations=lesson.train.observations[th.randperm(N)])
    assert clone("rl_s", Lesson("pong", shuffled, lesson.test), 0, updates=40).policy < 0.1


def test_rewards_teach_one_action_a_state_and_a_noisy_return():
    exact = lesson_of(th.rand(4_000, generator=th.Generator().manual_seed(0)) < 0.5)
    drawn = as_rewards_teach(exact, 3)
    assert drawn.test is exact.test and drawn.train.observations is exact.train.observations
    actions = drawn.train.probabilities
    assert ((actions == 0) | (actions == 1)).all() and (actions.sum(1) == 1).all()
    bright = exact.train.probabilities[:, 5] > 0.5
    assert actions[bright].mean(0)[5].item() == pytest.approx(0.9, abs=0.03)
    assert (drawn.train.values - exact.train.values).std().item() == pytest.approx(1, abs=0.05)
    assert th.equal(as_rewards_teach(exact, 3).train.values, drawn.train.values)
    assert not th.equal(as_rewards_teach(exact, 4).train.values, drawn.train.values)


def test_an_action_that_was_never_drawn_does_not_make_a_copy_perfect(monkeypatch):
    lesson = lesson_of(th.arange(N) % 2 == 0)
    never = lesson.train.probabilities.clone()
    never[:, 3] = 0
    lesson = replace(lesson, train=lesson.train._replace(probabilities=never))
    monkeypatch.setattr(cloning, "_outputs", lambda _policy, batch: (th.zeros(len(batch), 6), th.zeros(len(batch))))
    assert examine(None, lesson).policy < 0.5


def test_the_scale_is_0_for_the_mean_and_1_for_the_agent_itself(monkeypatch):
    lesson = lesson_of(th.arange(N) % 2 == 0)
    agent = (lesson.test.probabilities.log(), lesson.test.values)
    monkeypatch.setattr(cloning, "_outputs", lambda _policy, batch: tuple(part[: len(batch)] for part in agent))
    assert examine(None, lesson) == pytest.approx((1, 1))  # batches of 256 begin at even states
    mean = lesson.train.probabilities.mean(0).log().expand(N, -1), th.zeros(N)
    monkeypatch.setattr(cloning, "_outputs", lambda _policy, batch: tuple(part[: len(batch)] for part in mean))
    assert examine(None, lesson) == pytest.approx((0, 0), abs=1e-6)


def test_the_same_seed_gives_the_same_numbers():
    lesson = lesson_of(th.arange(N) % 2 == 0)
    assert clone("nature", lesson, 3, updates=2) == clone("nature", lesson, 3, updates=2)


def test_an_examination_on_the_way_changes_nothing():
    lesson = lesson_of(th.arange(N) % 2 == 0)
    alone = [clone("nature", lesson, 3, updates=updates) for updates in (1, 3)]
    assert list(clone_to("nature", lesson, 3, (1, 3))) == alone
    assert alone[0] != alone[1]


def test_play_is_recorded_from_the_agents_own_states(tmp_path):
    env = make_atari_env("pong", 1, 0)
    model = build_ppo(env, "nature", total_timesteps=1000, seed=0, device="cpu")
    env.close()
    save_agent(model, tmp_path / "pong__ppo__nature__s0" / "agent", optimizer=False)
    folder = published_agent("pong", tmp_path)
    lesson = record("pong", folder, seed=1, timesteps=7)
    assert lesson.train.observations.shape == (13 * 3, 4, 84, 84) and lesson.test.observations.shape[0] == 3 * 3
    assert lesson.train.observations.dtype == th.uint8
    values = th.cat([lesson.train.values, lesson.test.values])
    assert values.mean().item() == pytest.approx(0, abs=1e-5) and values.std().item() == pytest.approx(1, abs=1e-5)
    with th.no_grad():
        expected = model.policy.get_distribution(lesson.test.observations).distribution.probs
    np.testing.assert_allclose(lesson.test.probabilities, expected, rtol=1e-5)


def test_an_agent_without_probabilities_cannot_be_copied(tmp_path):
    env = make_atari_env("pong", 1, 0)
    model = build_dqn(env, "nature", seed=0, device="cpu", hyperparameters=DQNHyperparameters(buffer_size=100))
    env.close()
    save_agent(model, tmp_path / "agent", optimizer=False)
    with pytest.raises(ValueError, match="agent is of DQN, which has no probabilities to copy; name one of PPO"):
        record("pong", tmp_path / "agent", seed=0)


def test_a_game_without_a_published_agent_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"has no agent of pong; publish one first with experiments/publish_agent.py"):
        published_agent("pong", tmp_path)


def test_an_agent_published_later_does_not_take_the_teachers_place(tmp_path):
    for name in ("pong__ppo__rl_s__s0", "pong__ppo__abc__s0"):
        (tmp_path / name / "agent").mkdir(parents=True)
    assert published_agent("pong", tmp_path).parent.name == "pong__ppo__rl_s__s0"
    for name in ("boxing__ppo__rl_s__s0", "boxing__ppo__rl_s2__s0"):
        (tmp_path / name / "agent").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"boxing__ppo__rl_s2__s0, boxing__ppo__rl_s__s0; name one of them in TEACHERS"
    ):
        published_agent("boxing", tmp_path)


def test_the_teachers_are_those_of_the_published_copies():
    """docs/search.md tells of copies of these agents."""
    teachers = {game: published_agent(game).parent.name for game in ("pong", "breakout", "procgen/starpilot")}
    assert teachers == {
        "pong": "pong__ppo__rl_s__s0",
        "breakout": "breakout__ppo__rl_s__s1",
        "procgen/starpilot": "procgen_starpilot__ppo__impala__s0",
    }
