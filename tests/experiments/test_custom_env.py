"""The example environment is a fair game, and the command trains on it from any folder."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from experiments import custom_env
from experiments.custom_env import BLUE, CELL, GREEN, PADDLE_TOP, RED, SIZE, WHITE, CatchEnv, Config, Result
from mnv4_rl import MNV4Extractor
from mnv4_rl.models.registry import DEFAULT_VARIANT

ROOT = Path(__file__).resolve().parents[2]


def left_edge(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """First column that shows a colour, in pixels."""
    return int(np.nonzero((picture == colour).all(-1))[1].min())


def scripted_action(picture: np.ndarray) -> int:
    """Bring the paddle's left half under the red ball, from the picture alone."""
    return 1 + int(np.sign(left_edge(picture, RED) - left_edge(picture, WHITE)))


def play(env: CatchEnv, seed: int) -> tuple[float, int]:
    """Return and length of one scripted episode."""
    picture, _ = env.reset(seed=seed)
    total, length, done = 0.0, 0, False
    while not done:
        picture, reward, _, done, _ = env.step(scripted_action(picture))
        total, length = total + reward, length + 1
    return total, length


@pytest.mark.filterwarnings("error")
def test_the_environment_keeps_gymnasiums_and_sb3s_contracts() -> None:
    check_gymnasium_env(CatchEnv(render_mode="rgb_array"), skip_render_check=True)
    check_sb3_env(CatchEnv())


@pytest.mark.parametrize("action", [7, -1, 3, 1.5, None, np.array([1, 1])])
def test_an_action_that_does_not_exist_is_refused_and_changes_nothing(action: object) -> None:
    env = CatchEnv()
    before, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="left"):
        env.step(action)
    assert np.array_equal(env.render(), before)
    env.step(np.int64(1))


@pytest.mark.parametrize("render_mode", ["ansi", "human", "rgb"])
def test_a_render_mode_that_does_not_exist_is_refused(render_mode: str) -> None:
    with pytest.raises(ValueError, match="rgb_array"):
        CatchEnv(render_mode=render_mode)


def test_before_reset_and_after_the_last_ball_it_asks_for_reset() -> None:
    env = CatchEnv(n_balls=1)
    for call in (lambda: env.step(1), env.render):
        with pytest.raises(ResetNeeded, match="reset"):
            call()
    env.reset(seed=0)
    while not env.step(1)[3]:
        pass
    env.render()
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(1)


@pytest.mark.parametrize("seed", range(10))
def test_what_the_picture_shows_is_enough_for_the_best_return(seed: int) -> None:
    assert play(CatchEnv(), seed) == (10.0, 60)


def test_every_ball_can_be_reached_from_every_place() -> None:
    env = CatchEnv(n_balls=1)
    for paddle_x in range(0, SIZE - custom_env.PADDLE_WIDTH + 1, CELL):
        for ball_x in range(0, SIZE, CELL):
            env.reset(seed=0)
            others = [x for x in range(0, SIZE, CELL) if x != ball_x]
            env.paddle_x, env.ball_x = paddle_x, [ball_x, *others[:2]]
            rewards = [env.step(scripted_action(env.render()))[1] for _ in range(env.n_fall_steps)]
            assert rewards == [0.0] * (env.n_fall_steps - 1) + [1.0], (paddle_x, ball_x)


def test_random_play_is_at_chance() -> None:
    assert 1.0 < custom_env.random_return(100) < 3.0


def test_a_seed_fixes_the_episode() -> None:
    def pictures(seed: int) -> np.ndarray:
        env = CatchEnv()
        first, _ = env.reset(seed=seed)
        return np.stack([first, *(env.step(step % 3)[0] for step in range(60))])

    assert np.array_equal(pictures(1), pictures(1))
    assert not np.array_equal(pictures(1), pictures(2))


def test_the_picture_shows_three_balls_and_the_paddle() -> None:
    env = CatchEnv()
    for seed in range(20):
        picture, _ = env.reset(seed=seed)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert [left_edge(picture, colour) for colour in (RED, GREEN, BLUE)] == env.ball_x
        assert left_edge(picture[PADDLE_TOP:], WHITE) == env.paddle_x
        assert len(set(env.ball_x)) == 3


