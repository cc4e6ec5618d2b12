from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.dqn import DQNHyperparameters, build_dqn
from agents.encoders import encoder_of
from agents.play.evaluate import Evaluation
from agents.play.video import SMALL, gif
from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs import callbacks, evaluation_log
from agents.runs import session as training
from agents.runs.callbacks import EncoderHealth, EnvTimer, TimeSplit, encoder_health, recent_score
from agents.runs.evaluation_log import PeriodicEvaluation, evaluation_scalars, record_clip
from agents.runs.folder import RunFolder
from agents.runs.saving import CheckpointPlan
from agents.runs.state import Clock
from mnv4_rl.atari import make_atari_env
from mnv4_rl.procgen.env import ProcgenVecEnv
from tests.tiny_env import tiny_ppo

DOCS = Path(__file__).resolve().parents[3] / "docs" / "tensorboard.md"
SHORT_GAMES = {"max_episode_frames": 160}  # 40 agent timesteps
OF_PROCGEN = {f"eval/{ProcgenVecEnv.scale}", "eval_unseen_levels/..."}  # the runs here are of Atari
SB3_KEYS = ("rollout/", "train/", "time/fps")


def small_ppo(env, encoder: str = "rl_s"):
    settings = PPOHyperparameters(n_steps=32, batch_size=32, n_epochs=1)
    return build_ppo(env, encoder, total_timesteps=192, hyperparameters=settings, seed=0, device="cpu")


def small_dqn(env):
    settings = DQNHyperparameters(buffer_size=128, learning_starts=16, batch_size=8)
    return build_dqn(env, "nature", hyperparameters=settings, seed=0, device="cpu")


