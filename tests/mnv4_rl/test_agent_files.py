"""Agents on disk: equal after loading, refused when damaged, and no way to make loading run anything."""

import errno
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticCnnPolicy

from agents.dqn import DQNHyperparameters, build_dqn
from agents.runs.checkpoints import newest_checkpoint, prune_checkpoints, restore_model, write_checkpoint
from agents.runs.state import Clock, capture
from mnv4_rl import MNV4Extractor, agent_format
from mnv4_rl.agent_files import load_agent, save_agent
from mnv4_rl.agent_tensors import NonFiniteError
from mnv4_rl.safe_files import DamagedError
from mnv4_rl.sealed_folders import MANIFEST, _fingerprint
from tests.tiny_env import ActionsAsImage, dqn, same, tiny_env, tiny_ppo


@pytest.fixture(scope="module")
def ppo():
    return tiny_ppo(encoder="rl_s").learn(16)


def observations():
    return np.random.default_rng(0).integers(0, 256, (5, *ActionsAsImage.observation_space.shape), dtype=np.uint8)


def played(model):
    """Actions as they are drawn, the random ones among them."""
    np.random.seed(0)
    model.action_space.seed(0)
    return [model.predict(observations())[0].tolist() for _ in range(20)]


def assert_same_agent(model, loaded):
    assert type(loaded) is type(model) and type(loaded.policy) is type(model.policy)
    assert same(model.policy.state_dict(), loaded.policy.state_dict())
    assert same(model.policy.optimizer.state_dict(), loaded.policy.optimizer.state_dict())
    assert agent_format.describe(model) == agent_format.describe(loaded)
    actions, loaded_actions = (agent.predict(observations(), deterministic=True)[0] for agent in (model, loaded))
    np.testing.assert_array_equal(actions, loaded_actions)


@pytest.mark.parametrize("env", [None, tiny_env], ids=["alone", "with environments"])
def test_loaded_ppo_is_the_saved_one(ppo, env, tmp_path):
    loaded = load_agent(save_agent(ppo, tmp_path / "agent"), env and env(), device="cpu")
    assert_same_agent(ppo, loaded)
    assert loaded.lr_schedule(0.25) == ppo.lr_schedule(0.25) and loaded.clip_range(0.25) == ppo.clip_range(0.25)


def test_an_agent_of_numpys_whole_numbers_is_saved(tmp_path):
    encoder = dict(features_extractor_class=MNV4Extractor)
    encoder |= dict(features_extractor_kwargs=dict(features_dim=np.int64(8), grid=np.int64(2)), net_arch=[np.int64(4)])
    model = PPO("CnnPolicy", tiny_env(), n_steps=8, batch_size=8, policy_kwargs=encoder, device="cpu")
    assert_same_agent(model, load_agent(save_agent(model, tmp_path / "agent"), device="cpu"))


@pytest.mark.parametrize("algo", ["dqn", "qrdqn"])
def test_loaded_q_learner_is_the_saved_one(algo, tmp_path):
    if algo == "qrdqn":
        pytest.importorskip("sb3_contrib", reason="sb3-contrib is an extra: pip install sb3-contrib")
    model = dqn(algo)
    assert_same_agent(model, load_agent(save_agent(model, tmp_path / "agent"), device="cpu"))
    assert_same_agent(model, load_agent(tmp_path / "agent", tiny_env(), device="cpu"))


def test_an_agent_goes_on_counting_as_sb3s_zip_does(ppo, tmp_path):
    ppo.save(tmp_path / "agent.zip")
    loaded = load_agent(save_agent(ppo, tmp_path / "agent"), tiny_env(), device="cpu")
    theirs = PPO.load(tmp_path / "agent.zip", tiny_env(), device="cpu")
    assert loaded.num_timesteps == theirs.num_timesteps > 0
    for model in (loaded, theirs):
        model.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == theirs.num_timesteps == ppo.num_timesteps + 16
    assert loaded._current_progress_remaining == theirs._current_progress_remaining


