"""The command that compares encoders by copying: every cell once, rows stay, both kinds of games, what is refused."""

import csv
from pathlib import Path

import pytest

from agents.ppo import PPOHyperparameters, build_ppo
from experiments import copy_agent
from experiments.study.cloning import make_games, record
from mnv4_rl.agent_files import save_agent
from tests.needs import needs_envpool

TINY = ["--updates", "1", "--timesteps", "6"]
pytestmark = pytest.mark.usefixtures("few_games")


def agent_of(game, folder):
    env = make_games(game, 1, 0)
    try:
        model = build_ppo(
            env, "nature", total_timesteps=1, hyperparameters=PPOHyperparameters(batch_size=128), seed=0, device="cpu"
        )
    finally:
        env.close()
    save_agent(model, folder, optimizer=False)
    return folder


@pytest.fixture(scope="module")
def pong_agent(tmp_path_factory):
    return agent_of("pong", tmp_path_factory.mktemp("run") / "agent")


def rows_of(folder, game="pong"):
    with (folder / f"copies_{game}.csv").open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def test_every_cell_is_copied_once_and_rows_stay(pong_agent, tmp_path, capsys):
    flags = ["--agent", str(pong_agent), "--results-dir", str(tmp_path), *TINY]
    copy_agent.main([*flags, "--encoders", "nature"])
    first = rows_of(tmp_path)
    copy_agent.main([*flags, "--encoders", "nature", "rl_s", "--seeds", "0", "1"])
    rows = rows_of(tmp_path)
    assert rows[:1] == first
    assert {(row["encoder"], row["seed"]) for row in rows} == {(e, s) for e in ("nature", "rl_s") for s in "01"}
    assert len(rows) == 4 and all(float(row["cpu_seconds"]) > 0 for row in rows)
    assert {row["agent"] for row in rows} == {f"{pong_agent.parent.name}/agent"}
    capsys.readouterr()
    copy_agent.main([*flags, "--encoders", "rl_s"])
    printed = capsys.readouterr().out
    assert "plays" not in printed and printed.count("| `rl_s`") + printed.count("| rl_s") == 1
    assert rows_of(tmp_path) == rows


def test_copies_from_sampled_labels_are_rows_of_their_own(pong_agent, tmp_path, capsys):
    flags = ["--agent", str(pong_agent), "--results-dir", str(tmp_path), "--encoders", "rl_s", *TINY]
    copy_agent.main(flags)
    copy_agent.main([*flags, "--labels", "sampled"])
    exact, sampled = rows_of(tmp_path)
    assert (exact["labels"], sampled["labels"]) == ("exact", "sampled")
    assert (exact["policy"], exact["value"]) != (sampled["policy"], sampled["value"])
    assert capsys.readouterr().out.count("| rl_s |") == 2  # each call shows its own


def test_copies_are_made_on_the_threads_asked_for(pong_agent, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(copy_agent, "tune", asked.append)
    monkeypatch.setattr(copy_agent, "copy_missing", lambda *_: asked.append("copied"))
    copy_agent.main(["--agent", str(pong_agent), "--results-dir", str(tmp_path), "--threads", "3"])
    assert asked == [3, "copied"]


def test_a_folder_without_an_agent_is_refused_before_anything_is_said_to_play(tmp_path, capsys):
    with pytest.raises(SystemExit):
        copy_agent.main(["--agent", str(tmp_path / "none"), "--results-dir", str(tmp_path), *TINY])
    said = capsys.readouterr()
    assert said.out == "" and "none holds no agent; name a checkpoint of a run" in said.err


def test_checkpoints_of_two_runs_are_two_agents():
    names = {copy_agent.name_of(Path(f"/runs/{run}/checkpoints/002000000")) for run in ("mine", "yours")}
    assert names == {"mine/checkpoints/002000000", "yours/checkpoints/002000000"}


@needs_envpool
def test_procgens_agents_are_copied_too(tmp_path):
    agent = agent_of("procgen/starpilot", tmp_path / "agent")
    copy_agent.main(["--game", "procgen/StarPilot", "--agent", str(agent), "--results-dir", str(tmp_path), *TINY])
    assert len(rows_of(tmp_path, "procgen_starpilot")) == 2


@needs_envpool
def test_an_agent_of_another_game_is_told(pong_agent):
    with pytest.raises(ValueError, match="name the agent's own game"):
        record("procgen/starpilot", pong_agent, 0, 6)
