"""Publishing an agent: what is committed plays as the run's agent did, and its card says where it comes from."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard

from agents.play.evaluate import Evaluation
from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs.checkpoints import newest_checkpoint, write_checkpoint
from agents.runs.families import Games
from agents.runs.loading import TrainedRun, load_run
from experiments import publish_agent
from mnv4_rl import agent_format
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari import options as atari_options
from tests.run_folders import write_config

TIMESTEPS = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 32 timesteps, with the files that a training command leaves."""
    folder = tmp_path_factory.mktemp("trained")
    env = make_atari_env("pong", 1)
    settings = PPOHyperparameters(n_steps=16, batch_size=16)
    model = build_ppo(env, "rl_s", total_timesteps=TIMESTEPS, hyperparameters=settings, seed=3, device="cpu")
    model.learn(TIMESTEPS)
    write_checkpoint(model, folder, {"counters": {"num_timesteps": TIMESTEPS}}, agent_format.describe(model))
    env.close()
    write_config(
        folder, algo="ppo", game="pong", encoder="rl_s", seed=3, total_timesteps=TIMESTEPS, run_dir=str(folder)
    )
    (folder / "command.txt").write_text(f"/venv/bin/python /x/experiments/atari_ppo.py --run-dir {folder} --seed 3\n")
    (folder / "versions.txt").write_text("torch: 2\ncommit: abc\n")
    return folder, model


@pytest.fixture
def short_games(monkeypatch):
    """Games of at most 200 emulator frames, clips of 10 timesteps."""
    options = dataclasses.replace(atari_options.PROTOCOLS["sb3"], max_episode_frames=200)
    monkeypatch.setitem(atari_options.PROTOCOLS, "sb3", options)
    monkeypatch.setattr(publish_agent, "CLIP_TIMESTEPS", 10)


def test_published_agent_is_the_runs_without_its_optimiser(run, short_games, tmp_path, capsys):
    folder, model = run
    publish_agent.main(["--run", str(folder), "--games", "4", "--n-envs", "2", "--agents-dir", str(tmp_path)])
    published = tmp_path / "pong__ppo__rl_s__s3"
    assert capsys.readouterr().out.count("game ") == 4
    loaded = load_run(published, "cpu")
    assert (loaded.game, loaded.algo, loaded.encoder) == ("pong", "ppo", "rl_s")
    observations = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    actions = [agent.predict(observations, deterministic=True)[0].tolist() for agent in (model, loaded.model)]
    assert actions[0] == actions[1]
    n_bytes = 4 * sum(parameter.numel() for parameter in model.policy.parameters())
    assert n_bytes < sum(path.stat().st_size for path in (published / "agent").iterdir()) < 1.01 * n_bytes + 10_000
    scores = json.loads((published / "evaluation.json").read_text())
    assert scores["games"] == 4
    card = (published / "README.md").read_text()
    assert f"{scores['mean']:.1f} [" in card and "over 4 games" in card
    assert "32 agent timesteps (128 frames), seed 3" in card and "commit: abc" in card
    assert "`python experiments/atari_ppo.py --seed 3`" in card
    assert (published / "play.gif").read_bytes()[:3] == b"GIF"
    assert (published / "play.mp4").read_bytes()[4:8] == b"ftyp"
    data = ModelCard.load(published / "README.md").data
    assert data.library_name == "stable-baselines3" and "PongNoFrameskip-v4" in data.tags
    assert data.eval_results[0].metric_value.startswith(f"{scores['mean']:.2f} +/- ")
    assert str(folder) not in card + (published / "config.yml").read_text()


def test_published_again_it_is_replaced(run, short_games, tmp_path):
    arguments = ["--run", str(run[0]), "--n-envs", "2", "--agents-dir", str(tmp_path), "--games"]
    publish_agent.main([*arguments, "4"])
    publish_agent.main([*arguments, "2"])
    assert "over 2 games" in (tmp_path / "pong__ppo__rl_s__s3" / "README.md").read_text()
    load_run(tmp_path / "pong__ppo__rl_s__s3", "cpu")


