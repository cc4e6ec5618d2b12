"""Exporting the agent of a run: the file plays the agent's own games, and a mistake costs one line."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents.runs.families import Games
from agents.runs.loading import TrainedRun, load_run
from experiments import export_agent, watch
from mnv4_rl.export import OnnxAgent

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "agent.onnx"
    export_agent.main([str(run_dir), "--output", str(path), "--frames", "20"])
    return path


def test_says_how_well_it_agrees_and_where_it_is(run_dir, tmp_path, capsys):
    path = tmp_path / "agent.onnx"
    export_agent.main([str(run_dir), "--output", str(path), "--frames", "13", "--quantize", "fc"])
    line = capsys.readouterr().out
    assert "of 13 actions" in line and "MB" in line and str(path) in line


def test_file_is_a_run_that_can_be_loaded(exported):
    run = load_run(exported)
    assert isinstance(run.model, OnnxAgent)
    assert (run.game, run.algo, run.encoder) == ("pong", "ppo", "rl_s")


@pytest.mark.slow
def test_watch_plays_the_agents_own_game(exported, run_dir, capsys):
    for path in (exported, run_dir):
        watch.main([str(path), "--episodes", "1", "--seed", "3", "--no-window"])
    mine, theirs = (part.splitlines()[:2] for part in capsys.readouterr().out.split("ppo with")[1:])
    assert mine == theirs and "game 1" in mine[1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output", "agent.pt"], ".onnx"),
        (["--frames", "0"], "frames"),
        (["--games", "-1"], "games"),
    ],
)
def test_wrong_flags_are_one_line(run_dir, flags, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        export_agent.main([str(run_dir), *flags])
    error = capsys.readouterr().err
    assert stopped.value.code not in (0, None) and says in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(exported, run_dir, capsys):
    before = exported.read_bytes()
    with pytest.raises(SystemExit):
        export_agent.main([str(run_dir), "--output", str(exported)])
    assert "exists" in capsys.readouterr().err and exported.read_bytes() == before


def test_a_file_has_nothing_to_export_and_no_saliency(exported, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export_agent.main([str(exported), "--output", str(tmp_path / "again.onnx")])
    with pytest.raises(SystemExit):
        watch.main([str(exported), "--saliency", "--gif", str(tmp_path / "a.gif"), "--no-window"])
    error = capsys.readouterr().err
    assert "exported already" in error and "no inside" in error


def test_an_agents_own_folder_is_no_run(tmp_path, capsys):
    """save_agent's says nothing of a game; inside a published folder the line names that."""
    published = ROOT / "experiments/results/agents/pong__ppo__rl_s__s0"
    shutil.copytree(published / "agent", tmp_path / "alone")
    for folder, says in ((published / "agent", f"name its run, {published},"), (tmp_path / "alone", "; export it")):
        for command in (export_agent, watch):
            with pytest.raises(SystemExit) as stopped:
                command.main([str(folder)])
            error = capsys.readouterr().err
            assert stopped.value.code not in (0, None) and error.count("\n") == 1
            assert "save_agent" in error and "to_onnx" in error and says in error


def test_a_file_knows_the_levels_that_its_agent_was_trained_on(monkeypatch, tmp_path):
    games, told = Games("procgen/starpilot", mode="hard"), {}
    monkeypatch.setattr(export_agent, "load_run", lambda *_, **__: TrainedRun(None, games, "ppo", "rl_s"))
    monkeypatch.setattr(export_agent, "frames_of_play", lambda _run, n_frames, seed: (n_frames, seed))
    monkeypatch.setattr(export_agent, "to_onnx", lambda *args, **kwargs: told.update(kwargs))
    export_agent.main(["run", "--output", str(tmp_path / "a.onnx"), "--frames", "20", "--seed", "5"])
    assert told["notes"] == {"game": "procgen/starpilot", "mode": "hard", "encoder": "rl_s"}
    assert told["frames"] == (20, 5)


def test_whole_games_are_played_by_the_agent_and_by_the_file(monkeypatch, tmp_path):
    played = []
    monkeypatch.setattr(export_agent, "OnnxAgent", lambda path: f"file of {path.name}")
    monkeypatch.setattr(
        TrainedRun, "make_env", lambda self, **asked: SimpleNamespace(of=(self.model, asked), close=int)
    )
    monkeypatch.setattr(export_agent, "evaluate", lambda model, env, n, seed: played.append((model, env.of, n, seed)))
    run = TrainedRun("agent", Games("pong"), "ppo", "rl_s")
    export_agent.whole_games(run, export_agent.ExportConfig(run=tmp_path, output=tmp_path / "a.onnx", games=4, seed=5))
    asked = {"n_envs": 4, "seed": 5}
    assert played == [(model, (model, asked), 4, 5) for model in ("agent", "file of a.onnx")]