def test_only_the_red_ball_counts() -> None:
    env = CatchEnv(n_balls=1)
    env.reset(seed=0)
    env.ball_x = [0, env.paddle_x, env.paddle_x + CELL]  # green and blue fall on the paddle, red far from it
    assert sum(env.step(1)[1] for _ in range(env.n_fall_steps)) == 0.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(encoder=("rl_xxl",)), r"encoder must name at least one of nature, .*rl_s.*; got rl_xxl"),
        (dict(encoder=()), r"got none"),
        (dict(total_timesteps=0), r"total_timesteps must lie in .*, got 0"),
        (dict(n_envs=0), r"n_envs must lie in .*, got 0"),
    ],
)
def test_wrong_settings_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**kwargs).check()


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text("a result")
    with pytest.raises(ValueError, match="already holds files; name another folder with --run-dir"):
        Config(run_dir=tmp_path).check()
    assert (tmp_path / "progress.csv").read_text() == "a result"


def test_near_optimal_is_the_first_time_the_curve_reaches_the_threshold(tmp_path: Path) -> None:
    curve = tmp_path / "progress.csv"
    with curve.open("w", newline="") as file:
        rows = [("rollout/ep_rew_mean", "time/time_elapsed"), ("", 1), (8.9, 2), (9.0, 3), (8.0, 4), (9.5, 5)]
        csv.writer(file).writerows(rows)
    assert custom_env.near_optimal_seconds(curve, 9.0) == 3.0
    assert custom_env.near_optimal_seconds(curve, 9.9) is None


def test_the_table_states_chance_and_optimum() -> None:
    text = custom_env.table([Result("rl_s", 9.5, 120.0, 80.0, 500.0), Result("nature", 3.0, 100.0, None, 600.0)], 1.9)
    first, _, ours, nature = text.splitlines()
    assert first == "Balls caught an episode: chance 1.9, optimum 10."
    assert ours.split() == ["rl_s", "9.50", "80", "s", "120", "s", "500"]
    assert nature.split() == ["nature", "3.00", "never", "100", "s", "600"]


def test_both_encoders_train_under_the_same_settings_even_if_nothing_can_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", open("/dev/full", "w"))
    flags = ["--total-timesteps", "300", "--n-envs", "2", "--n-eval-episodes", "2", "--run-dir", str(tmp_path / "run")]
    results = custom_env.main(flags)
    assert [result.encoder for result in results] == [DEFAULT_VARIANT, "nature"]
    with (tmp_path / "run" / "results.csv").open(newline="") as file:
        assert [float(row["mean_return"]) for row in csv.DictReader(file)] == [r.mean_return for r in results]
    agents = {
        name: PPO.load(tmp_path / "run" / name / "model.zip", device="cpu") for name in (DEFAULT_VARIANT, "nature")
    }
    assert isinstance(agents[DEFAULT_VARIANT].policy.features_extractor, MNV4Extractor)
    assert type(agents["nature"].policy.features_extractor).__name__ == "NatureCNN"
    for name, agent in agents.items():
        assert agent.policy.features_dim == agent.policy.action_net.in_features == 512  # no layers in between
        assert list((tmp_path / "run" / name).glob("events.out.tfevents.*"))
        assert len((tmp_path / "run" / name / "progress.csv").read_text().splitlines()) == 3  # head, two rollouts


@pytest.mark.parametrize("by_module", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_command_starts_from_any_folder(by_module: bool, tmp_path: Path) -> None:
    command = ["-m", "experiments.custom_env"] if by_module else [str(ROOT / "experiments" / "custom_env.py")]
    env = os.environ | ({"PYTHONPATH": str(ROOT)} if by_module else {})
    done = subprocess.run(
        [sys.executable, *command, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert "--total-timesteps" in done.stdout and "Environment steps of each run" in done.stdout


@pytest.mark.slow
def test_an_agent_learns_the_game_within_the_default_budget(tmp_path: Path) -> None:
    (result,) = custom_env.main(["--encoder", DEFAULT_VARIANT, "--run-dir", str(tmp_path / "run")])
    assert result.mean_return >= 9.0
    assert result.near_optimal_seconds is not None
