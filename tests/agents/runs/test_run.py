"""A run as a function: from any thread, closed behind itself, told of checkpoints, repeated by its own command line."""

import json
import shlex
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

import agents.runs.run as runs
from agents.dqn import DQNHyperparameters
from agents.ppo import LOOPS, PPOHyperparameters
from agents.runs import families, train_run
from agents.runs.config import DQNConfig, PPOConfig, ProcgenPPOConfig, command_line
from agents.runs.folder import RunFolder
from agents.runs.lock import FolderInUseError
from agents.runs.resuming import recorded_config
from experiments import atari_ppo
from experiments.cli.command import parse
from mnv4_rl.atari import make_atari_env
from tests.tiny_env import SMALL, tiny_env

TINY = PPOConfig(
    n_envs=2,
    total_timesteps=32,
    encoder=SMALL.name,
    evaluation_games=0,
    checkpoint_every=16,
    device="cpu",
    threads=1,
    ppo=PPOHyperparameters(n_steps=8, batch_size=16, n_epochs=1),
)


def tensors(folder, timesteps=32):
    return (folder / "checkpoints" / f"{timesteps:09d}" / "agent.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of TINY, not to be changed."""
    return train_run(replace(TINY, run_dir=tmp_path_factory.mktemp("first") / "run"), quiet=True)


def in_thread(function, *args, **kwargs):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args, **kwargs).result()


