import json

import numpy as np
import pandas
import pytest
from stable_baselines3.common.monitor import load_results

from mnv4_rl.atari import make_atari_env
from mnv4_rl.episode_log import EpisodeLog


def play_games(path, n_steps):
    """Pong cut off after 5 timesteps, in two environments; the episodes that the infos held."""
    env = make_atari_env("pong", 2, max_episode_frames=20, monitor_path=path, num_threads=1)
    env.reset()
    episodes = []
    for _ in range(n_steps):
        *_, infos = env.step(np.zeros(2, dtype=int))
        episodes += [info["episode"] for info in infos if "episode" in info]
    env.close()
    return episodes


def test_file_has_a_row_for_every_game_and_sb3_reads_it(tmp_path):
    episodes = play_games(tmp_path / "train.monitor.csv", 17)
    assert len(episodes) == 6 and all(episode["l"] == 5 for episode in episodes)
    table = load_results(str(tmp_path))
    assert list(table["l"]) == [5] * 6 and sorted(table["env"]) == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(table["r"], [episode["r"] for episode in episodes])
    assert len(pandas.read_csv(tmp_path / "train.monitor.csv", comment="#")) == 6
    header = json.loads((tmp_path / "train.monitor.csv").read_text().splitlines()[0][1:])
    assert set(header) == {"t_start", "env_id"} and header["env_id"] == "pong"


def test_resumed_run_continues_the_file_on_its_clock(tmp_path):
    path = tmp_path / "monitor.csv"
    play_games(path, 10)
    text = path.read_text()
    start = json.loads(text.splitlines()[0][1:])["t_start"]
    path.write_text(text.replace(repr(start), repr(start - 1000)))  # as if begun 1000 s earlier
    play_games(path, 10)
    assert path.read_text().count("#") == 1 and path.read_text().count("r,l,t") == 1
    table = load_results(str(tmp_path))
    assert len(table) == 8
    assert (table["t"][:4] < 1000).all() and (table["t"][4:] >= 1000).all()


def test_sb3s_ending_is_added_and_rows_are_on_disk_at_once(tmp_path):
    log = EpisodeLog(1, "pong", tmp_path / "new" / "run")
    log.add(np.array([-3]))
    log.add(np.array([1]))
    assert log.finish(0)["r"] == -2
    assert (tmp_path / "new" / "run.monitor.csv").read_text().splitlines()[2].startswith("-2.0,2,")
    log.add(np.array([5]))
    assert log.finish(0) | {"t": 0} == {"r": 5, "l": 1, "t": 0}
    log.close()


@pytest.mark.parametrize(
    "content",
    [
        b"r,l,t,env\n1,2,3,0\n",
        b'#{"t_start": 1.0}\nr,l,t\n',
        b'#{"t_start": "x"}\nr,l,t,env\n',
        b"#{}\nr,l,t,env\n",
        b"\xff",
    ],
)
def test_other_files_are_refused_and_left_as_they_are(tmp_path, content):
    path = tmp_path / "monitor.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a monitor file with the columns r,l,t,env"):
        EpisodeLog(1, "pong", path)
    assert path.read_bytes() == content


def test_empty_file_is_begun(tmp_path):
    path = tmp_path / "monitor.csv"
    path.touch()
    log = EpisodeLog(1, "pong", path)
    assert not path.read_bytes()  # not before the first game
    log.restart()
    log.close()
    assert path.read_text().startswith("#")


def test_a_restart_forgets_score_and_length():
    log = EpisodeLog(1, "pong")
    log.add(np.array([3]))
    log.restart()
    log.add(np.array([5]))
    assert log.finish(0) | {"t": 0} == {"r": 5, "l": 1, "t": 0}
