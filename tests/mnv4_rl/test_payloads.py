"""No way to make loading run anything: payloads in every place of SB3's zips, of our format and of checkpoints."""

import base64
import contextlib
import json
import os
import pickle
import zipfile

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO

from agents.runs.checkpoints import read_state, write_checkpoint
from agents.runs.replay_file import read_replay
from agents.runs.state import Clock, capture, restore_counters, restore_session
from mnv4_rl import agent_files as checkpoint
from mnv4_rl import agent_format, sealed_folders
from mnv4_rl.agent_files import load_agent, load_zip_weights, save_agent
from tests.tiny_env import dqn, same, tiny_ppo


class Marker:
    """A harmless payload: unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture(scope="module")
def ppo():
    return tiny_ppo(encoder="rl_s").learn(16)


def payload(path):
    """What SB3 would hand to cloudpickle."""
    return {":type:": "x", ":serialized:": base64.b64encode(cloudpickle.dumps(Marker(path))).decode()}


def zip_with(source, target, replace):
    """A copy of a zip in which `replace` may change each member's bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, replace(name, old.read(name)))


def poisoned_data(marker, content):
    return json.dumps({key: payload(marker / key) for key in json.loads(content)}).encode()


@pytest.fixture
def zipped(ppo, tmp_path):
    ppo.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def test_control_sb3_runs_the_payload_in_a_zip(zipped, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    zip_with(zipped, tmp_path / "evil.zip", lambda name, old: poisoned_data(marks, old) if name == "data" else old)
    with pytest.raises(Exception):  # noqa: B017 - whatever it trips over afterwards
        PPO.load(tmp_path / "evil.zip", device="cpu")
    assert len(list(marks.iterdir())) > 20


def test_zip_gives_its_weights_and_runs_no_payload_in_its_data(ppo, zipped, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    zip_with(zipped, tmp_path / "evil.zip", lambda name, old: poisoned_data(marks, old) if name == "data" else old)
    model = tiny_ppo(encoder="rl_s", seed=5)
    load_zip_weights(model, tmp_path / "evil")  # SB3's load takes the name without its ending too
    assert same(ppo.policy.state_dict(), model.policy.state_dict())
    assert not list(marks.iterdir())


@pytest.mark.parametrize("member", ["policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_zip_with_a_payload_among_its_tensors_is_refused(zipped, tmp_path, member, form):
    def poison(name, old):
        if name != member:
            return old
        if form == "pickle":
            return pickle.dumps(Marker(tmp_path / "mark"))
        th.save(Marker(tmp_path / "mark"), tmp_path / "evil.pth")
        return (tmp_path / "evil.pth").read_bytes()

    zip_with(zipped, tmp_path / "evil.zip", poison)
    with pytest.raises(ValueError, match="cannot give its weights"):
        load_zip_weights(tiny_ppo(encoder="rl_s"), tmp_path / "evil.zip")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("made_with", ["rl_s2", "rl_m"])
def test_zip_of_another_variant_is_refused_by_its_name(zipped, made_with):
    model = tiny_ppo(encoder=made_with)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=r"its encoder is the variant 'rl_s'; build the model with it$"):
        load_zip_weights(model, zipped)
    assert same(before, model.policy.state_dict())


def test_zip_of_another_encoder_or_none_at_all_is_refused(zipped, tmp_path):
    with pytest.raises(ValueError, match="cannot give its weights to this PPO"):
        load_zip_weights(tiny_ppo(encoder="nature"), zipped)
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(ValueError, match="cannot give its weights"):
        load_zip_weights(tiny_ppo(), tmp_path / "text.zip")
    with pytest.raises(ValueError, match=r"call load_zip_weights\(model, path\)"):
        load_agent(zipped)


def seal(folder):
    """Write the manifest that fits the folder, as an attacker would."""
    names = [path.name for path in folder.iterdir() if path.name != sealed_folders.MANIFEST]
    manifest = {name: sealed_folders._fingerprint(folder / name).model_dump() for name in names}
    (folder / sealed_folders.MANIFEST).write_text(json.dumps(manifest))


def leaves(data, path=()):
    """Paths to every value in nested JSON, tables and lists included."""
    yield path
    for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from leaves(item, (*path, key))


def replaced(data, path, value):
    data = json.loads(json.dumps(data))
    if not path:
        return value
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def test_our_format_refuses_a_payload_in_every_place_of_its_json(tmp_path):
    folder, mark = save_agent(tiny_ppo(), tmp_path / "agent"), tmp_path / "mark"
    description = json.loads((folder / "agent.json").read_text())
    places = [path for path in leaves(description) if path[:3] != ("optimizer", 0, "params") or len(path) < 5]
    assert len(places) > 50
    for place in places:
        (folder / "agent.json").write_text(json.dumps(replaced(description, place, payload(mark))))
        seal(folder)
        with pytest.raises(ValueError):
            load_agent(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["agent.json", "agent.safetensors", "training.json", "extra.pkl"])
def test_our_format_runs_no_pickle_in_the_place_of_any_file(name, tmp_path):
    folder, mark = save_agent(tiny_ppo(), tmp_path / "agent"), tmp_path / "mark"
    (folder / name).write_bytes(pickle.dumps(Marker(mark)))
    seal(folder)
    if name != "training.json":  # not part of the agent: it is not even opened
        with pytest.raises(ValueError):
            load_agent(folder, device="cpu")
    else:
        load_agent(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("algorithm",), "Evil", "algorithm.*'PPO'.*got 'Evil'"),
        (("algorithm",), "os.system", "algorithm"),
        (("policy",), "os.system", "policies of PPO are CnnPolicy"),
        (("policy",), "PixelDQNPolicy", "policies of PPO are CnnPolicy"),
        (("encoder", "class"), "os", "encoder.class.*got 'os'"),
        (("encoder", "class"), "MNV4Extractor", "has a spec"),
        (("encoder", "arguments", "observation_space"), 1, "observation_space"),
        (("encoder", "arguments", "features_dim"), "512", "features_dim"),
        (("encoder", "arguments", "normalized_image"), 3, "normalized_image"),
        (("policy_kwargs", "optimizer_class"), "Evil", "optimizer_class.*got 'Evil'"),
        (("observation_space", "space"), "Tuple", "observation_space.*Tuple"),
        (("hyperparameters", "learning_rate", "schedule"), "eval", "learning_rate.*'linear'.*got 'eval'"),
        (("hyperparameters", "n_steps"), "8", "n_steps"),
        (("hyperparameters", "rollout_buffer_class"), "x", "rollout_buffer_class"),
        (("format",), 3, "format.*got 3"),
        (("n_envs",), 100_000, "n_envs.*4096"),
    ],
)
def test_names_outside_the_tables_are_refused(place, value, message, tmp_path):
    folder = save_agent(tiny_ppo(), tmp_path / "agent")
    description = json.loads((folder / "agent.json").read_text())
    (folder / "agent.json").write_text(json.dumps(replaced(description, place, value)))
    seal(folder)
    with pytest.raises(ValueError, match=message):
        load_agent(folder, device="cpu")


def written(model, folder):
    return write_checkpoint(model, folder, capture(model, Clock()), agent_format.describe(model), with_replay=True)


def test_training_state_runs_no_payload_in_any_place_and_sets_nothing_but_counters(tmp_path):
    model, mark = dqn("dqn"), tmp_path / "mark"
    state = read_state(written(model, tmp_path))
    places = [path for path in leaves(state) if path[-1:] not in [(i,) for i in range(3, 700)]]  # generators are long
    assert len(places) > 20
    for place in places:
        poisoned = replaced(state, place, payload(mark))
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            restore_counters(model, poisoned)
            restore_session(model, poisoned)
    assert not mark.exists()
    restore_counters(model, {**state, "counters": {**state["counters"], "policy": "gone"}})
    assert model.policy != "gone"


def test_replay_file_with_a_payload_in_any_of_its_arrays_is_refused(tmp_path):
    model, mark = dqn("dqn"), tmp_path / "mark"
    path = written(model, tmp_path) / checkpoint.REPLAY
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files}
    evil = np.empty(1, dtype=object)
    evil[0] = Marker(mark)
    for name in arrays:
        np.savez(path, allow_pickle=True, **arrays | {name: evil})
        with pytest.raises(ValueError, match="is no replay of this run"):
            read_replay(model.replay_buffer, path)
    path.write_bytes(pickle.dumps(Marker(mark)))
    with pytest.raises(ValueError):
        read_replay(model.replay_buffer, path)
    assert not mark.exists()
    np.savez(path, allow_pickle=True, evil=evil)
    with np.load(path, allow_pickle=True) as control:  # the payload is real
        control["evil"]
    assert mark.exists()
