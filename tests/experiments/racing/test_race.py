"""A race of stand-in runs, which write the files of a run at once, and one of real ones."""

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from agents.ppo import PRESETS
from agents.runs.config import PPOConfig
from agents.runs.folder import exported_timesteps
from experiments import race, report
from experiments.cli.command import parse
from experiments.racing import planning, processes, running
from experiments.racing.results import COLUMNS, read_races
from tests.needs import needs_envpool

ROOT = Path(__file__).resolve().parents[3]
# Plays the part of experiments/atari_ppo.py: same flags, same files, a curve that depends on encoder and seed.
STAND_IN = """
import json, pathlib, sys, time, zipfile
def save(timesteps):
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("data", json.dumps({"num_timesteps": timesteps}))
words = sys.argv[1:]
flags = dict(zip((w[2:].replace("-", "_") for w in words[::2]), words[1::2]))
if "resume" in flags:
    folder = pathlib.Path(flags["resume"])
    save(json.loads((folder / "config.yml").read_text())["total_timesteps"] + 1)
    sys.exit()
folder, total = pathlib.Path(flags.pop("run_dir")), int(flags["total_timesteps"])
folder.mkdir()
read = lambda v: json.loads(v.replace("None", "null"))
numbers = {k: v if k in ("game", "encoder", "device") else read(v) for k, v in flags.items()}
ppo = {k[4:]: v for k, v in numbers.items() if k.startswith("ppo.")}
config = {k: v for k, v in numbers.items() if not k.startswith("ppo.")}
(folder / "config.yml").write_text(json.dumps({"algo": "ppo", **config, "ppo": ppo}))
(folder / "command.txt").write_text("python /x/atari_ppo.py --seed " + flags["seed"])
(folder / "versions.txt").write_text("commit: abc\\n")
if MODE == "fail" and flags["encoder"] == "nature":
    sys.exit("out of luck")
lines = ["time/total_timesteps,time/wall_seconds,time/cpu_seconds,rollout/ep_rew_mean", "1,1,1,"]
good = {"nature": 1, "rl_s": 2}[flags["encoder"]] + int(flags["seed"]) / 10
steps = range(2, total + 1) if MODE != "hang" else range(2, total // 2)
lines += [f"{i},{2 * i},{3 * i},{good * i}" for i in steps]
(folder / "progress.csv").write_text("\\n".join(lines) + "\\n")
if MODE == "hang":
    time.sleep(600)
save(total)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Replaces the PPO command; call it with a mode to change what the next runs do."""
    path = tmp_path / "stand_in.py"

    def write(mode="finish"):
        path.write_text(f"MODE = {mode!r}\n{STAND_IN}")

    write()
    monkeypatch.setattr(running.run_race, "__defaults__", (path,))
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.05)
    return write


def flags(tmp_path, *more):
    places = ["--race-dir", str(tmp_path / "races"), "--results-dir", str(tmp_path / "results")]
    encoders = () if "--encoders" in more else ("--encoders", "nature", "rl_s")
    return ["--name", "r", "--total-timesteps", "50", "--points", "10", "--jobs", "4", *encoders, *places, *more]


def started(tmp_path):
    """When each run's folder was made."""
    return {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "races" / "r").glob("*/config.yml")}


def test_every_cell_runs_with_equal_settings_and_lands_in_one_csv(tmp_path, stand_in, capsys):
    race.main(flags(tmp_path, "--seeds", "0", "1", "--ppo.n-steps", "64", "--ppo.learning-rate", "1e-3"))
    configs = [yaml.safe_load(p.read_text()) for p in (tmp_path / "races" / "r").glob("*/config.yml")]
    assert {(c.pop("encoder"), c.pop("seed")) for c in configs} == {(e, s) for e in ("nature", "rl_s") for s in (0, 1)}
    assert all(config == configs[0] for config in configs)
    assert (configs[0]["ppo"]["n_steps"], configs[0]["ppo"]["learning_rate"]) == (64, 1e-3)
    runs = {(run.encoder, run.seed): run for run in read_races([tmp_path / "results" / "race_r.csv"])}
    assert len(runs) == 4 and {run.game for run in runs.values()} == {"pong"}
    best = runs["rl_s", 1]
    assert best.points.shape == (10, 4)
    assert best.clock("timesteps")[[0, -1]].tolist() == [2, 50]
    assert (best.clock("cpu_seconds") == 3 * best.clock("timesteps")).all()
    assert best.scores[-1] == pytest.approx(2.1 * 50)
    out = capsys.readouterr().out
    assert "4 of 4 runs finished" in out
    assert "race_r.csv --encoders nature rl_s --games pong --seeds 0 1 --name r" in out