def test_steps_ahead_come_back_without_a_warning(tmp_path):
    model = DQN("CnnPolicy", tiny_env(), n_steps=3, buffer_size=64, policy_kwargs={"net_arch": []}, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_agent(save_agent(model, tmp_path / "agent"), tiny_env(), device="cpu")
    assert type(loaded.replay_buffer) is type(model.replay_buffer) is NStepReplayBuffer
    assert (loaded.n_steps, loaded.replay_buffer.n_steps) == (3, 3)


@pytest.mark.parametrize("env", [None, tiny_env], ids=["alone", "with environments"])
def test_dqn_explores_after_loading_as_before(env, tmp_path):
    model = dqn("dqn")
    model.exploration_rate = 0.2
    loaded = load_agent(save_agent(model, tmp_path / "agent"), env and env(), device="cpu")
    assert loaded.exploration_rate == 0.2
    assert played(loaded) == played(model)


def test_loaded_agent_trains_on(ppo, tmp_path):
    loaded = load_agent(save_agent(ppo, tmp_path / "agent"), tiny_env(), device="cpu")
    loaded.learn(16)
    assert not same(ppo.policy.state_dict(), loaded.policy.state_dict())


def test_shared_encoder_is_stored_once(ppo, tmp_path):
    save_agent(ppo, tmp_path / "agent")
    numbers = sum(p.numel() for p in ppo.policy.parameters())
    # Weights and Adam's two averages, four bytes each, and a header.
    assert 12 * numbers < (tmp_path / "agent" / "agent.safetensors").stat().st_size < 12.5 * numbers


def test_agent_saved_without_its_optimiser_acts_the_same_and_trains_on(ppo, tmp_path):
    loaded = load_agent(save_agent(ppo, tmp_path / "agent", optimizer=False), tiny_env(), device="cpu")
    assert same(ppo.policy.state_dict(), loaded.policy.state_dict())
    assert loaded.policy.optimizer.state_dict()["state"] == {}
    numbers = sum(p.numel() for p in ppo.policy.parameters())
    assert 4 * numbers < (tmp_path / "agent" / "agent.safetensors").stat().st_size < 4.2 * numbers
    loaded.learn(16)
    assert not same(ppo.policy.state_dict(), loaded.policy.state_dict())


def seal(folder):
    """Write the manifest that fits the files."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    (folder / MANIFEST).write_text(json.dumps({name: _fingerprint(folder / name).model_dump() for name in names}))


def change_agent(folder, change):
    """Change the description in a folder, and its manifest with it."""
    data = json.loads((folder / "agent.json").read_text())
    change(data)
    (folder / "agent.json").write_text(json.dumps(data))
    seal(folder)


def test_a_dqn_agent_from_before_its_exploration_was_kept_loads(tmp_path):
    save_agent(dqn("dqn"), tmp_path / "agent")
    change_agent(tmp_path / "agent", lambda data: data.pop("exploration_rate"))
    assert load_agent(tmp_path / "agent", device="cpu").exploration_rate == 0.0


def test_exploration_is_of_dqn_alone(ppo, tmp_path):
    save_agent(ppo, tmp_path / "agent")
    assert "exploration_rate" not in json.loads((tmp_path / "agent" / "agent.json").read_text())
    change_agent(tmp_path / "agent", lambda data: data.update(exploration_rate=0.5))
    with pytest.raises(DamagedError, match="PPO has no exploration_rate"):
        load_agent(tmp_path / "agent", device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda group: group.pop("decoupled_weight_decay"),
        lambda group: group.update(a_setting_of_tomorrow=True),
        lambda group: group.update(a_setting_of_tomorrow=None, lr=group.pop("lr")),
    ],
    ids=["of an older torch", "of a newer one", "in another order"],
)
def test_an_agent_loads_whatever_settings_its_torch_knew(change, ppo, tmp_path):
    save_agent(ppo, tmp_path / "agent")
    change_agent(tmp_path / "agent", lambda data: change(data["optimizer"][0]))
    assert_same_agent(ppo, load_agent(tmp_path / "agent", device="cpu"))


@pytest.mark.parametrize(
    "change",
    [
        lambda group: group.pop("params"),
        lambda group: group.pop("betas"),
        lambda group: group.pop("lr"),
        lambda group: group.update(momentum=0.9),
        lambda group: group.update(maximize=True),
        lambda group: group.update(eps=0.1),
    ],
)
def test_an_optimiser_of_other_settings_is_refused(change, ppo, tmp_path):
    save_agent(ppo, tmp_path / "agent")
    change_agent(tmp_path / "agent", lambda data: change(data["optimizer"][0]))
    with pytest.raises(DamagedError, match=r"the optimiser's settings|learning rates"):
        load_agent(tmp_path / "agent", device="cpu")


def test_saving_and_loading_leave_the_callers_generators_alone(ppo, tmp_path):
    before, torchs = np.random.get_state()[1].copy(), th.get_rng_state()
    save_agent(ppo, tmp_path / "agent")
    load_agent(tmp_path / "agent", device="cpu")
    load_agent(tmp_path / "agent", tiny_env(), device="cpu")
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    assert th.equal(torchs, th.get_rng_state())


def test_a_folder_may_be_called_as_zips_are(ppo, tmp_path):
    assert_same_agent(ppo, load_agent(save_agent(ppo, tmp_path / "agent.zip"), device="cpu"))
    (tmp_path / "agent.zip").rename(tmp_path / "agent.zip.old.partial")  # as a kill between two renames leaves it
    assert_same_agent(ppo, load_agent(tmp_path / "agent.zip", device="cpu"))


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"PK"), lambda path: None], ids=["a file", "nothing"])
def test_sb3s_zips_are_told_how_their_weights_are_loaded(make, tmp_path):
    make(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="load_zip_weights"):
        load_agent(tmp_path / "agent.zip")


def test_agent_with_other_spaces_is_refused(ppo, tmp_path):
    save_agent(ppo, tmp_path / "agent")
    env = tiny_env()
    env.action_space = spaces.Discrete(3)
    with pytest.raises(ValueError, match=r"in other environments than env: Action spaces do not match") as refused:
        load_agent(tmp_path / "agent", env, device="cpu")
    assert not isinstance(refused.value, DamagedError)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"env": 5}, "env must be a VecEnv or Env or str or None, got 5"),
        ({"env": "NoSuchEnv-v0"}, "NoSuchEnv"),
        ({"path": ""}, "empty name"),
        ({"path": "/"}, "root of the files"),
    ],
)
def test_a_wrong_argument_is_not_blamed_on_the_files(ppo, tmp_path, wrong, message):
    path = save_agent(ppo, tmp_path / "agent")
    with pytest.raises(Exception, match=message) as refused:
        load_agent(**{"path": path, **wrong})
    assert not isinstance(refused.value, DamagedError) and "\n" not in str(refused.value)


def test_an_agent_goes_into_a_folder_that_is_empty_and_has_a_name(ppo, tmp_path):
    (tmp_path / "agent").mkdir()
    assert_same_agent(ppo, load_agent(save_agent(ppo, tmp_path / "agent"), device="cpu"))
    with pytest.raises(ValueError, match="empty name"):
        save_agent(ppo, "")


class OwnPolicy(ActorCriticCnnPolicy):
    pass


class OwnExtractor(MNV4Extractor):
    pass


def plain_ppo(**kwargs):
    return PPO("CnnPolicy", tiny_env(), n_steps=8, batch_size=8, device="cpu", **kwargs)


def changed_ppo():
    model = plain_ppo()
    model.policy.extra = th.nn.Linear(2, 2)
    return model


def half_changed_ppo():
    model = plain_ppo()
    model.policy.double()
    return model


def stepped_otherwise():
    model = plain_ppo()
    model.policy.optimizer.param_groups[0]["eps"] = 1e-3
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPO("MlpPolicy", tiny_env(), device="cpu"), "policies CnnPolicy.*got ActorCriticPolicy"),
        (lambda: PPO(OwnPolicy, tiny_env(), device="cpu"), "got OwnPolicy"),
        (lambda: plain_ppo(policy_kwargs={"features_extractor_class": OwnExtractor}), "got OwnExtractor"),
        (lambda: plain_ppo(learning_rate=lambda _: 1e-4), "learning_rate is <function.*LinearSchedule"),
        (lambda: plain_ppo(policy_kwargs={"activation_fn": th.nn.Softplus}), "activation_fn"),
        (lambda: plain_ppo(policy_kwargs={"optimizer_class": th.optim.Adagrad}), "optimizer_class"),
        (changed_ppo, "changed after it was built.*extra"),
        (half_changed_ppo, "changed after it was built"),
        (stepped_otherwise, "settings"),
    ],
)
def test_what_plain_data_cannot_tell_is_refused_on_saving(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_agent(make(), tmp_path / "agent")
    assert not (tmp_path / "agent").exists()


def test_saving_again_replaces_the_agent(ppo, tmp_path):
    save_agent(tiny_ppo(), tmp_path / "agent")
    save_agent(ppo, tmp_path / "agent")
    assert_same_agent(ppo, load_agent(tmp_path / "agent", device="cpu"))
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


# Checkpoints


def write(model, run):
    return write_checkpoint(model, run, capture(model, Clock()), agent_format.describe(model))


@pytest.fixture
def run(tmp_path):
    """Two checkpoints, at timesteps 16 and 32."""
    model = tiny_ppo()
    for timesteps in (16, 32):
        model.learn(16, reset_num_timesteps=False)
        assert model.num_timesteps == timesteps
        write(model, tmp_path)
    return tmp_path


def damage_truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, os.unlink])
@pytest.mark.parametrize("name", ["agent.json", "agent.safetensors", "training.json", "manifest.json"])
def test_damaged_newest_checkpoint_is_passed_by_with_a_warning(run, damage, name):
    newest = newest_checkpoint(run)
    assert newest is not None and newest.name == "000000032"
    damage(newest / name)
    with pytest.warns(RuntimeWarning, match=r"damaged checkpoint passed by: .*000000032"):
        assert newest_checkpoint(run) == run / "checkpoints" / "000000016"
    with pytest.raises(ValueError, match="000000032"):
        load_agent(newest)


def test_no_checkpoint_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_pruning_keeps_the_newest_and_clears_what_killed_writes_left(run):
    (run / "checkpoints" / "000000048.partial").mkdir()
    prune_checkpoints(run, 1, 32)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["000000032"]


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_full_disk_leaves_older_checkpoints_whole_and_nothing_half_written(run, monkeypatch, call):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    model = tiny_ppo().learn(48)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr(*((Path, call) if call == "mkdir" else (os, call)), full)
        write(model, run)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    newest = newest_checkpoint(run)
    assert newest is not None and newest.name == "000000032"


def test_file_in_the_place_of_the_folder_is_an_error_even_for_root(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OSError):
        write(tiny_ppo().learn(16), tmp_path)
    assert (tmp_path / "checkpoints").read_text() == "in the way"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_checkpoint_is_never_written_from_weights_that_are_not_finite(run, bad):
    model = tiny_ppo().learn(48)
    with th.no_grad():
        model.policy.action_net.weight[0, 3] = bad
    message = "1 of 1,024 values of the weight policy.action_net.weight are NaN or infinite at timestep 48"
    with pytest.raises(NonFiniteError, match=message):
        write(model, run)
    with pytest.raises(NonFiniteError, match=message):
        save_agent(model, run / "agent")
    newest = newest_checkpoint(run)
    assert newest is not None and newest.name == "000000032" and not (run / "agent").exists()


def test_replay_comes_back_with_the_checkpoint(tmp_path):
    model = dqn("dqn")
    state = capture(model, Clock())
    path = write_checkpoint(model, tmp_path, state, agent_format.describe(model), with_replay=True)
    other = build_dqn(tiny_env(), "nature", hyperparameters=DQNHyperparameters(buffer_size=64), seed=9, device="cpu")
    restore_model(other, path)
    buffers = model.replay_buffer, other.replay_buffer
    assert (buffers[1].pos, buffers[1].full) == (buffers[0].pos, buffers[0].full) == (16, False)
    for name in ("actions", "rewards"):
        np.testing.assert_array_equal(*(getattr(buffer, name)[:16] for buffer in buffers))
    np.testing.assert_array_equal(*(buffer.observations[:16] for buffer in buffers))
    np.testing.assert_array_equal(*(buffer.next_observations[:16] for buffer in buffers))
    assert restored_ends_with_a_cut(*buffers)
    other.learn(32)  # goes on storing where the saved one stopped
    assert other.replay_buffer.pos == 32 or other.replay_buffer.full


def restored_ends_with_a_cut(saved, buffer):
    """No n-step return may run from the last saved transition into a freshly reset game; a real end is no cut."""
    newest = buffer.pos - 1
    return buffer.dones[newest].all() and (buffer.timeouts[newest] == 1 - saved.dones[newest]).all()


def test_checkpoint_of_another_encoder_is_refused(run):
    newest = newest_checkpoint(run)
    assert newest is not None
    model = tiny_ppo(encoder="rl_s")
    model.set_logger(Logger(None, []))
    with pytest.raises(ValueError, match=r"has encoder .*NatureCNN.*the run's settings give .*MNV4Extractor"):
        restore_model(model, newest)
