import csv
import shutil

import pytest

from experiments import publish
from experiments.racing.curves import read_run


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yml").write_text("{game: pong, algo: ppo, encoder: rl_s, seed: 3}")
    (folder / "command.txt").write_text(
        "/usr/bin/python /home/me/experiments/atari_ppo.py --run-dir /home/me/x --seed 3\n"
        "/usr/bin/python /home/me/experiments/atari_ppo.py --resume /home/me/x\n"
    )
    (folder / "versions.txt").write_text("python: 3.11.7\ncommit: abc\n")
    lines = ["rollout/ep_rew_mean,time/total_timesteps,time/wall_seconds,time/cpu_seconds", ",1024,1,1"]
    lines += [f"{i - 21},{1024 * i},{2 * i},{3 * i}" for i in range(2, 42)]
    (folder / "progress.csv").write_text("\n".join(lines))
    return folder


def test_curve_keeps_its_ends_and_says_where_it_comes_from(run, tmp_path):
    publish.main(["--runs", str(run), "--name", "figure", "--points", "5", "--results-dir", str(tmp_path / "out")])
    text = (tmp_path / "out" / "pong__ppo__rl_s__s3.csv").read_text().splitlines()
    assert text[0] == "# command: python experiments/atari_ppo.py --seed 3"  # no path of the machine it ran on
    assert "# commit: abc" in text
    rows = list(csv.DictReader(line for line in text if not line.startswith("#")))
    assert len(rows) == 5
    assert rows[0] == {"timesteps": "2048", "wall_seconds": "4", "cpu_seconds": "6", "raw_score_mean_100_games": "-19"}
    assert rows[-1]["timesteps"] == str(1024 * 41) and rows[-1]["raw_score_mean_100_games"] == "20"
    assert (tmp_path / "out" / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_a_short_curve_is_kept_whole(run):
    assert [row["timesteps"] for row in read_run(run, 200).rows] == [1024 * i for i in range(2, 42)]


def test_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        publish.main(["--runs", str(tmp_path), "--name", "x", "--results-dir", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_runs_of_one_name_are_refused(run, tmp_path, capsys):
    """Such as fp32 and bf16: the second curve would take the first one's file."""
    shutil.copytree(run, tmp_path / "bf16")
    with pytest.raises(SystemExit):
        publish.main(
            ["--runs", str(run), str(tmp_path / "bf16"), "--name", "x", "--results-dir", str(tmp_path / "out")]
        )
    assert "bf16 would be written to pong__ppo__rl_s__s3.csv, as another of the runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