def test_a_race_on_procgen_has_the_defaults_of_its_paper_and_its_own_command(tmp_path, stand_in, capsys):
    race.main(flags(tmp_path, "--games", "procgen/StarPilot", "--ppo.n-epochs", "2", "--encoders", "nature"))
    (folder,) = (tmp_path / "races" / "r").glob("*/")
    config = yaml.safe_load((folder / "config.yml").read_text())
    assert folder.name == "procgen_starpilot__nature__s0"
    assert (config["game"], config["n_envs"]) == ("procgen/starpilot", 64)
    ppo = replace(PRESETS["procgen"], n_epochs=2)
    assert config["ppo"] == asdict(ppo)
    (run,) = read_races([tmp_path / "results" / "race_r.csv"])
    assert run.game == "procgen/starpilot"
    assert "--games procgen/StarPilot" in capsys.readouterr().out
    parsed = planning.family_defaults(planning.RaceConfig(name="r", games=("procgen/starpilot",)))
    assert planning.plan(replace(parsed, race_dir=tmp_path))[0].trainer.name == "procgen_ppo.py"
    assert planning.family_defaults(planning.RaceConfig(name="r")) == planning.RaceConfig(name="r")


def test_csv_says_where_it_comes_from(tmp_path, stand_in):
    race.main(flags(tmp_path))
    lines = (tmp_path / "results" / "race_r.csv").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    for run in ("pong__nature__s0", "pong__rl_s__s0"):
        assert f"# {run}: command: python experiments/atari_ppo.py --seed 0" in comments
        assert f"# {run}: commit: abc" in comments
    assert next(csv.reader(lines[len(comments) :])) == list(COLUMNS)


def test_a_race_grows_by_what_its_csv_lacks(tmp_path, stand_in, capsys):
    csv_file = tmp_path / "results" / "race_r.csv"
    race.main(flags(tmp_path, "--seeds", "1"))
    first = {run.name: run.points.tolist() for run in read_races([csv_file])}
    shutil.rmtree(tmp_path / "races")  # the next runs train elsewhere
    race.main(flags(tmp_path, "--seeds", "1", "0", "--encoders", "rl_s", "--points", "5"))
    assert "--encoders rl_s --games pong --seeds 1 0 --reference rl_s --name r" in capsys.readouterr().out
    runs = {run.name: run.points for run in read_races([csv_file])}
    assert list(runs) == ["pong__nature__s1", "pong__rl_s__s1", "pong__rl_s__s0"]
    assert runs["pong__nature__s1"].tolist() == first["pong__nature__s1"]
    assert [len(points) for points in runs.values()] == [10, 5, 5], "a run that trained again replaces the old one"
    lines = csv_file.read_text().splitlines()
    for name in runs:
        assert sum(line.startswith(f"# {name}: command:") for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notes of mine\n", "is not a race"),
        (",".join(COLUMNS) + "\npong,rl_m,0,9000,2,3,4\n", "pong__rl_m__s0 with 9,000 timesteps, this race has 50"),
    ],
)
def test_a_csv_that_is_in_the_way_is_refused_before_anything_trains(text, message, tmp_path, stand_in, capsys):
    csv_file = tmp_path / "results" / "race_r.csv"
    csv_file.parent.mkdir()
    csv_file.write_text(text)
    with pytest.raises(SystemExit) as refused:
        race.main(flags(tmp_path))
    assert refused.value.code == 2 and message in capsys.readouterr().err
    assert csv_file.read_text() == text and not (tmp_path / "races").exists()


