"""Run folders that strangers, broken disks or other processes changed: refused whole, and left as they are."""

import errno
import fcntl
import json
import os
import shutil
import zipfile
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from agents.dqn import DQNHyperparameters
from agents.runs import OpenRun, open_run, train_run
from agents.runs.checkpoints import newest_checkpoint, prune_checkpoints
from agents.runs.config import DQNConfig, PPOConfig, RunConfig
from agents.runs.folder import RunFolder, UnsavedError, evaluated_timesteps, exported_timesteps
from agents.runs.loading import load_run
from agents.runs.lock import FolderInUseError, LostFolderError, RunLock
from agents.runs.resuming import recorded_config
from agents.runs.session import keep_exploring
from experiments import atari_dqn, atari_ppo
from experiments.cli.atari import heading
from mnv4_rl import sealed_folders
from mnv4_rl.safe_files import DamagedError
from tests.agents.runs.test_resume import q_learner
from tests.agents.runs.test_run import TINY
from tests.mnv4_rl.test_payloads import seal
from tests.tiny_env import SMALL, dqn, tiny_env, tiny_ppo

STEPS = 32
TINY_DQN = DQNConfig(
    **{each.name: getattr(TINY, each.name) for each in fields(RunConfig)} | {"checkpoint_every": 0},
    checkpoint_replay=True,
    dqn=DQNHyperparameters(buffer_size=64, learning_starts=8, batch_size=8, train_freq=4),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished PPO run with checkpoints at 16 and 32 timesteps, and an evaluation of one game that was written."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    atari_ppo.main(flags(folder))
    return folder


def flags(folder):
    words = f"--n-envs 2 --total-timesteps 32 --checkpoint-every 16 --encoder {SMALL.name} --evaluation-games 0 "
    words += "--device cpu --game breakout --threads 1 --ppo.n-steps 8 --ppo.batch-size 16 --ppo.n-epochs 1"
    return [*words.split(), "--run-dir", str(folder)]


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it that was killed at its last checkpoint."""
    target = tmp_path / "run"
    shutil.copytree(finished, target)
    (target / "model.zip").unlink()
    return target


def contents(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[path] = (os.lstat(path).st_mode, path.read_bytes() if is_file else None)
    return found


def refused(folder, capsys, *more, command=atari_ppo):
    """The last line of a refused resume, which changed nothing."""
    before = contents(folder.parent)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command.main(["--resume", str(folder), *more])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "Traceback" not in said
    assert contents(folder.parent) == before
    line = said.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def checkpoint(run, timesteps=STEPS):
    return run / "checkpoints" / f"{timesteps:09d}"


# What a run without a usable checkpoint loses: nothing


def remove_folder(run):
    shutil.rmtree(run / "checkpoints")


def empty_folder(run):
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)


def damage_all(run):
    for path in (run / "checkpoints").iterdir():
        os.truncate(path / "agent.safetensors", 100)


def drop_manifests(run):
    for path in (run / "checkpoints").iterdir():
        (path / "manifest.json").unlink()


def publish(run):
    (run / "checkpoints" / "000000032").rename(run / "agent")
    shutil.rmtree(run / "checkpoints")
    (run / "first_checkpoint.txt").unlink()


@pytest.mark.filterwarnings("ignore:damaged checkpoint:RuntimeWarning")
@pytest.mark.parametrize("kept", ["nothing", "model.zip", "evaluation.json"])
@pytest.mark.parametrize("loss", [remove_folder, empty_folder, damage_all, drop_manifests, publish])
def test_resume_without_a_usable_checkpoint_is_refused_and_says_what_to_do(run, loss, kept, capsys):
    if kept != "nothing":
        (run / kept).write_text("{}")
    loss(run)
    assert "new run" in refused(run, capsys)


@pytest.mark.filterwarnings("ignore:damaged checkpoint:RuntimeWarning")
@pytest.mark.parametrize("count", [0, -5, 31, 10**13, 1.5, "32", None])
def test_signed_counts_that_are_none_are_passed_by(run, count, capsys):
    for timesteps in (16, 32):
        path = checkpoint(run, timesteps) / "training.json"
        state = json.loads(path.read_text())
        state["counters"]["num_timesteps"] = count
        path.write_text(json.dumps(state))
        seal(path.parent)
    assert "all 2 checkpoints" in refused(run, capsys)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_read_error_that_may_pass_refuses_and_deletes_nothing(run, code, capsys, monkeypatch):
    opened = sealed_folders.open_regular

    def fail_on_newest(path, *args, **kwargs):
        if "000000032" in str(path) and path.name == "agent.safetensors":
            raise OSError(code, os.strerror(code))
        return opened(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sealed_folders, "open_regular", fail_on_newest)
        assert "try again" in refused(run, capsys)
    atari_ppo.main(["--resume", str(run)])  # the next attempt reads it
    assert (run / "model.zip").exists()


def test_refused_resume_leaves_a_dead_owners_name_too(run, capsys):
    (run / "run.lock").write_text('{"pid": 1, "started": "then", "host": "there"}')
    damage = run / "monitor.csv"
    damage.write_text("not a monitor file\n")
    assert "monitor" in refused(run, capsys)


# Links and names


@pytest.mark.parametrize(
    "name",
    [
        *("run.lock", "config.yml", "monitor.csv", "progress.csv", "versions.txt", "command.txt", "model.zip"),
        *("evaluation.json", "checkpoints", "events.out.tfevents.1700000000.x", "config.yml.partial"),
        "model.zip.partial",
    ],
)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_nothing_in_a_run_folder_is_followed_out_of_it(run, name, kind, tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim if kind == "link" else tmp_path / "nowhere")
    before = os.listdir(tmp_path)
    assert name in refused(run, capsys)
    assert victim.read_text() == "precious" and os.listdir(tmp_path) == before


def test_hard_links_are_not_written_through(run, tmp_path, capsys):
    (tmp_path / "victim").write_text("precious")
    os.link(tmp_path / "victim", run / "run.lock")
    assert "second name" in refused(run, capsys)


@pytest.mark.parametrize(
    "name",
    [
        "monitor.csv",
        "model.zip",
        "checkpoints",
        "evaluation.json",
        "versions.txt",
        "command.txt",
        "first_checkpoint.txt",
    ],
)
def test_new_run_does_not_touch_what_a_folder_holds(tmp_path, name, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(SystemExit):
        atari_ppo.main(flags(folder))
    assert name in capsys.readouterr().err.splitlines()[-1] and contents(tmp_path) == before


def test_no_run_begins_in_the_current_folder(tmp_path, monkeypatch, capsys):
    """Such as --run-dir "$OUT", where there is no OUT."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        atari_ppo.main(flags(""))
    assert left.value.code == 2 and "empty or '.'" in capsys.readouterr().err and contents(tmp_path) == {}


def test_what_was_killed_before_its_config_was_written_is_begun_anew(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.lock", "command.txt", "versions.txt"):
        (run / name).touch()
    with RunFolder(run) as folder:
        folder.describe({"game": "pong"}, "python train.py")
    assert (run / "command.txt").read_text() == "python train.py\n"


def test_set_up_that_fails_leaves_no_folder(tmp_path, capsys, monkeypatch):
    def no_memory(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes\nTrace")

    monkeypatch.setattr(PPOConfig, "build", no_memory)
    with pytest.raises(SystemExit) as left:
        atari_ppo.main(flags(tmp_path / "run"))
    assert left.value.code == 2 and "can't allocate memory" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"device": []},
        {"checkpoint_every": None},
        {"total_timesteps": float("inf")},
        {"total_timesteps": "64"},
        {"seed": "0/../../x"},
        {"seed": True},
        {"seed": 0.0},
        {"game": "../x"},
        {"game": 3},
        {"encoder": ["rl_s"]},
        {"encoder": "../rl_s"},
        {"algo": ["ppo"]},
        {"algo": "a2c"},
        {"family": []},
        {"family": "chess"},
        {"compile": 1},
        {"precision": "fp8"},
        {"threads": "1"},
        {"ppo": None},
        {"ppo": {"gamma": "0.9"}},
        {"ppo": {"n_steps": 1.5}},
        {"ppo": {"more": 1}},
        {"more": 1},
        {"resume": 5},
        {7: 7},
        {"ppo": {7: 7}},
    ],
    ids=str,
)
def test_settings_of_a_wrong_type_are_one_line_that_names_them(run, change, capsys):
    path = run / "config.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    line = refused(run, capsys)
    name = next(iter(change))
    assert isinstance(name, int) or name in line or "run of" in line


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\nb: *a",
        "a: " + "[" * 2000 + "]" * 2000,
        "game: 2001-99-99",
        "algo: ppo\ngame: 2001-01-01",
        "seed: " + "9" * 10_000,
        "? [a]\n: 1",
        "!!python/object/apply:os.system ['true']",
        "x: " + "y" * 2_000_000,
        "\xff",
        "!!binary aGk=",
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_is_no_table_of_plain_values_is_refused(run, text, capsys):
    (run / "config.yml").write_bytes(text.encode("latin-1"))
    assert "config.yml" in refused(run, capsys)


