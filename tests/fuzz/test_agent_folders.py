"""Agent folders from a stranger: refused whole, within bounds, with folder and model as they were; or harmless."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch as th
from safetensors.torch import load, save

from mnv4_rl import load_agent, save_agent, sealed_folders
from mnv4_rl.agent_files import AGENT, TENSORS, AgentFolder
from tests.fuzz.bounded import assert_all, outcomes, sampled
from tests.fuzz.mutations import BYTES, IN_ITS_PLACE, VALUES, places, replaced
from tests.tiny_env import same, tiny_ppo

REFUSED, HARMLESS = "refused", "harmless"


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    """A folder, and a model that its weights fit."""
    path = tmp_path_factory.mktemp("original") / "agent"
    save_agent(tiny_ppo(encoder="rl_s").learn(16), path)
    return path, tiny_ppo(encoder="rl_s", seed=5).learn(16)


def seal(folder: Path) -> None:
    """Write the manifest that fits, as an attacker would."""
    manifest = {
        path.name: sealed_folders._fingerprint(path).model_dump()
        for path in folder.iterdir()
        if path.name != sealed_folders.MANIFEST and path.is_file() and path.stat().st_size < 10**9
    }
    (folder / sealed_folders.MANIFEST).write_text(json.dumps(manifest))


def listing(folder: Path):
    """What is in a folder, without opening what is no file."""
    return {
        path.name: path.read_bytes() if path.is_file() and path.stat().st_size < 10**9 else path.lstat().st_mode
        for path in folder.iterdir()
    }


def tried(path: Path, model=None) -> str:
    """Load, or fill a model; a loaded agent acts and learns once, to show memory it may have spoiled."""
    before = listing(path)
    weights = model and {name: tensor.clone() for name, tensor in everything(model).items()}
    try:
        if model is None:
            loaded = load_agent(path, device="cpu")
        else:
            loaded = model
            AgentFolder(path).fill(model)
    except ValueError as error:
        assert weights is None or same(weights, everything(model)), "the refused file changed the model"
        assert str(path) in str(error) or "fit" in str(error) or model is not None, f"no file is named: {error}"
        outcome = REFUSED
    else:
        act_and_step(loaded)
        outcome = HARMLESS
    assert listing(path) == before, "the folder changed"
    return outcome


def everything(model):
    """Parameters, buffers and the optimiser's state by name."""
    optimizer = model.policy.optimizer.state_dict()
    found = dict(model.policy.state_dict())
    for index, row in optimizer["state"].items():
        found |= {f"{index}/{name}": tensor for name, tensor in row.items()}
    return found | {"settings": th.tensor([group["lr"] for group in optimizer["param_groups"]])}


def act_and_step(model) -> None:
    """What was taken is finite; huge numbers are numbers, and may make infinite ones."""
    bad = [name for name, tensor in everything(model).items() if not bool(tensor.float().isfinite().all())]
    assert not bad, f"{bad[0]} is not finite"
    with contextlib.suppress(ValueError):
        model.predict(model.observation_space.sample(), deterministic=True)
    for parameter in model.policy.parameters():
        parameter.grad = th.zeros_like(parameter)
    model.policy.optimizer.step()


def spoiled(agent, folder: Path, spoil, fill=False) -> str:
    """A copy of the agent, spoiled, tried."""
    original, model = agent
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    spoil(folder)
    return tried(folder, model if fill else None)


def put_in_place(name, kind, folder):
    (folder / name).unlink()
    IN_ITS_PLACE[kind](folder / name)
    if name != sealed_folders.MANIFEST:
        manifest = json.loads((folder / sealed_folders.MANIFEST).read_text())
        manifest[name]["bytes"] = 2**42 if kind == "endless" else manifest[name]["bytes"]
        (folder / sealed_folders.MANIFEST).write_text(json.dumps(manifest))


def test_whatever_stands_in_the_place_of_a_file_is_refused(agent, tmp_path):
    cases = [
        (
            f"{kind} for {name}, fill={fill}",
            partial(spoiled, agent, tmp_path / "a", partial(put_in_place, name, kind), fill),
        )
        for name in (AGENT, TENSORS, sealed_folders.MANIFEST)
        for kind in IN_ITS_PLACE
        for fill in (False, True)
    ]
    assert_all(outcomes(cases), REFUSED)


def test_a_link_out_of_the_folder_is_refused(agent, tmp_path):
    def move_out(name, folder):
        shutil.move(folder / name, tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)

    cases = [
        (name, partial(spoiled, agent, tmp_path / "a", partial(move_out, name)))
        for name in (AGENT, TENSORS, sealed_folders.MANIFEST)
    ]
    assert_all(outcomes(cases), REFUSED)