def test_six_digits_of_a_csv_are_enough_to_add_to_it(tmp_path):
    rows = [f"pong,nature,0,{t:.6g},1,1,1" for t in (1024, 978 * 1024)]  # 1,001,472 is kept as 1.00147e+06
    (tmp_path / "race_r.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    config = planning.RaceConfig(name="r", total_timesteps=978 * 1024, results_dir=tmp_path)
    planning.check_csv(config)
    with pytest.raises(ValueError, match="this race has 1,003,520"):
        planning.check_csv(replace(config, total_timesteps=980 * 1024))


def test_finished_runs_are_kept_and_broken_ones_go_on_in_their_folder(tmp_path, stand_in):
    """Whether a run without a checkpoint may start over is its own command's to say: nothing is removed here."""
    race.main(flags(tmp_path))
    before, broken = started(tmp_path), tmp_path / "races" / "r" / "pong__rl_s__s0"
    (broken / "model.zip").unlink()  # killed before it saved
    (broken / "notes.txt").touch()
    race.main(flags(tmp_path, "--seeds", "0", "1"))
    after = started(tmp_path)
    assert after["pong__nature__s0"] == before["pong__nature__s0"]
    assert exported_timesteps(broken) == 51 and (broken / "notes.txt").exists()
    assert len(read_races([tmp_path / "results" / "race_r.csv"])) == len(after) == 4


def test_a_last_checkpoint_is_as_good_as_a_saved_model(tmp_path, monkeypatch):
    """The command refuses to resume a run that has trained all its timesteps."""
    run = planning.plan(planning.RaceConfig(name="r", total_timesteps=50, race_dir=tmp_path))[0]
    run.folder.mkdir(parents=True)
    (run.folder / "progress.csv").write_text("time/total_timesteps\n50\n")
    for name, finished in (("49", False), ("52", True)):
        monkeypatch.setattr(planning, "newest_checkpoint", lambda folder, name=name: folder / name)
        assert run.finished() == finished


def test_a_saved_model_alone_does_not_make_a_run_finished(tmp_path, stand_in):
    run = planning.plan(planning.RaceConfig(name="r", total_timesteps=50, race_dir=tmp_path))[0]
    run.folder.mkdir(parents=True)
    saved(run.folder, 50)
    (run.folder / "progress.csv").write_text("time/total_timesteps\n49\n5")
    assert run.timesteps() == 49 and not run.finished()
    (run.folder / "progress.csv").write_text("time/total_timesteps\n50\n")
    assert run.finished()
    saved(run.folder, 49)  # of an earlier stop: what was trained afterwards is nowhere but in the log
    assert not run.finished()
    (run.folder / "model.zip").write_text("no zip")
    assert not run.finished()


def saved(folder, timesteps):
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("data", json.dumps({"num_timesteps": timesteps}))


def test_one_failure_stops_no_other_run(tmp_path, stand_in, capsys):
    stand_in("fail")
    with pytest.raises(SystemExit) as failure:
        race.main(flags(tmp_path))
    assert failure.value.code == race.FAILED_CODE
    out = capsys.readouterr().out
    assert "1 of 2 runs finished" in out and "pong__nature__s0.log" in out
    assert "out of luck" in (tmp_path / "races" / "r" / "pong__nature__s0.log").read_text()
    assert [run.encoder for run in read_races([tmp_path / "results" / "race_r.csv"])] == ["rl_s"]


def test_what_it_says_can_be_pasted(tmp_path, stand_in, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    race.main(flags(tmp_path, "--results-dir", "~/my results"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("report "))
    words = shlex.split(line)[3:]
    assert words[words.index("--races") + 1] == "my results/race_r.csv"
    assert words[words.index("--results-dir") + 1] == "my results"
    assert (tmp_path / "my results" / "race_r.csv").is_file()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_the_runs_and_says_how_to_go_on(tmp_path, stand_in, capsys, stop, monkeypatch):
    stand_in("hang")
    children = []

    def start_and_note(run, lock, real=processes.start):
        children.append(real(run, lock))
        return children[-1]

    def interrupt_once_all_run(*_):
        if len(children) == 2 and len(started(tmp_path)) == 2:
            signal.raise_signal(stop)

    monkeypatch.setattr(processes, "start", start_and_note)
    monkeypatch.setattr(running, "show", interrupt_once_all_run)
    with pytest.raises(SystemExit) as interrupted:
        race.main(flags(tmp_path))
    assert interrupted.value.code == 130
    assert all(process.poll() is not None for process in children)
    assert "the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_a_second_race_in_the_same_folder_is_refused(tmp_path, stand_in, capsys):
    folder = tmp_path / "races" / "r"
    with running.lock_folder(folder), pytest.raises(SystemExit):
        race.main(flags(tmp_path))
    assert "is still running" in capsys.readouterr().err
    # A run that outlives its race holds the lock on.
    with running.lock_folder(folder) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),))
    with pytest.raises(ValueError, match="or its runs are"):
        running.lock_folder(folder)
    orphan.communicate(b"\n")
    running.lock_folder(folder).close()