@pytest.mark.filterwarnings("ignore:damaged checkpoint:RuntimeWarning")
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["counters"], []),
        (["counters", "_n_updates"], -1),
        (["counters", "policy"], "x"),
        (["games"], [{"r": "1", "l": 1, "t": 1}]),
        (["games"], None),
        (["waiting"], {"train/loss": 1}),
        (["generators"], {}),
        (["generators", "python"], [3, [1, 2], None]),
        (["generators", "numpy"], ["MT19937", [1] * 624, 10**6, 0, 0.0]),
        (["generators", "torch"], "00" * 5056),
        (["generators", "torch"], "xyz"),
        (["generators", "actions"], {"bit_generator": "PCG64"}),
        (["wall_seconds"], float("nan")),
        (["cpu_seconds"], None),
        (["monitor_bytes"], -1),
        (["monitor_bytes"], 2**70),
        (["more"], 1),
    ],
    ids=str,
)
def test_signed_training_state_of_a_wrong_type_is_damage(run, place, value, capsys):
    shutil.rmtree(checkpoint(run, 16))
    path = checkpoint(run) / "training.json"
    state = json.loads(path.read_text())
    table = state
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    path.write_text(json.dumps(state))
    seal(path.parent)
    assert "all 1 checkpoints" in refused(run, capsys)