# What the description claims


def describe(changes, folder):
    data = json.loads((folder / AGENT).read_text())
    for place, value in changes.items():
        data = replaced(data, place, value)
    (folder / AGENT).write_text(json.dumps(data))
    seal(folder)


SPEC = ("encoder", "spec")
WIDE_BLOCK = {"class": "ConvSpec", "out_channels": 65_536, "kernel_size": 1, "stride": 1}
CLAIMS = {
    "a million features": {("encoder", "arguments", "features_dim"): 10**6, (*SPEC, "head", "features_dim"): 10**6},
    "65,536 features": {("encoder", "arguments", "features_dim"): 65_536, (*SPEC, "head", "features_dim"): 65_536},
    "two layers of 30,000": {("policy_kwargs", "net_arch"): [30_000, 30_000]},
    "64 layers of 65,536": {("policy_kwargs", "net_arch"): [65_536] * 64},
    "100,000 environments": {("n_envs",): 100_000},
    "10^9 actions": {("action_space", "n"): 10**9},
    "65,536 actions": {("action_space", "n"): 65_536},
    "an image of 4,096 x 10^6": {("observation_space", "shape"): [4, 4_096, 10**6]},
    "an image of 4 x 65,536 x 65,536": {("observation_space", "shape"): [4, 65_536, 65_536]},
    "an image of 65,536 channels": {("observation_space", "shape"): [65_536, 16, 16]},
    "a grid of 65,536": {(*SPEC, "head", "grid"): 65_536, ("observation_space", "shape"): [4, 2_000, 2_000]},
    "65,536 filters": {(*SPEC, "stem", "out_channels"): 65_536},
    "wide blocks": {(*SPEC, "stages", 0): [WIDE_BLOCK] * 3},
    "wide and cheap": {(*SPEC, "stem"): {**WIDE_BLOCK, "class": "StemSpec", "norm": None, "activation": True}},
    "10,000 blocks": {(*SPEC, "stages", 0): [WIDE_BLOCK | {"out_channels": 8}] * 10_000},
    "a kernel of 65,535": {(*SPEC, "stem", "kernel_size"): 65_535},
    "weights from elsewhere": {("encoder", "pretrained"): True},
    "another class": {("encoder", "class"): "NatureCNN", SPEC: None},
    "another policy": {("policy",): "CnnLstmPolicy"},
    "reversed parameters": {("optimizer", 0, "params"): list(range(28, -1, -1))},
    "amsgrad": {("optimizer", 0, "amsgrad"): True},
    "amsgrad twice": {
        ("optimizer", 0, "amsgrad"): True,
        ("policy_kwargs", "optimizer_kwargs", "amsgrad"): True,
    },
    "another optimiser": {("policy_kwargs", "optimizer_class"): "SGD"},
    "no groups": {("optimizer",): []},
    "two groups": {("optimizer",): [{}, {}]},
    "a learning rate below 0": {("optimizer", 0, "lr"): -1.0},
    "a learning rate that is true": {("optimizer", 0, "lr"): True},
    "other betas": {("optimizer", 0, "betas"): [0.1, 0.1]},
}


@pytest.mark.parametrize("fill", [False, True])
def test_sizes_and_settings_that_the_weights_do_not_bear_out_are_refused(fill, agent, tmp_path):
    # Of a model that is there only what is the optimiser's is taken.
    claims = {name: change for name, change in CLAIMS.items() if not fill or ("optimizer",) == next(iter(change))[:1]}
    cases = [
        (name, partial(spoiled, agent, tmp_path / "a", partial(describe, change), fill))
        for name, change in claims.items()
    ]
    assert_all(outcomes(cases), REFUSED)


def test_an_agent_of_a_large_machine_plays_on_a_small_one(agent, tmp_path):
    much = {("n_envs",): 4096, ("hyperparameters", "n_steps"): 10**9}  # 20 PB of transitions
    case = partial(spoiled, agent, tmp_path / "a", partial(describe, much))
    assert_all(outcomes([("much", case)]), HARMLESS)


def random_description(agent, folder, rng: random.Random):
    data = json.loads((agent[0] / AGENT).read_text())
    place = rng.choice(list(places(data)))
    kind = rng.choice(list(VALUES))
    name = f"{kind} at {'.'.join(map(str, place))}"
    return name, partial(spoiled, agent, folder, partial(describe, {place: VALUES[kind]}), rng.random() < 0.3)


def test_any_value_anywhere_in_the_description_is_refused_or_harmless(agent, tmp_path):
    assert_all(outcomes(sampled(partial(random_description, agent, tmp_path / "a"))), REFUSED, HARMLESS)


# Tensors


