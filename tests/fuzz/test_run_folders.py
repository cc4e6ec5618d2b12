"""Run folders from a stranger: settings, training state, replay and whatever stands in a file's place."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from agents.runs import train_run
from agents.runs.config import DQNConfig
from agents.runs.folder import RunFolder, evaluated_timesteps, exported_timesteps
from agents.runs.logs import rewind_logs
from agents.runs.replay_file import read_replay
from agents.runs.resuming import recorded_config
from agents.runs.session import find_resume
from mnv4_rl.agent_files import REPLAY, TRAINING
from tests.agents.runs.test_run_folders import TINY_DQN
from tests.fuzz.bounded import assert_all, outcomes, sampled
from tests.fuzz.mutations import BYTES, IN_ITS_PLACE, VALUES, places, replaced
from tests.fuzz.test_agent_folders import seal

REFUSED, HARMLESS = "refused", "harmless"
CHECKPOINT = Path("checkpoints") / "000000032"
FILES = ("config.yml", "command.txt", "monitor.csv", "progress.csv", "evaluation.json", "model.zip", "run.lock")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The folder of a DQN run with its replay, stopped at its end, and a replay like its own."""
    folder = tmp_path_factory.mktemp("original") / "run"
    train_run(replace(TINY_DQN, run_dir=folder), quiet=True)
    (folder / "evaluation.json").write_text('{"timesteps": 32}')
    (folder / "run.lock").touch()
    return folder


@pytest.fixture(scope="module")
def model(original):
    return TINY_DQN.build(TINY_DQN.games.make_env(TINY_DQN, original.parent / "monitor.csv"))


def listing(folder: Path):
    """What is in a folder, without opening what is no file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        at = os.lstat(path)
        plain = path.is_file() and not path.is_symlink() and at.st_size < 10**9
        found[path] = path.read_bytes() if plain else at.st_mode
    return found


def tried(model, folder: Path) -> str:
    """All that a resume reads before it changes anything; a folder that it takes is not changed either."""
    before = listing(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged checkpoints
            recorded_config(DQNConfig, folder).check()
            with RunFolder(folder, resume=True, quiet=True) as run:
                resume = find_resume(run)
                read_replay(model.replay_buffer, resume.checkpoint / REPLAY)
                assert evaluated_timesteps(folder) in (32, None) and exported_timesteps(folder) in (32, None)
                raise KeyboardInterrupt  # leave it untouched
    except (ValueError, OSError) as error:
        outcome = REFUSED
        assert str(error).strip()
    except KeyboardInterrupt:
        outcome = HARMLESS
    assert listing(folder) == before, "the folder changed"
    return outcome


def spoiled(original, model, folder: Path, spoil) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    spoil(folder)
    return tried(model, folder)


def in_place(name, kind, folder):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    IN_ITS_PLACE[kind](path)


def test_the_untouched_run_goes_on(original, model, tmp_path):
    assert_all(outcomes([("whole", partial(spoiled, original, model, tmp_path / "a", lambda _: None))]), HARMLESS)


@pytest.mark.parametrize("kind", IN_ITS_PLACE)
def test_whatever_stands_in_the_place_of_a_file_ends_within_bounds(kind, original, model, tmp_path):
    names = [*FILES, "checkpoints", *(str(CHECKPOINT / name) for name in (TRAINING, REPLAY, "manifest.json"))]
    cases = [(name, partial(spoiled, original, model, tmp_path / "a", partial(in_place, name, kind))) for name in names]
    found = outcomes(cases)
    assert_all(found, REFUSED, HARMLESS)
    if "link" in kind or kind == "pipe":
        assert_all(found, REFUSED)


def test_logs_of_any_content_are_cut_or_refused(original, tmp_path):
    def cut(content, name):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        shutil.copytree(original, tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(content)
        try:
            with RunFolder(tmp_path / "a", resume=True, quiet=True) as run:
                rewind_logs(run, 16, 10)
        except (ValueError, OSError):
            return REFUSED
        return HARMLESS

    contents = (
        b"",
        b"\xff\xfe",
        b"\x00" * 1000,
        b"time/total_timesteps\n99\n",
        b"#{}\nr,l,t,env\n",
        b"\xff" * 8 + b"\x00" * 90,
    )
    names = ("progress.csv", "monitor.csv", "events.out.tfevents.1000000000.x.1.0")
    cases = [(f"{name}: {content[:9]!r}", partial(cut, content, name)) for name in names for content in contents]
    assert_all(outcomes(cases), REFUSED, HARMLESS)


# Every value of every file


def settings(place, value, folder):
    path = folder / "config.yml"
    path.write_text(json.dumps(replaced(yaml.safe_load(path.read_text()), place, value)))  # JSON is YAML


def state(place, value, folder):
    path = folder / CHECKPOINT / TRAINING
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), place, value)))
    seal(path.parent)


@pytest.mark.parametrize(("file", "spoil"), [("config.yml", settings), (CHECKPOINT / TRAINING, state)])
def test_every_value_may_be_any_other(file, spoil, original, model, tmp_path):
    data = (
        yaml.safe_load((original / file).read_text())
        if spoil is settings
        else json.loads((original / file).read_text())
    )
    rng = random.Random(0)
    cases = []
    for place in places(data):
        for name in rng.sample(sorted(VALUES), 2):
            case = partial(spoiled, original, model, tmp_path / "a", partial(spoil, place, VALUES[name]))
            cases.append((f"{'.'.join(map(str, place))} = {name}", case))
    assert_all(outcomes(cases), REFUSED, HARMLESS)


def test_spoiled_bytes_end_within_bounds(original, model, tmp_path):
    files = ("config.yml", "evaluation.json", "model.zip", *(CHECKPOINT / name for name in (TRAINING, REPLAY)))

    def spoil(rng, file, folder):
        path = folder / file
        path.write_bytes(rng.choice(BYTES)(rng, path.read_bytes()))
        if CHECKPOINT in Path(file).parents:
            seal(path.parent)

    def case(rng: random.Random):
        file, number = rng.choice(files), rng.random()
        return f"{file} {number}", partial(spoiled, original, model, tmp_path / "a", partial(spoil, rng, file))

    assert_all(outcomes(sampled(case)), REFUSED, HARMLESS)


@pytest.mark.slow
def test_a_member_of_three_gigabytes_is_refused_before_it_is_read(original, model, tmp_path):
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(original / CHECKPOINT / REPLAY) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, content in members.items():
            with archive.open(member, "w", force_zip64=True) as file:
                file.write(content)
                for _ in range(3 * 2**10 if member == "frames.ring.npy" else 0):
                    file.write(bytes(2**20))

    def plant(folder):
        shutil.copyfile(bomb, folder / CHECKPOINT / REPLAY)
        seal(folder / CHECKPOINT)

    assert_all(outcomes([("bomb", partial(spoiled, original, model, tmp_path / "a", plant))]), REFUSED)