# Odd names in checkpoints/


def test_odd_names_neither_stop_training_nor_cost_checkpoints(run, finished):
    folder = run / "checkpoints"
    (folder / "²").mkdir()
    (folder / "999999999999").mkdir()
    (folder / "000000048").write_text("a file")
    (folder / "000000064").symlink_to(finished)
    (folder / "0000000080").mkdir()
    with pytest.warns(RuntimeWarning, match="999999999999"):
        atari_ppo.main(["--resume", str(run), "--total-timesteps", "64", "--checkpoint-every", "0"])
    assert checkpoint(run, 16).is_dir() and checkpoint(run, 32).is_dir()
    prune_checkpoints(run, 1, 32)
    assert not checkpoint(run, 16).exists() and checkpoint(run, 32).is_dir()
    assert (folder / "²").is_dir() and (folder / "999999999999").is_dir() and (folder / "000000048").is_file()


# Results carry their timestep


def test_stale_results_of_an_extended_run_are_redone(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    old = (run / "model.zip").read_bytes()
    assert exported_timesteps(run) == STEPS
    atari_ppo.main(["--resume", str(run), "--total-timesteps", "48"])
    assert exported_timesteps(run) == 48
    (run / "model.zip").write_bytes(old)  # as if it was killed before the new one
    (run / "evaluation.json").write_text('{"timesteps": 32, "scores": [1.0], "low": NaN}')
    assert evaluated_timesteps(run) == 32
    atari_ppo.main(["--resume", str(run), "--evaluation-games", "1"])
    assert exported_timesteps(run) == evaluated_timesteps(run) == 48
    assert "has finished its 48" in refused(run, capsys)


def test_zip_that_says_nothing_has_no_timestep(tmp_path):
    assert exported_timesteps(tmp_path) is None
    for data in ("{}", '{"num_timesteps": "3"}', "[" * 100_000):
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            archive.writestr("data", data)
        assert exported_timesteps(tmp_path) is None
    (tmp_path / "model.zip").write_text("no zip")
    assert exported_timesteps(tmp_path) is None


def test_resume_whose_rest_only_fills_the_replay_says_so(tmp_path, recwarn):
    folder = tmp_path / "run"
    train_run(replace(TINY_DQN, encoder="nature", checkpoint_replay=False, run_dir=folder), quiet=True)
    for total, says in ((STEPS + 8, "8 timesteps that are left only fill a new one"), (STEPS + 16, "before learning")):
        recwarn.clear()
        with closing(open_run(replace(recorded_config(DQNConfig, folder), total_timesteps=total), quiet=True)) as run:
            assert says in heading(run)
        warned = [str(each.message) for each in recwarn if "will not change any more" in str(each.message)]
        assert len(warned) == (total == STEPS + 8)
        assert all("--total-timesteps above 40" in message for message in warned)


@pytest.mark.parametrize("make", [tiny_ppo, lambda: dqn("dqn")], ids=["ppo", "dqn"])
def test_zip_of_many_games_says_its_timestep_and_goes_on_in_sb3(make, tmp_path):
    model = make()
    model.num_timesteps, model._last_obs = 12, np.random.default_rng(0).integers(0, 255, (160, 4, 84, 84), np.uint8)
    with RunFolder(tmp_path / "run") as run:
        run.save_model(model)
    with zipfile.ZipFile(run.model) as archive:
        assert archive.getinfo("data").file_size < 100_000 and exported_timesteps(run.path) == 12
    loaded = type(model).load(run.model, env=tiny_env(), device="cpu")
    assert loaded.learn(16, reset_num_timesteps=False).num_timesteps == 28


def test_zip_that_holds_what_many_games_showed_says_its_timestep(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", json.dumps({"_last_obs": {":serialized:": "A" * 40_000_000}, "num_timesteps": 3}))
    assert exported_timesteps(tmp_path) == 3


# The lock


def test_removed_lock_lets_nobody_in_and_ends_the_run(tmp_path):
    lock = RunLock(tmp_path / "run.lock")
    lock.check()
    (tmp_path / "run.lock").unlink()
    with pytest.raises(FolderInUseError):
        RunLock(tmp_path / "run.lock")
    with pytest.raises(LostFolderError):
        lock.check()
    lock.release()
    RunLock(tmp_path / "run.lock").release()


@pytest.mark.parametrize("loss", ["lock", "folder", "everything"])
def test_run_that_lost_its_folder_ends_with_an_error_and_writes_nothing_more(loss, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    checkpoints = []

    def lose(path, timesteps, _score):
        checkpoints.append(path)
        if loss == "lock":
            (folder / "run.lock").unlink()
        else:
            folder.rename(tmp_path / "moved")
        if loss == "folder":
            folder.mkdir()

    train = OpenRun.train
    monkeypatch.setattr(OpenRun, "train", lambda run: train(run, lose))
    with pytest.raises(SystemExit) as left:
        atari_ppo.main(flags(folder))
    assert left.value.code == 2 and "another process may take" in capsys.readouterr().err.splitlines()[-1]
    assert len(checkpoints) == 1
    if loss == "folder":
        assert list(folder.iterdir()) == []
    if loss == "everything":
        assert not folder.exists()


def test_folders_that_cannot_be_locked_leave_the_file_to_be(tmp_path, monkeypatch):
    """As on NFS."""
    flock = fcntl.flock

    def no_folders(descriptor, operation):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr("agents.runs.lock.fcntl.flock", no_folders)
    lock = RunLock(tmp_path / "run.lock")
    with pytest.raises(FolderInUseError, match=str(os.getpid())):
        RunLock(tmp_path / "run.lock")
    lock.release()
    RunLock(tmp_path / "run.lock").release()


# Replay and exploration


@pytest.fixture(scope="module")
def q_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("q") / "run"
    train_run(replace(TINY_DQN, run_dir=folder), quiet=True)
    (folder / "model.zip").unlink()
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"pos": np.array(-1)},
        {"pos": np.array(10**9)},
        {"full": np.array(2)},
        {"ids": np.full((16, 2, 4), 10**6, np.int32)},
        {"actions": np.zeros((16, 2, 1), np.float64)},
        {"frames._n_side": np.array(2**60)},
        {"frames.stack": np.array(0)},
        {"frames._free": np.array([10**9])},
        {"frames.step": np.array(-3)},
        {"more": np.zeros(1)},
        {"frames.ring": np.zeros((10**4, 7056), np.uint8)},
    ],
    ids=lambda change: f"{next(iter(change))}",
)
def test_signed_replay_that_does_not_fit_is_refused(q_run, change, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(q_run, folder)
    path = checkpoint(folder) / "replay.npz"
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files}
    np.savez_compressed(path, **arrays | change)
    seal(path.parent)
    assert "replay" in refused(folder, capsys, "--total-timesteps", "64", command=atari_dqn)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_replay_compressed_in_another_way_is_refused(q_run, method, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(q_run, folder)
    path = checkpoint(folder) / "replay.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    seal(path.parent)
    assert "replay" in refused(folder, capsys, "--total-timesteps", "64", command=atari_dqn)


@pytest.mark.parametrize(("done", "fraction"), [(400, 0.5), (600, 0.5), (1000, 0.1), (50, 1.0)])
def test_exploration_of_a_longer_run_goes_on_where_it_stood(done, fraction):
    model = q_learner()
    before = model.exploration_schedule = type(model.exploration_schedule)(1.0, 0.01, fraction)
    model.num_timesteps, model.exploration_rate = done, before(1 - done / 1000)
    keep_exploring(model, 10_000)
    for timesteps in (done, done + 1, done + 100, 1000, 5000, 10_000):
        as_planned = before(1 - timesteps / 1000)
        assert model.exploration_schedule(1 - timesteps / 10_000) == pytest.approx(as_planned)


def test_extended_dqn_run_explores_no_more_than_before(q_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(q_run, folder)
    config = recorded_config(DQNConfig, folder)
    rates = []
    state = json.loads((checkpoint(folder) / "training.json").read_text())
    assert state["counters"]["exploration_rate"] == pytest.approx(0.01)
    train_run(
        replace(config, total_timesteps=320, checkpoint_every=64, keep_checkpoints=100),
        lambda path, *_: rates.append(json.loads((path / "training.json").read_text())["counters"]["exploration_rate"]),
        quiet=True,
    )
    assert len(rates) > 3 and max(rates) == pytest.approx(0.01)


@pytest.mark.filterwarnings("ignore:damaged checkpoint:RuntimeWarning")
def test_damaged_newest_is_never_deleted_by_a_resume(run):
    os.truncate(checkpoint(run) / "agent.json", 5)
    size = (checkpoint(run) / "agent.safetensors").stat().st_size
    open_run(recorded_config(PPOConfig, run), quiet=True).close()
    assert (checkpoint(run) / "agent.safetensors").stat().st_size == size
    assert Path(newest_checkpoint(run)).name == "000000016"
    with pytest.raises(DamagedError):
        sealed_folders.SealedFolder(checkpoint(run), {"manifest.json": 1}, ("agent.json",)).verify()


def test_the_agent_that_was_trained_for_longer_is_played(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    old = (run / "model.zip").read_bytes()
    atari_ppo.main(["--resume", str(run), "--total-timesteps", "48"])
    newest = parameters(load_run(run, "cpu"))
    (run / "model.zip").write_bytes(old)  # as if it was killed before the new one
    assert (parameters(load_run(run, "cpu")) == newest).all()
    shutil.rmtree(checkpoint(run, 48))
    assert not (parameters(load_run(run, "cpu")) == newest).all()  # the zip is as new as the checkpoint


def parameters(run):
    return np.concatenate([value.detach().numpy().ravel() for value in run.model.policy.parameters()])


def test_a_start_that_was_killed_is_no_run_but_what_it_trained_is(tmp_path):
    """Killed before its config was written, it leaves an empty folder of checkpoints."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    RunFolder(run).close()
    (run / "checkpoints" / "000000016").mkdir()
    with pytest.raises(FileExistsError, match="checkpoints"):
        RunFolder(run)


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = tiny_ppo()
    with RunFolder(tmp_path / "run") as run:
        run.save_model(model)
        before = run.model.read_bytes()
        with monkeypatch.context() as patch, pytest.raises(UnsavedError, match="No space left"):
            patch.setattr(os, "fsync", full)
            run.save_model(model)
        assert run.model.read_bytes() == before and list(run.path.glob("model*")) == [run.model]


def test_a_folder_with_somebodys_progress_is_refused(tmp_path):
    (tmp_path / "progress.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"already holds progress\.csv"):
        RunFolder(tmp_path)