def retensor(change, folder):
    tensors = load((folder / TENSORS).read_bytes())
    change(tensors)
    (folder / TENSORS).write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    seal(folder)


def setting(name, make):
    def change(tensors):
        tensors[name] = make(tensors.get(name))

    return change


def swapped(tensors):
    one, other = "optimizer/0/exp_avg", "optimizer/2/exp_avg"
    tensors[one], tensors[other] = tensors[other], tensors[one]


def dropped(name):
    return lambda tensors: tensors.pop(name)


def with_value(value):
    def make(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return make


WEIGHT = "policy/action_net.weight"
TENSOR_CHANGES = {
    "exp_avg of no dimension": setting("optimizer/0/exp_avg", lambda tensor: th.zeros(())),
    "exp_avg of one entry": setting("optimizer/0/exp_avg", lambda tensor: th.zeros(1)),
    "exp_avg of another shape": swapped,
    "exp_avg transposed": setting("optimizer/27/exp_avg", lambda tensor: th.zeros(512, 1)),
    "no exp_avg": dropped("optimizer/0/exp_avg"),
    "no step": dropped("optimizer/3/step"),
    "a negative step": setting("optimizer/0/step", lambda tensor: th.tensor(-5.0)),
    "a step that is no number": setting("optimizer/0/step", lambda tensor: th.tensor(float("nan"))),
    "a step as int": setting("optimizer/0/step", lambda tensor: th.tensor(5)),
    "steps as vector": setting("optimizer/0/step", lambda tensor: th.ones(3)),
    "exp_avg not finite": setting("optimizer/1/exp_avg", with_value(float("inf"))),
    "exp_avg_sq negative": setting("optimizer/1/exp_avg_sq", with_value(-1.0)),
    "exp_avg in double": setting("optimizer/1/exp_avg", lambda tensor: tensor.double()),
    "more than the optimiser keeps": setting("optimizer/0/max_exp_avg_sq", lambda tensor: th.zeros(16, 4, 4, 4)),
    "state of a parameter that is not": setting("optimizer/999/step", lambda tensor: th.tensor(1.0)),
    "state of no number": setting("optimizer/-1/step", lambda tensor: th.tensor(1.0)),
    "state of another kind of number": setting("optimizer/²/step", lambda tensor: th.tensor(1.0)),
    "weight not a number": setting(WEIGHT, with_value(float("nan"))),
    "weight infinite": setting(WEIGHT, with_value(float("-inf"))),
    "weight of another shape": setting(WEIGHT, lambda tensor: tensor.T),
    "weight in half precision": setting(WEIGHT, lambda tensor: tensor.half()),
    "weight of whole numbers": setting(WEIGHT, lambda tensor: tensor.int()),
    "weight complex": setting(WEIGHT, lambda tensor: tensor.to(th.complex64)),
    "no weight": dropped(WEIGHT),
    "a weight too many": setting("policy/extra", lambda tensor: th.zeros(3)),
    "a tensor of nothing": setting("extra", lambda tensor: th.zeros(3)),
    "nothing": lambda tensors: tensors.clear(),
}


@pytest.mark.parametrize("fill", [False, True])
def test_tensors_that_the_model_would_not_have_are_refused(fill, agent, tmp_path):
    cases = [
        (name, partial(spoiled, agent, tmp_path / "a", partial(retensor, change), fill))
        for name, change in TENSOR_CHANGES.items()
    ]
    assert_all(outcomes(cases), REFUSED)


# Bytes


def damage(name, mutate, sealed, folder):
    content = (folder / name).read_bytes()
    changed = mutate(content)
    (folder / name).write_bytes(changed)
    if sealed:
        seal(folder)


def random_damage(agent, folder, sealed, rng: random.Random):
    name = rng.choice((AGENT, TENSORS) if sealed else (AGENT, TENSORS, sealed_folders.MANIFEST))
    how = rng.choice(BYTES)
    case = partial(spoiled, agent, folder, partial(damage, name, partial(how, rng), sealed), rng.random() < 0.3)
    return f"{how.__name__} {name} {rng.random():.9f}", case


@pytest.mark.parametrize("sealed", [False, True], ids=["with its own manifest", "with one that fits"])
def test_damaged_bytes_are_refused_and_where_the_manifest_fits_at_most_harmless(sealed, agent, tmp_path):
    found = outcomes(sampled(partial(random_damage, agent, tmp_path / "a", sealed), seed=1 + sealed))
    # A space of the manifest may become another one.
    certain = {name: outcome for name, outcome in found.items() if not sealed and sealed_folders.MANIFEST not in name}
    assert_all(certain, REFUSED)
    assert_all(found, REFUSED, HARMLESS)
