"""What save_agent may replace: an agent, and what a killed save left of one. All else stays."""

import pytest

from agents.runs.checkpoints import write_checkpoint
from agents.runs.state import Clock, capture
from mnv4_rl import agent_format, load_agent, save_agent
from tests.tiny_env import same, tiny_ppo


@pytest.fixture(scope="module")
def ppo():
    return tiny_ppo(encoder="rl_s")


def test_saving_over_something_else_is_refused(ppo, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("all my work")
    with pytest.raises(FileExistsError, match="is no saved agent"):
        save_agent(ppo, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter").read_text() == "all my work"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def web_app(path):
    (path / "src").mkdir(parents=True)
    (path / "manifest.json").write_text('{"name": "my PWA"}')
    (path / "src" / "precious.py").write_text("all my work")


def manifest_of_another_kind(path):
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "my PWA"}')


def agent_with_a_clip(path):
    save_agent(tiny_ppo(), path)
    (path / "play.gif").write_bytes(b"GIF")


def agent_with_a_folder_of_a_files_name(path):
    save_agent(tiny_ppo(), path)
    (path / "agent.json").unlink()
    web_app(path / "agent.json")


def checkpoint(path):
    model = tiny_ppo().learn(16)
    state, agent = capture(model, Clock()), agent_format.describe(model)
    write_checkpoint(model, path.parent / "run", state, agent).rename(path)


def neighbour(ending):
    def make(path):
        path.with_name(path.name + ending).mkdir()
        (path.with_name(path.name + ending) / "notes.txt").write_text("all my work")

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (web_app, "'src'"),
        (manifest_of_another_kind, "manifest.json"),
        (agent_with_a_clip, "'play.gif'"),
        (agent_with_a_folder_of_a_files_name, "'agent.json'"),
        (checkpoint, "'training.json'"),
        (neighbour(".partial"), "pong.partial.*'notes.txt'"),
        (neighbour(".old.partial"), "pong.old.partial.*'notes.txt'"),
        (lambda path: path.symlink_to("nowhere"), "no folder"),
        (lambda path: path.write_text("all my work"), "no folder"),
    ],
)
def test_saving_deletes_nothing_that_is_no_agents(make, message, ppo, tmp_path):
    make(tmp_path / "pong")
    before, listed = contents(tmp_path), sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=f"{message}.*Move it away"):
        save_agent(ppo, tmp_path / "pong")
    assert contents(tmp_path) == before and sorted(tmp_path.rglob("*")) == listed


def test_what_killed_saves_left_is_cleared_by_the_next(ppo, tmp_path):
    save_agent(tiny_ppo(), tmp_path / "pong.old.partial")  # killed between two renames
    (tmp_path / "pong.partial").mkdir()
    (tmp_path / "pong.partial" / "agent.json").write_text("{")
    save_agent(ppo, tmp_path / "pong")
    assert same(ppo.policy.state_dict(), load_agent(tmp_path / "pong", device="cpu").policy.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["pong"]