def short_env(n_envs: int = 2):
    return make_atari_env("pong", n_envs, 0, **SHORT_GAMES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Event files of a short PPO and a short DQN run, as the commands make them."""
    patch, found = pytest.MonkeyPatch(), {}
    patch.setattr(training, "EncoderHealth", partial(EncoderHealth, every_timesteps=64, n_observations=8))
    patch.setattr(evaluation_log, "CLIP_TIMESTEPS", 10)
    patch.setattr(callbacks, "TIME_SPLIT_SECONDS", 0.0)
    for build in (small_ppo, small_dqn):
        timer = EnvTimer(short_env())
        run = RunFolder(tmp_path_factory.mktemp("run") / build.__name__)
        model = build(timer)
        plan = training.Plan(192, 2, CheckpointPlan(0), eval_every=64)
        training.train(model, timer, run, plan, partial(short_env, 1))
        run.close()
        found[build.__name__] = EventAccumulator(str(run.path)).Reload()
    patch.undo()
    return found


def written_keys(events: EventAccumulator) -> set[str]:
    return {key for kind in ("scalars", "images") for key in events.Tags()[kind]}


def documented_keys() -> dict[str, re.Pattern]:
    """Key as the docs write it -> pattern; `<...>` stands for one name."""
    keys = re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    return {key: re.compile(re.sub(r"<\w+>", r"\\w+", key)) for key in keys}


def test_every_key_that_a_run_writes_is_in_the_docs(runs):
    patterns = documented_keys().values()
    for events in runs.values():
        unknown = [key for key in written_keys(events) if not any(p.fullmatch(key) for p in patterns)]
        assert unknown == []


def test_every_key_of_ours_in_the_docs_is_written(runs):
    written = set.union(*map(written_keys, runs.values())) | OF_PROCGEN
    for key, pattern in documented_keys().items():
        assert key.startswith(SB3_KEYS) or any(map(pattern.fullmatch, written)), key


def test_every_training_key_in_the_docs_is_written(runs):
    written = set.union(*map(written_keys, runs.values()))
    assert {key for key in documented_keys() if key.startswith("train/")} <= written


def test_evaluations_stand_at_the_timesteps_asked_for_and_at_the_end(runs):
    steps = [point.step for point in runs["small_ppo"].Scalars("eval/mean_reward")]
    assert steps == [64, 128, 192]  # the last rollout ends at a mark too, but is evaluated once


@pytest.mark.parametrize("build", [partial(small_ppo, encoder="nature"), small_dqn], ids=["ppo", "dqn"])
def test_evaluations_leave_the_training_as_it_would_be_without(build, monkeypatch):
    monkeypatch.setattr(evaluation_log, "CLIP_TIMESTEPS", 2)
    trained = []
    for callback in (None, PeriodicEvaluation(partial(short_env, 1), 1, 64)):
        model = build(short_env())
        model.set_logger(Logger(None, []))
        trained.append(model.learn(128, callback).policy.parameters())
    assert all(th.equal(a, b) for a, b in zip(*trained, strict=True))


def test_the_clip_of_play_is_a_gif_that_moves(runs):
    images = runs["small_ppo"].Images("eval/play")
    assert len(images) == 3 and (images[0].width, images[0].height) == (160, 210)
    assert images[0].encoded_image_string[:6] == b"GIF89a"


def test_shares_of_time_are_shares(runs):
    for events in runs.values():
        values = {
            name: [p.value for p in events.Scalars(f"time/{name}_fraction")] for name in ("env", "learner", "optimiser")
        }
        for env, learner, optimiser in zip(*values.values(), strict=True):
            assert 0 <= optimiser <= learner and 0 < env and env + learner <= 1.001
        assert max(values["optimiser"]) > 0


def test_the_replays_transitions_are_counted_over_all_environments(runs):
    counts = [point.value for point in runs["small_dqn"].Scalars("replay/transitions")]
    assert counts == sorted(counts) and counts[-1] == 128
    assert all(count % 2 == 0 for count in counts)
    assert "replay/transitions" not in written_keys(runs["small_ppo"])


def test_a_resumed_run_evaluates_at_the_same_marks(tmp_path, monkeypatch):
    marks: list[int] = []
    monkeypatch.setattr(
        "agents.runs.evaluation_log.evaluate_and_log",
        lambda model, make_env, n_games: marks.append(model.num_timesteps),
    )
    model = small_ppo(short_env(), "nature")
    for part in range(2):  # rollouts of 64 timesteps
        model.learn(160, callback=PeriodicEvaluation(short_env, 1, 100), reset_num_timesteps=part == 0)
    assert marks == [128, 256, 320]  # rollouts that end at 192 and 384 are the last of their sessions


def test_evaluations_of_dqn_take_its_final_share_of_random_actions(monkeypatch):
    model, seen = small_dqn(short_env()), []
    model.set_logger(Logger(None, []))
    monkeypatch.setattr(evaluation_log, "CLIP_TIMESTEPS", 2)
    predict = model.predict
    monkeypatch.setattr(
        model, "predict", lambda *args, **kw: seen.append(model.exploration_rate) or predict(*args, **kw)
    )
    model.exploration_rate = 0.7
    evaluation_log.evaluate_and_log(model, short_env, 1)
    assert set(seen) == {model.exploration_final_eps} and model.exploration_rate == 0.7


def test_the_time_splits_hooks_leave_with_the_training(tmp_path):
    timer = EnvTimer(short_env())
    model = small_ppo(timer, "nature")
    model.learn(64, callback=TimeSplit(timer, Clock()))
    optimiser = model.policy.optimizer
    assert not optimiser._optimizer_step_pre_hooks and not optimiser._optimizer_step_post_hooks


def test_health_of_an_encoder_by_hand():
    model = small_ppo(short_env())
    observations = np.random.default_rng(0).integers(0, 255, (8, 4, 84, 84), np.uint8)
    encoder = encoder_of(model)
    values = encoder_health(model, observations)
    with th.no_grad():
        features = model.policy.extract_features(model.policy.obs_to_tensor(observations)[0])[:, :384]  # no constants
    size = features.abs().mean(0)
    assert values["feature_std"] == pytest.approx(float(features.std()), rel=1e-4)
    assert values["feature_norm"] == pytest.approx(float(features.pow(2).sum(1).sqrt().mean()), rel=1e-4)
    assert values["dormant_fraction"] == pytest.approx(float((size < 0.025 * size.mean()).float().mean()))
    total = sum(float(p.detach().pow(2).sum()) for p in encoder.parameters())
    assert values["weight_norm"] == pytest.approx(total**0.5, rel=1e-4)
    assert values["grad_norm"] == 0  # nothing was trained yet
    assert all(value > 0 for name, value in values.items() if name.startswith("std_"))
    assert not any(module._forward_hooks for module in encoder.modules())


@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_health_moves_with_the_features_of_the_image(factor):
    """The 128 constants of rl_s are larger, and stay."""
    model = small_ppo(short_env())
    observations = np.random.default_rng(0).integers(0, 255, (8, 4, 84, 84), np.uint8)
    before = encoder_health(model, observations)
    head = encoder_of(model).network.head
    head.gain *= factor
    after = encoder_health(model, observations)
    for name in ("feature_std", "feature_norm"):
        assert after[name] == pytest.approx(factor * before[name], rel=1e-4)
    with th.no_grad():
        for parameter in head.norm.parameters():
            parameter[:192] = 0  # half of the 384
    assert encoder_health(model, observations)["dormant_fraction"] == pytest.approx(0.5, abs=0.02)


def test_a_dead_feature_counts_as_dormant():
    model = small_ppo(short_env(), "nature")
    linear = encoder_of(model).linear[0]
    with th.no_grad():
        linear.weight[:128] = 0  # a quarter of the 512
        linear.bias[:128] = -1
    health = encoder_health(model, np.random.default_rng(0).integers(0, 255, (8, 4, 84, 84), np.uint8))
    assert health["dormant_fraction"] >= 0.25


def test_an_evaluation_of_one_game_or_of_an_unknown_game_has_fewer_numbers():
    pong, tetris = make_atari_env("pong", 1), make_atari_env("tetris", 1)
    assert evaluation_scalars(Evaluation.of([14.6]), pong) == {"mean_reward": 14.6, "human_normalised": 1}
    assert set(evaluation_scalars(Evaluation.of([1.0, 2.0]), tetris)) == {"mean_reward", "low", "high"}
    pong.close(), tetris.close()


def test_a_clip_has_the_first_screen_and_one_a_timestep():
    model = small_ppo(short_env(), "nature")
    clip = record_clip(model, short_env(), 10)
    assert len(clip) == 11 and clip[0].shape == (210, 160, 3)
    assert all(np.array_equal(a, b) for a, b in zip(clip, record_clip(model, short_env(), 10), strict=True))


def test_the_clip_in_tensorboard_says_the_size_it_has():
    """Procgen's screens of 64x64 are magnified."""
    clip = gif([np.zeros((64, 64, 3), np.uint8)], 4, height=SMALL)
    (value,) = evaluation_log._as_image("eval/play", clip).value
    assert (value.image.width, value.image.height) == (192, 192)


def test_the_recent_score_is_the_mean_raw_score():
    model = tiny_ppo()
    assert recent_score(model) is None
    model.ep_info_buffer = [{"r": 2.0, "l": 100, "t": 0.1}, {"r": 5.0, "l": 300, "t": 0.2}]
    assert recent_score(model) == 3.5


def test_the_gradients_norm_is_of_gradients():
    model, n = tiny_ppo(), 0
    for weight in encoder_of(model).parameters():
        weight.grad, n = th.full_like(weight, 2.0), n + weight.numel()
    health = encoder_health(model, np.zeros((2, 4, 36, 36), np.uint8))
    assert health["grad_norm"] == pytest.approx(2 * n**0.5, rel=1e-4)