def test_a_folder_without_a_checkpoint_is_no_stopped_run(run, short_games, tmp_path, capsys):
    publish_agent.main(["--run", str(run[0]), "--games", "1", "--agents-dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        publish_agent.main(["--run", str(tmp_path / "pong__ppo__rl_s__s3"), "--stopped"])
    assert "has no sound checkpoint" in capsys.readouterr().err


def test_a_stopped_run_is_published_where_it_is_asked_for(run, short_games, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    write_config(folder, algo="ppo", game="pong", encoder="rl_s", seed=3, total_timesteps=64)
    publish_agent.main(["--run", str(folder), "--games", "1", "--agents-dir", str(tmp_path), "--stopped"])
    card = (tmp_path / "pong__ppo__rl_s__s3" / "README.md").read_text()
    assert "32 agent timesteps (128 frames) of 64, where it was stopped, seed 3" in card


@pytest.mark.parametrize(
    ("total", "flags", "message"),
    [
        (64, [], "stands at timestep 32 of 64; train it to the end with --resume first, or say --stopped"),
        (TIMESTEPS, ["--games", "0"], "games"),
        (TIMESTEPS, ["--n-envs", "0"], "n_envs"),
    ],
)
def test_what_cannot_be_published_leaves_nothing(run, tmp_path, capsys, total, flags, message):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(run[0] / "checkpoints", folder / "checkpoints")
    write_config(folder, algo="ppo", game="pong", encoder="rl_s", seed=3, total_timesteps=total)
    with pytest.raises(SystemExit) as refused:
        publish_agent.main(["--run", str(folder), "--agents-dir", str(tmp_path / "agents"), *flags])
    assert refused.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "agents").exists()


@pytest.mark.parametrize(
    "fault", ["command.txt", "versions.txt", "place", "agent", "own file", "game", "seed", "total_timesteps"]
)
def test_what_would_fail_after_the_games_is_refused_before_them(run, fault, tmp_path, capsys, monkeypatch):
    folder, agents = tmp_path / "run", tmp_path / "agents"
    shutil.copytree(run[0], folder)
    settings = {"algo": "ppo", "game": "pong", "encoder": "rl_s", "seed": 3, "total_timesteps": TIMESTEPS}
    wrong = {"game": "tetriss", "seed": "0/../../x", "total_timesteps": ["32"]}
    write_config(folder, **settings | {name: value for name, value in wrong.items() if name == fault})
    if fault.endswith(".txt"):
        (folder / fault).unlink()
    if fault == "place":
        agents.write_text("a file")
    if fault == "agent":
        (agents / "pong__ppo__rl_s__s3" / "agent").mkdir(parents=True)
        (agents / "pong__ppo__rl_s__s3" / "agent" / "notes.txt").touch()
    if fault == "own file":
        shutil.copytree(newest_checkpoint(run[0]), agents / "pong__ppo__rl_s__s3" / "agent")
    monkeypatch.setattr(publish_agent, "play", lambda *_: pytest.fail("games were played"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as refused:
        publish_agent.main(["--run", str(folder), "--agents-dir", str(agents)])
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.splitlines()[-1].startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        publish_agent.main(["--run", str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err


def test_the_cards_games_are_of_the_seed_asked_for(monkeypatch):
    asked, env = [], SimpleNamespace(close=lambda: None)
    inner = SimpleNamespace(make_env=lambda **kwargs: asked.append(kwargs) or env)
    monkeypatch.setattr(publish_agent, "evaluate", lambda *_, seed, **__: asked.append(seed))
    config = SimpleNamespace(n_envs=2, seed=1_000, games=4)
    publish_agent.play(SimpleNamespace(model=None, run=inner), config)
    assert asked == [{"n_envs": 2, "seed": 1_000}, 1_000]


def test_the_clip_is_of_the_seed_asked_for_too(monkeypatch):
    asked, env = [], SimpleNamespace(close=lambda: None)
    family = SimpleNamespace(make_plain_env=lambda games: asked.append(games) or env)
    monkeypatch.setitem(publish_agent.FAMILIES, "atari", family)
    monkeypatch.setattr(publish_agent, "record_clip", lambda _model, _env, timesteps, seed: [(timesteps, seed)])
    model = SimpleNamespace()
    monkeypatch.setattr(publish_agent.FinishedRun, "model", model)
    run = publish_agent.FinishedRun(None, {}, 0, TrainedRun(model, Games("pong"), "ppo", "rl_s"))
    assert publish_agent.clip_of(run, 7) == [(publish_agent.CLIP_TIMESTEPS, 7)]
    assert asked == [Games("pong", seed=7)]


def test_the_mp4_is_in_real_time(monkeypatch):
    """Atari's 60 frames a second, four of which are a timestep."""
    told = []

    class Writer:
        def __init__(self, path, frame_skip):
            told.append(frame_skip)
            self.path = path

        def add(self, screen):
            told.append(screen)

        def close(self):
            self.path.write_bytes(b"film")

    monkeypatch.setattr(publish_agent, "Mp4Writer", Writer)
    assert publish_agent.mp4(["one", "other"]) == b"film" and told == [4, "one", "other"]


def test_a_card_of_hard_levels_has_their_scale(run, tmp_path):
    finished = publish_agent.read_finished(run[0])
    hard = dataclasses.replace(finished.run, games=Games("procgen/starpilot", mode="hard"))
    card = publish_agent.card(dataclasses.replace(finished, run=hard), Evaluation.of([18.25]), tmp_path)
    assert "all hard levels there are" in card
    assert "| normalised | 0.50 (0 is the lowest return in Procgen's paper at 1.5, 1 the highest at 35) |" in card