def test_a_run_with_other_settings_is_refused_and_left_alone(tmp_path, stand_in, capsys):
    race.main(flags(tmp_path))
    before = started(tmp_path)
    with pytest.raises(SystemExit) as refused:
        race.main(flags(tmp_path, "--n-envs", "4"))
    assert refused.value.code == 2
    assert "n_envs=8, this race has 4; give the race another --name" in capsys.readouterr().err
    assert started(tmp_path) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--encoders", "rl-s"], "Did you mean 'rl_s'"),
        (["--games", "pong", "Pong-v5"], "games must name at least one and none twice, got 'pong, pong'"),
        (["--games", "pongg"], "pong"),
        (["--games", "procgen/pong"], "Procgen has no game"),
        (["--games", "pong", "procgen/miner"], "A race is on Atari or on Procgen"),
        (["--address", "auto"], "--address auto is of Ray; give --engine ray"),
        (["--gpus-per-run", "0.5"], "--gpus-per-run 0.5 is of Ray"),
        (["--engine", "ray", "--gpus-per-run", "-1"], "gpus_per_run must lie in [0, inf), got -1.0"),
        (["--engine", "ray", "--gpus-per-run", "1.5"], "a share of one GPU, or whole GPUs"),
        (["--checkpoint-every", "-1"], "checkpoint_every must lie in [0, inf), got -1"),
        (["--jobs", "0"], "jobs must lie in [1, inf), got 0"),
        (["--device", "tpu"], "device must be auto"),
        (["--name", "a/b"], "name must be usable as a file name, got 'a/b'"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing_behind(wrong, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        race.main(flags(tmp_path, *wrong))
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_ray_its_engine_is_one_line_that_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as refused:
        race.main(flags(tmp_path, "--engine", "ray"))
    error = capsys.readouterr().err
    assert refused.value.code == 2 and error.count("\n") == 1
    assert 'python -m pip install -c constraints.txt -e ".[tune]" -r requirements.txt' in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_the_same_whoever_trains_it(tmp_path):
    """By the command of a process, or by the config that Ray's tasks get."""
    ours = ["--ppo.n-steps", "64", "--seeds", "3", "--checkpoint-every", "128", "--threads", "2", "--encoders", "rl_m"]
    ours += ["--device", "cpu"]
    (run,) = planning.plan(parse(planning.RaceConfig, flags(tmp_path, *ours)))
    assert parse(PPOConfig, run.command()[2:]) == run.config()
    config = run.config()
    assert config.ppo.n_steps == 64 and config.run_dir == run.folder
    assert (config.seed, config.checkpoint_every, config.threads, config.device) == (3, 128, 2, "cpu")
    assert config.evaluation_games == 0  # the curve is the result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is not a race: it needs rows under the columns game"),
        (",".join(COLUMNS) + "\n", "is not a race"),
        (",".join(COLUMNS) + "\npong,rl_s,0,1,2,3,much\n", "not a point of a curve"),
        (",".join(COLUMNS) + "\npong,rl_s,0,1,2\n", "not a point of a curve"),
    ],
)
def test_a_file_that_is_no_race_is_refused(text, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_races([path])


def test_the_same_run_in_two_files_is_refused(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(",".join(COLUMNS) + "\npong,rl_s,0,1,2,3,4\n")
    with pytest.raises(ValueError, match=r"rl_s on pong with seed 0 is in .*a.csv and in .*b.csv"):
        read_races([tmp_path / "a.csv", tmp_path / "b.csv"])


@needs_envpool
@pytest.mark.slow
def test_a_real_race_on_procgen_is_reported_on_its_scale(tmp_path):
    tiny = ["--n-envs", "8", "--ppo.n-steps", "32", "--ppo.batch-size", "64", "--ppo.n-epochs", "1", "--device", "cpu"]
    race.main([*flags(tmp_path, "--games", "procgen/starpilot", *tiny), "--total-timesteps", "2000"])
    csv_file = tmp_path / "results" / "race_r.csv"
    assert {run.encoder for run in read_races([csv_file])} == {"nature", "rl_s"}
    assert "procgen_starpilot__rl_s__s0: command: python experiments/procgen_ppo.py" in csv_file.read_text()
    report.main(["--races", str(csv_file), "--name", "r", "--results-dir", str(tmp_path)])
    assert "Procgen's paper" in (tmp_path / "r.md").read_text()


@pytest.mark.slow
def test_a_real_race_killed_half_way_goes_on(tmp_path):
    """Breakout with random play: games end within a few hundred timesteps."""
    tiny = ["--n-envs", "4", "--ppo.n-steps", "32", "--ppo.batch-size", "64", "--ppo.n-epochs", "1"]
    words = [*flags(tmp_path, "--games", "breakout", "--device", "cpu", *tiny), "--total-timesteps", "3000"]
    command = [sys.executable, str(ROOT / "experiments" / "race.py"), *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not any((tmp_path / "races" / "r").glob("*/progress.csv")):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    while subprocess.run(command, capture_output=True).returncode == 2:  # until the runs it left behind end
        time.sleep(0.5)
    runs = read_races([tmp_path / "results" / "race_r.csv"])
    assert {run.encoder for run in runs} == {"nature", "rl_s"}
    assert all(run.clock("timesteps")[-1] >= 3000 and (run.scores >= 0).all() for run in runs)


def test_no_more_runs_train_at_once_than_jobs(monkeypatch):
    def start(_run, _lock):
        return SimpleNamespace(poll=iter([None, 0]).__next__, terminate=lambda: None, wait=lambda: None)

    seen = []
    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0)
    config = SimpleNamespace(jobs=2)
    assert processes.train_in_processes(["a", "b", "c"], config, None, lambda *now: seen.append(now)) == []
    assert max(running for running, _ in seen) == 2


def test_the_exit_code_of_failed_runs_is_in_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "promises.md").read_text(encoding="utf-8")
    assert str(race.FAILED_CODE) in re.findall(r"\b\d+\b", page.split("Exit codes")[1])