def test_run_in_a_worker_thread_is_the_run_of_the_main_thread(first, capfd):
    handlers, threads = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)], set(threading.enumerate())
    outcome = in_thread(train_run, TINY, quiet=True)
    assert capfd.readouterr() == ("", "")
    assert handlers == [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
    assert set(threading.enumerate()) <= threads
    assert (outcome.finished, outcome.timesteps) == (first.finished, first.timesteps) == (True, 32)
    assert outcome.folder != first.folder and outcome.model.is_file()
    assert tensors(outcome.folder) == tensors(first.folder)


def test_runs_side_by_side_in_threads_have_folders_of_their_own():
    with ThreadPoolExecutor(2) as pool:
        outcomes = [future.result() for future in [pool.submit(train_run, TINY, quiet=True) for _ in range(2)]]
    assert len({outcome.folder for outcome in outcomes}) == 2
    for outcome in outcomes:
        assert outcome.finished and outcome.model.is_file()
        assert not (outcome.folder / "run.lock").exists()


def test_default_folders_never_collide(monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda *_: "20260101_000000")
    with ThreadPoolExecutor(8) as pool, ExitStack() as opened:
        made = list(pool.map(opened.enter_context, [runs.new_folder(TINY.name) for _ in range(8)]))
        assert len(set(made)) == 8 and all(folder.is_dir() for folder in made)
        (made[0] / "progress.csv").touch()
    assert [folder.is_dir() for folder in made] == [True] + 7 * [False]


def test_a_run_that_is_refused_leaves_no_folder():
    too_large = DQNHyperparameters(buffer_size=10**12, learning_starts=8)
    with pytest.raises(ValueError, match="would fit"):
        train_run(DQNConfig(n_envs=2, total_timesteps=32, device="cpu", dqn=too_large), quiet=True)
    assert not list(runs.RUNS.iterdir())


def test_checkpoints_are_told_and_may_end_the_run():
    told = []

    def stop(path, timesteps, score):
        told.append((path.is_dir(), path.name, timesteps, score))
        return False

    pruned = train_run(TINY, stop, quiet=True)
    assert (pruned.finished, pruned.timesteps) == (False, 16) and pruned.model.is_file()
    assert told == [(True, "000000016", 16, None)]
    resumed = train_run(recorded_config(PPOConfig, pruned.folder), stop, quiet=True)
    assert (resumed.finished, resumed.timesteps) == (True, 32)  # a checkpoint at the end has nothing to stop
    assert [timesteps for _, _, timesteps, _ in told] == [16, 32]


class Closing:
    """Counts what is closed."""

    def __init__(self, env):
        self.env, self.closed = env, 0

    def __getattr__(self, name):
        return getattr(self.env, name)

    def close(self):
        self.closed += 1
        self.env.close()


@pytest.mark.parametrize("where", ["build", "training"])
def test_failure_closes_the_environments_and_releases_the_folder(where, monkeypatch):
    atari, made = families.FAMILIES["atari"], []

    def watched(config, monitor):
        made.append(Closing(atari.make_env(config, monitor)))
        return made[-1]

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setitem(families.FAMILIES, "atari", replace(atari, make_env=watched))
    if where == "build":
        monkeypatch.setattr(PPOConfig, "build", fail)
    config = replace(TINY, run_dir=runs.Path("run").absolute())
    with pytest.raises(RuntimeError, match="broken"):
        in_thread(train_run, config, fail, quiet=True)
    assert [env.closed for env in made] == [1]
    assert not (config.run_dir / "run.lock").exists()
    RunFolder(config.run_dir, resume=True).close()


def test_folder_in_use_is_an_error_and_no_exit():
    with RunFolder(runs.Path("run")) as held, pytest.raises(FolderInUseError):
        train_run(replace(TINY, run_dir=held.path), quiet=True)


def test_another_family_of_games_is_a_row(monkeypatch):
    class Coins(PPOConfig):
        family = "coins"

    atari = families.FAMILIES["atari"]
    with pytest.raises(KeyError):
        train_run(Coins(), quiet=True)
    row = replace(atari, resolve_game=lambda game: f"coins_{game}")
    monkeypatch.setitem(families.FAMILIES, "coins", row)
    outcome = train_run(Coins(**vars(TINY)), quiet=True)
    assert outcome.folder.name.startswith("coins_pong__ppo__small__s0__")


@pytest.mark.parametrize("make", ["make_env", "make_evaluation_env"])
def test_threads_are_those_of_training_and_of_evaluations(make, monkeypatch):
    monkeypatch.setattr(families, "make_atari_env", lambda *_, num_threads=0, **__: num_threads)
    config = replace(TINY, threads=3)
    arguments = (config, runs.Path("monitor.csv")) if make == "make_env" else (config,)
    assert getattr(config.games, make)(*arguments) == 3


# Command lines


def words(folder):
    return shlex.split((folder / "command.txt").read_text().splitlines()[0])


def test_command_txt_repeats_the_run_bit_for_bit_and_a_resumed_one_says_what_changed(first):
    said = words(first.folder)
    assert said[:2] == ["python", "experiments/atari_ppo.py"]
    atari_ppo.main([*said[2:], "--run-dir", "again"])
    again = runs.Path("again")
    assert tensors(first.folder) == tensors(again)
    train_run(replace(recorded_config(PPOConfig, again), total_timesteps=48), quiet=True)
    lines = (again / "command.txt").read_text().splitlines()
    assert lines == [shlex.join(said), "python experiments/atari_ppo.py --resume again --total-timesteps 48"]


ppo_configs = st.builds(
    PPOConfig,
    game=st.sampled_from(["pong", "Ms. Pac-Man", "ALE/Breakout-v5"]),
    seed=st.integers(0, 2 * 10**9),
    threads=st.none() | st.integers(1, 8),
    compile=st.booleans(),
    loop=st.sampled_from(["auto", *LOOPS]),
    precision=st.sampled_from(["fp32", "bf16"]),
    ppo=st.builds(
        PPOHyperparameters, learning_rate=st.floats(0, 1), gamma=st.floats(0, 1), n_steps=st.integers(1, 2**40)
    ),
)
dqn_configs = st.builds(
    DQNConfig,
    algo=st.sampled_from(["dqn", "qrdqn"]),
    checkpoint_replay=st.booleans(),
    dqn=st.builds(DQNHyperparameters, learning_rate=st.floats(0, 1), exploration_fraction=st.floats(1e-9, 1)),
)


@given(ppo_configs | dqn_configs)
def test_every_config_is_parsed_back_from_its_line(config):
    line = command_line(config)
    assert parse(type(config), shlex.split(line)[2:]) == config
    assert command_line(parse(type(config), shlex.split(line)[2:])) == line


def test_a_dqn_run_is_a_function_too(monkeypatch):
    monkeypatch.setattr("agents.runs.families.make_atari_env", partial(make_atari_env, max_episode_frames=160))
    monkeypatch.setattr("agents.runs.evaluation_log.CLIP_TIMESTEPS", 2)
    h = DQNHyperparameters(buffer_size=200, learning_starts=16, batch_size=8)
    config = DQNConfig(n_envs=2, total_timesteps=32, encoder="rl_s", evaluation_games=1, device="cpu", threads=1, dqn=h)
    outcome = in_thread(train_run, config, quiet=True)
    assert outcome.finished and outcome.evaluation is not None and len(outcome.evaluation.scores) == 1
    assert json.loads((outcome.folder / "evaluation.json").read_text())["games"] == 1
    assert np.isfinite(outcome.steps_per_second)
    assert words(outcome.folder)[1] == "experiments/atari_dqn.py"


@pytest.mark.parametrize("algo", ["dqn", "qrdqn"])
def test_the_algorithm_is_the_one_asked_for(algo):
    h = DQNHyperparameters(buffer_size=64, batch_size=8)
    model = DQNConfig(algo=algo, encoder="nature", device="cpu", dqn=h).build(tiny_env())
    assert type(model).__name__.lower() == algo


@pytest.mark.parametrize(("config", "make"), [(TINY, "make_atari_env"), (ProcgenPPOConfig(), "make_procgen_env")])
def test_evaluations_play_games_that_training_did_not_begin_with(config, make, monkeypatch):
    monkeypatch.setattr(families, make, lambda _game, _n_envs, seed, **_: seed)
    config = replace(config, seed=3, evaluation_games=2)
    assert config.games.make_evaluation_env(config) == 10_003


def test_a_run_goes_on_without_the_evaluations_that_it_had():
    config = replace(TINY, game="breakout", evaluation_games=1, eval_every=100)  # past its end
    stopped = train_run(config, lambda *_: False, quiet=True)
    assert not stopped.finished
    before = recorded_config(PPOConfig, stopped.folder)
    assert train_run(replace(before, evaluation_games=0, eval_every=0), quiet=True).finished


def test_as_many_checkpoints_are_kept_as_were_asked_for():
    outcome = train_run(replace(TINY, total_timesteps=80, keep_checkpoints=4), quiet=True)
    kept = sorted(int(path.name) for path in (outcome.folder / "checkpoints").iterdir())
    assert kept == [32, 48, 64, 80]


@pytest.mark.parametrize(
    "wrong",
    [
        {"evaluation_games": 0.5},
        {"keep_checkpoints": 1.5},
        {"checkpoint_every": 10.5},
        {"seed": None},
        {"n_envs": None},
        {"total_timesteps": 32.5},
        {"device": None},
        {"ppo": {"n_steps": 16.5}},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_before_anything(wrong):
    nested = {name: PPOHyperparameters(**value) for name, value in wrong.items() if isinstance(value, dict)}
    name = next(iter(wrong["ppo"] if nested else wrong))
    with pytest.raises(ValueError, match=name):
        PPOConfig(**wrong | nested).check()


def test_numpys_numbers_and_words_for_paths_are_as_pythons():
    seed, total_timesteps, rate = np.int64(3), np.int32(32), np.float32(0.5)
    config = PPOConfig(
        seed=seed,
        total_timesteps=total_timesteps,
        encoder=np.str_("rl_s"),
        compile=np.False_,
        run_dir="x",
        device=th.device("cpu"),
        ppo=PPOHyperparameters(n_steps=np.int64(64), learning_rate=rate),
    )
    config.check()
    found = (config.seed, config.total_timesteps, config.encoder, config.compile, config.run_dir, config.device)
    assert found == (3, 32, "rl_s", False, Path("x"), "cpu")
    assert {type(value) for value in found[:4]} == {int, str, bool}
    assert (type(config.ppo.n_steps), type(config.ppo.learning_rate)) == (int, float)
