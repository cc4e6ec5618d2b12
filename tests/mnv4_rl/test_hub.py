"""Agents by a name on the hub, and cards that the hub's own parser reads; the hub is a stand-in of local files."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard

from experiments import push_agent
from mnv4_rl import load_agent
from mnv4_rl.hub import check_card, front_matter, push_to_hub

AGENTS = Path(__file__).resolve().parents[2] / "experiments" / "results" / "agents"
PONG = AGENTS / "pong__ppo__rl_s__s0"
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 4, 84, 84), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected():
    return load_agent(PONG / "agent", device="cpu").predict(IMAGES, deterministic=True)[0]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Repositories as folders; a cache of links, as the hub's client has it."""
    repositories, cache = tmp_path / "hub", tmp_path / "cache"
    cache.mkdir()

    def download(repository, name):
        source = repositories / repository / name
        if not source.is_file():
            raise OSError(f"404 Client Error: {name}\nmore lines")
        link = cache / f"{repository}--{name}".replace("/", "--")
        link.symlink_to(source)
        return str(link)

    class Api:
        def create_repo(self, repository, *, private, exist_ok):
            (repositories / repository).mkdir(parents=True, exist_ok=exist_ok)
            (repositories / repository / "visibility").write_text("private" if private else "public")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, repositories / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return repositories


def acts(path):
    return load_agent(path, device="cpu").predict(IMAGES, deterministic=True)[0]


@pytest.mark.parametrize("place", ["agent", ".", "agent/agent.json", "agent/agent.safetensors"])
def test_folder_published_folder_or_file_in_it(place, expected):
    np.testing.assert_array_equal(acts(PONG / place), expected)
    np.testing.assert_array_equal(acts(str(PONG / place)), expected)


def test_pushed_agent_is_loaded_by_its_name(hub, expected, capsys, tmp_path, monkeypatch):
    push_agent.main([str(PONG), "somebody/pong"])
    assert "hub/somebody/pong/commit/1" in capsys.readouterr().out
    assert (hub / "somebody" / "pong" / "play.gif").is_file()
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(acts("somebody/pong"), expected)


@pytest.mark.parametrize(("flags", "visibility"), [([], "public"), (["--private"], "private")])
def test_only_who_asks_for_it_gets_a_private_repository(hub, flags, visibility):
    push_agent.main([str(PONG), "somebody/pong", *flags])
    assert (hub / "somebody" / "pong" / "visibility").read_text() == visibility


def test_a_folder_of_that_name_goes_first(hub, expected, tmp_path, monkeypatch):
    shutil.copytree(PONG / "agent", tmp_path / "somebody" / "pong")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(acts("somebody/pong"), expected)


@pytest.mark.parametrize("left", ["somebody/pong.old.partial", "somebody/pong/agent.old.partial"])
def test_a_folder_that_a_kill_left_under_its_other_name_goes_first(hub, expected, tmp_path, monkeypatch, left):
    shutil.copytree(PONG / "agent", tmp_path / left)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(acts("somebody/pong"), expected)


@pytest.mark.parametrize("name", [".", "agent.json"])
def test_the_folder_one_stands_in_is_loaded(name, expected, monkeypatch):
    monkeypatch.chdir(PONG / "agent")
    np.testing.assert_array_equal(acts(name), expected)


def test_a_mistyped_path_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    """It would be somebody else's agent."""
    push_agent.main([str(PONG), "runs/pong"])
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        load_agent("runs/pong")


def test_unknown_names_are_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConnectionError, match="nobody/nothing") as caught:
        load_agent("nobody/nothing")
    assert "404" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError):
        load_agent("nothing")
    with pytest.raises(ValueError):
        load_agent(Path("nobody/nothing"))


def test_damaged_agents_of_the_hub_are_refused(hub, tmp_path, monkeypatch):
    shutil.copytree(PONG, hub / "somebody" / "pong")
    (hub / "somebody" / "pong" / "agent" / "agent.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"agent\.json"):
        load_agent("somebody/pong")


def test_without_the_client_there_is_an_install_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        load_agent("somebody/pong")
    load_agent(PONG, device="cpu")


@pytest.mark.parametrize("spoil", ["agent/agent.safetensors", "README.md"])
def test_unsound_folders_are_not_pushed(hub, tmp_path, spoil):
    folder = tmp_path / "pong"
    shutil.copytree(PONG, folder)
    (folder / spoil).write_bytes(b"# nothing")
    with pytest.raises(ValueError):
        push_to_hub(folder, "somebody/pong")
    assert not hub.exists()


def test_a_byte_that_flipped_is_not_pushed(hub, tmp_path):
    shutil.copytree(PONG, tmp_path / "pong")
    tensors = tmp_path / "pong" / "agent" / "agent.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(ValueError, match=r"agent\.safetensors is not what was written"):
        push_to_hub(tmp_path / "pong", "somebody/pong")
    assert not hub.exists()


@pytest.mark.parametrize("name", ["pong", "a/b/c", "../pong", ""])
def test_names_of_another_form_are_refused(hub, name):
    with pytest.raises(ValueError, match="user/name"):
        push_to_hub(PONG, name)


def test_front_matter_is_what_the_hub_reads():
    card = ModelCard(front_matter("PongNoFrameskip-v4", "PPO", [1.0, 2.0, 3.0]) + "# Title\n")
    assert card.data.library_name == "stable-baselines3" and card.data.model_name == "PPO"
    assert {"PongNoFrameskip-v4", "deep-reinforcement-learning"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("mean_reward", "2.00 +/- 0.82")
    assert result.task_type == "reinforcement-learning" and result.dataset_name == "PongNoFrameskip-v4"


@pytest.mark.parametrize("folder", sorted(AGENTS.iterdir()), ids=lambda folder: folder.name)
def test_published_cards_are_the_hubs(folder):
    check_card(folder / "README.md")
