"""The Procgen command: a run folder as the Atari commands write it, and rewards normalised across a resume."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from agents.ppo import PRESETS
from agents.runs import families
from agents.runs.checkpoints import newest_checkpoint, read_state
from agents.runs.config import ProcgenPPOConfig, command_line
from agents.runs.families import Games
from agents.runs.loading import load_run
from agents.runs.run import open_run
from experiments import export_agent, procgen_ppo, publish_agent, watch
from experiments.cli.command import parse
from experiments.study.cloning import published_agent
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.procgen import ProcgenOptions
from tests.needs import needs_envpool

TINY = (
    "--game StarPilot --n-envs 4 --threads 1 --device cpu --total-timesteps 256 --checkpoint-every 128 "
    "--evaluation-games 2 --levels.num-levels 3 --ppo.n-steps 32 --ppo.batch-size 64 --ppo.n-epochs 1"
).split()


def statistics(folder):
    return read_state(newest_checkpoint(folder))["returns"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("procgen") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.runs.evaluation_log.CLIP_TIMESTEPS", 2)
        procgen_ppo.main([*TINY, "--run-dir", str(folder)])
    return folder


@needs_envpool
def test_a_run_folder_has_curves_config_and_both_evaluations(run):
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["scores"]) == len(evaluation["unseen_levels"]["scores"]) == 2
    config = yaml.safe_load((run / "config.yml").read_text())
    assert (config["family"], config["ppo"]["gamma"]) == ("procgen", 0.999)
    assert config["levels"] == {"distribution_mode": "easy", "num_levels": 3, "start_level": 0}
    assert (run / "model.zip").is_file() and (run / "monitor.csv").read_text().startswith("#")
    assert "procgen_ppo.py --game StarPilot" in (run / "command.txt").read_text()


@needs_envpool
def test_its_agent_is_watched_on_all_levels_of_the_mode_it_was_trained_on(run, tmp_path, capsys):
    trained = load_run(run, "cpu")
    assert trained.games == Games("procgen/starpilot", mode="easy")
    env = trained.make_env(n_envs=2, seed=3)
    assert env.num_envs == 2 and env.options == ProcgenOptions(distribution_mode="easy")
    env.close()
    watch.main([str(run), "--episodes", "2", "--no-window", "--gif", str(tmp_path / "play.gif")])
    out = capsys.readouterr().out
    assert "plays procgen/starpilot, all easy levels" in out
    assert "(0 is the lowest return in Procgen's paper at 2.5, 1 the highest at 64)" in out
    assert Image.open(tmp_path / "play.gif").size == (384, 384)
    with pytest.raises(SystemExit):
        watch.main([str(run), "--protocol", "machado", "--no-window"])
    assert "Protocols are of Atari's games, got protocol='machado'" in capsys.readouterr().err


@needs_envpool
def test_its_agent_is_exported_and_the_file_plays(run, tmp_path, capsys):
    file = tmp_path / "agent.onnx"
    export_agent.main([str(run), "--output", str(file), "--frames", "20", "--games", "1"])
    agent, exported = (line.split()[1:] for line in capsys.readouterr().out.splitlines()[-2:])
    assert agent == exported
    assert load_run(file).games == Games("procgen/starpilot")


@needs_envpool
def test_its_agent_is_published_and_another_encoder_can_copy_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(publish_agent, "CLIP_TIMESTEPS", 10)
    publish_agent.main(["--run", str(run), "--games", "2", "--n-envs", "2", "--agents-dir", str(tmp_path)])
    published = tmp_path / f"procgen_starpilot__ppo__{DEFAULT_VARIANT}__s0"
    card = (published / "README.md").read_text()
    assert "procgen-StarPilot-v0" not in card and "procgen-starpilot-v0" in card
    assert "StarPilot (Procgen), all easy levels there are" in card and "frames)" not in card
    assert published_agent("procgen/starpilot", tmp_path) == published / "agent"


@needs_envpool
def test_evaluations_play_the_levels_they_name():
    config = ProcgenPPOConfig(evaluation_games=2, levels=ProcgenOptions(num_levels=2, start_level=5))
    seen = config.games.make_evaluation_env(config)
    (unseen,) = config.games.make_other_evaluation_envs(config).values()
    unseen = unseen()
    assert list(seen.options.levels) == [5, 6] and unseen.options.levels.start == 7
    seen.close(), unseen.close()
    everything = ProcgenPPOConfig(levels=ProcgenOptions())
    assert everything.games.make_other_evaluation_envs(everything) == {}


@needs_envpool
def test_a_resumed_run_goes_on_with_the_statistics_of_its_rewards(run, tmp_path):
    folder = tmp_path / "run"
    procgen_ppo.main([*TINY, "--total-timesteps", "128", "--evaluation-games", "0", "--run-dir", str(folder)])
    saved = statistics(folder)
    assert saved["count"] == pytest.approx(128, abs=1) and saved["var"] != 1
    config = procgen_ppo.ProcgenPPOConfig
    resumed = open_run(parse_resumed(config, folder, 256))
    env = resumed.model.get_vec_normalize_env()
    assert {name: float(getattr(env.ret_rms, name)) for name in saved} == saved
    resumed.train()
    resumed.close()
    assert statistics(folder)["count"] == statistics(run)["count"]


def parse_resumed(config, folder, total):
    from experiments.cli.atari import parse_run

    return parse_run(config, ["--resume", str(folder), "--total-timesteps", str(total)])


@needs_envpool
def test_learner_gets_normalised_rewards_and_the_log_raw_returns(tmp_path):
    config = ProcgenPPOConfig(n_envs=2, threads=1)
    env = families.FAMILIES["procgen"].make_env(config, tmp_path / "x")
    env.reset()
    raw, learnt, returns = [], [], []
    for action in np.random.default_rng(0).integers(15, size=(400, 2)):
        _, rewards, _, infos = env.step(action)
        learnt.append(rewards)
        raw.append(env.get_original_reward())
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    env.close()
    raw, learnt = np.array(raw), np.array(learnt)
    assert set(np.unique(raw)) == {0, 1} and (learnt != raw).any()
    np.testing.assert_array_equal(learnt == 0, raw == 0)
    assert returns and sum(returns) <= raw.sum() and env.gamma == config.ppo.gamma == 0.999


def test_flags_are_the_papers_values_and_repeat_a_config():
    config = parse(ProcgenPPOConfig, [])
    assert config.ppo == PRESETS["procgen"] and config.n_envs == 64 and config.levels.num_levels == 200
    other = parse(ProcgenPPOConfig, ["--levels.distribution-mode", "hard", "--ppo.schedule-timesteps", "1000"])
    line = command_line(other)
    assert line.startswith("python experiments/procgen_ppo.py --game starpilot")
    assert parse(ProcgenPPOConfig, line.split()[2:]) == other
    assert Path(config.name).name == config.name == f"procgen_starpilot__ppo__{DEFAULT_VARIANT}__s0"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--game", "pong"], "no game 'pong'"),
        (["--levels.distribution-mode", "medium"], "easy"),
        (["--levels.num-levels", "-1"], "num_levels"),
        (["--ppo.batch-size", "20000"], "batch_size"),
    ],
)
def test_wrong_flags_are_one_line_and_leave_no_folder(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        procgen_ppo.main([*flags, "--run-dir", str(tmp_path / "run")])
    assert exit_info.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@needs_envpool
def test_training_plays_the_levels_it_is_told(tmp_path):
    config = ProcgenPPOConfig(n_envs=2, threads=1, levels=ProcgenOptions(num_levels=2, start_level=5))
    env = config.games.make_env(config, tmp_path / "x")
    assert env.get_attr("options", 0) == [config.levels]
    env.close()
