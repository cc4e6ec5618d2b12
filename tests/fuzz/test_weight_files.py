"""Weight files and zips from a stranger: refused with the model as it was, within bounds; or harmless."""

from __future__ import annotations

import io
import json
import random
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch as th

from mnv4_rl import load_zip_weights
from mnv4_rl.models.network import build
from mnv4_rl.models.registry import get_spec
from mnv4_rl.weights import load_pretrained, load_weights, save_weights
from tests.fuzz.bounded import assert_all, outcomes, sampled
from tests.fuzz.mutations import BYTES, IN_ITS_PLACE, VALUES, places, replaced
from tests.mnv4_rl.weights.test_checkpoints import ODD, TINY, timm_state
from tests.tiny_env import same, tiny_ppo

REFUSED, HARMLESS = "refused", "harmless"


def attempt(load, module, path: Path) -> str:
    """Load a file into a module; a refusal leaves every number as it was, and what is taken is finite."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        load(path)
    except (ValueError, OSError) as error:
        assert same(before, dict(module.state_dict())), "the refused file changed the model"
        assert str(path) in str(error), f"the message names no file: {error}"
        return REFUSED
    bad = [name for name, tensor in module.state_dict().items() if not bool(tensor.float().isfinite().all())]
    assert not bad, f"{bad[0]} is not finite"
    return HARMLESS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> content, and what loads it into which module."""
    folder = tmp_path_factory.mktemp("original")
    small, paper, agent = build(get_spec("rl_s"), 4, 0), build(TINY, 3, 7), tiny_ppo(encoder="rl_s")
    save_weights(small, folder / "ours.safetensors")
    th.save({"state_dict": timm_state(paper)}, folder / "timm.pth")
    agent.learn(16).save(folder / "agent.zip")
    return {
        "ours.safetensors": ((folder / "ours.safetensors").read_bytes(), partial(load_weights, small), small),
        "timm.pth": ((folder / "timm.pth").read_bytes(), partial(load_pretrained, paper), paper),
        "agent.zip": ((folder / "agent.zip").read_bytes(), partial(load_zip_weights, agent), agent.policy),
    }


NAMES = ("ours.safetensors", "timm.pth", "agent.zip")


def spoiled(files, name, folder: Path, spoil) -> str:
    content, load, module = files[name]
    path = folder / name
    path.unlink(missing_ok=True) if not path.is_dir() else path.rmdir()
    path.write_bytes(content)
    spoil(path)
    return attempt(load, module, path)


def put_in_place(kind, path):
    path.unlink()
    IN_ITS_PLACE[kind](path)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_stands_in_the_place_of_the_file_is_refused(name, files, tmp_path):
    cases = [(kind, partial(spoiled, files, name, tmp_path, partial(put_in_place, kind))) for kind in IN_ITS_PLACE]
    assert_all(outcomes(cases), REFUSED)


def damage(mutate, path):
    path.write_bytes(mutate(path.read_bytes()))


def random_damage(files, folder, rng: random.Random):
    name, how = rng.choice(NAMES), rng.choice(BYTES)
    case = partial(spoiled, files, name, folder, partial(damage, partial(how, rng)))
    return f"{how.__name__} {name} {rng.random():.9f}", case


def test_damaged_bytes_are_refused_or_harmless(files, tmp_path):
    assert_all(outcomes(sampled(partial(random_damage, files, tmp_path), seed=3)), REFUSED, HARMLESS)


def header(change, path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    new = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


def random_header(files, folder, rng: random.Random):
    content = files["ours.safetensors"][0]
    data = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    place, kind = rng.choice(list(places(data))), rng.choice(list(VALUES))
    change = partial(header, lambda data: replaced(data, place, VALUES[kind]))
    return f"{kind} at {'.'.join(map(str, place))}", partial(spoiled, files, "ours.safetensors", folder, change)


def random_spec(files, folder, rng: random.Random):
    content = files["ours.safetensors"][0]
    data = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    spec = json.loads(data["__metadata__"]["spec"])
    place, kind = rng.choice(list(places(spec))), rng.choice(list(VALUES))
    new = json.dumps(replaced(spec, place, VALUES[kind]))
    change = partial(header, lambda data: replaced(data, ("__metadata__", "spec"), new))
    return f"{kind} at spec {place}", partial(spoiled, files, "ours.safetensors", folder, change)


@pytest.mark.parametrize("make", [random_header, random_spec])
def test_any_value_anywhere_in_the_header_is_refused_or_harmless(make, files, tmp_path):
    assert_all(outcomes(sampled(partial(make, files, tmp_path), seed=4)), REFUSED, HARMLESS)


# Zips of stable-baselines3


def rezip(change, path):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    compression = change(members) or zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def bomb(member):
    def change(members):
        members[member] = b"\0" * 2**27
        return zipfile.ZIP_DEFLATED

    return change


def inner_bomb(members):
    """Torch's own zip inside, deflated: one storage of 64 MB in a few hundred kB."""
    data, small = io.BytesIO(), io.BytesIO()
    th.save({"x": th.zeros(2**24)}, data)
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    members["policy.pth"] = small.getvalue()


def odd(kind):
    def change(members):
        state = th.load(io.BytesIO(members["policy.pth"]), weights_only=True)
        last = list(state)[-4]
        state[last] = ODD[kind](state[last][:, :, None, None])
        if isinstance(state[last], th.Tensor) and state[last].layout is th.strided and state[last].dim() == 4:
            state[last] = state[last][:, :, 0, 0]
        saved = io.BytesIO()
        th.save(state, saved)
        members["policy.pth"] = saved.getvalue()

    return change


ZIPS = {
    "bomb for weights": bomb("policy.pth"),
    "bomb for the optimiser": bomb("policy.optimizer.pth"),
    "bomb inside": inner_bomb,
    "no weights": lambda members: members.pop("policy.pth") and None,
    "text": lambda members: members.update({"policy.pth": b"text"}),
    **{f"weight {kind}": odd(kind) for kind in ODD},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_zips_of_odd_tensors_and_bombs_are_refused(files, tmp_path):
    cases = [
        (name, partial(spoiled, files, "agent.zip", tmp_path, partial(rezip, change))) for name, change in ZIPS.items()
    ]
    assert_all(outcomes(cases), REFUSED)


def test_a_zip_gives_weights_alone(tmp_path):
    agent, other = tiny_ppo(encoder="rl_s").learn(16), tiny_ppo(encoder="rl_s", seed=5).learn(16)

    def spoil_optimizer(members):
        state = th.load(io.BytesIO(members["policy.optimizer.pth"]), weights_only=True)
        state["state"][0]["exp_avg"] = th.zeros(())
        state["param_groups"][0] |= {"lr": 5.0, "amsgrad": True, "betas": (0.0, 0.0)}
        saved = io.BytesIO()
        th.save(state, saved)
        members["policy.optimizer.pth"] = saved.getvalue()

    agent.save(tmp_path / "agent.zip")
    rezip(spoil_optimizer, tmp_path / "agent.zip")
    optimizer = other.policy.optimizer.state_dict()
    before = {
        index: {name: tensor.clone() for name, tensor in row.items()} for index, row in optimizer["state"].items()
    }
    load_zip_weights(other, tmp_path / "agent.zip")
    assert same(agent.policy.state_dict(), other.policy.state_dict())
    assert same(before, other.policy.optimizer.state_dict()["state"])
    assert other.policy.optimizer.state_dict()["param_groups"] == optimizer["param_groups"]
