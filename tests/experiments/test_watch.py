from __future__ import annotations

import dataclasses
import io
import sys
import tkinter
from pathlib import Path
from types import SimpleNamespace

import imageio
import numpy as np
import pytest
from PIL import Image

from agents.play import video
from agents.play.saliency import SaliencyOverlay, overlay, saliency
from agents.play.video import Mp4Writer, Show, Window, gif
from agents.runs.families import Games
from agents.runs.loading import load_run
from experiments import watch
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari import options as atari_options
from mnv4_rl.atari.screen import screen_size
from tests.run_folders import write_config


@pytest.fixture
def short_games(monkeypatch):
    """Games of at most 200 emulator frames: 50 timesteps."""
    for name, options in atari_options.PROTOCOLS.items():
        monkeypatch.setitem(atari_options.PROTOCOLS, name, dataclasses.replace(options, max_episode_frames=200))


def play(capsys, *args) -> tuple[int, str, str]:
    code = 0
    try:
        watch.main([*map(str, args), "--no-window"])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


# --- The screen ---


@pytest.mark.parametrize(
    ("game", "size"), [("pong", (210, 160)), ("air_raid", (250, 160)), ("journey_escape", (230, 160))]
)
def test_screens_have_the_size_of_the_game(game, size):
    assert screen_size(game) == size
    env = make_atari_env(game, 1, render_mode="rgb_array")
    env.reset()
    assert env.get_images()[0].shape == (*size, 3)


@pytest.mark.parametrize("protocol", ["sb3", "machado"])
def test_the_twin_plays_the_game_the_agent_plays(protocol):
    # Sticky actions, lost lives, automatic FIRE and new games included: its small grey picture is the observation.
    env = make_atari_env("breakout", 2, 4, protocol=protocol, max_episode_frames=800, render_mode="rgb_array")
    observations, generator, games = env.reset(), np.random.default_rng(1), 0
    for _ in range(300):
        for observation, screen in zip(observations, env.get_images(), strict=True):
            assert difference(observation, screen) < 2
        observations, _, _, infos = env.step(generator.integers(0, env.action_space.n, 2))
        for i, info in enumerate(infos):
            if "episode" in info:  # the screen is still the old game's
                games += 1
                observations[i] = info["terminal_observation"]
    assert games >= 2


def difference(observation: np.ndarray, screen: np.ndarray) -> float:
    """Mean distance in grey levels between an observation's newest image and the screen brought to its size."""
    small = Image.fromarray(screen).convert("L").resize((84, 84), Image.Resampling.BOX)
    return float(np.abs(np.asarray(small).astype(float) - observation[-1]).mean())


def test_another_games_screen_is_noticed():
    env = make_atari_env("breakout", 1, render_mode="rgb_array")
    env.reset()
    env._screen._twin.seed(1)
    env._screen._twin.reset()
    with pytest.raises(RuntimeError, match="another game than the agent plays"):
        for _ in range(400):
            env.step(np.array([1]))
            env._screen._twin.step(np.array([2]))


def test_every_screen_is_passed_on_and_the_overlay_gets_its_observation():
    screens, observations = [], []

    def remember(observation: np.ndarray, screen: np.ndarray) -> np.ndarray:
        observations.append(observation)
        return screen

    env = Show(make_atari_env("pong", 1, max_episode_frames=80, render_mode="rgb_array"), [screens.append], remember)
    env.reset()
    while "episode" not in (last := env.step(np.array([0]))[3][0]):
        pass
    assert len(screens) == len(observations) == last["episode"]["l"] + 1
    assert np.array_equal(observations[-1], last["terminal_observation"])


# --- Files and the window ---


def screens(n: int) -> list[np.ndarray]:
    """A white square that wanders over black."""
    pictures = np.zeros((n, 210, 160, 3), np.uint8)
    for i, picture in enumerate(pictures):
        picture[10 : 20 + i % 100, i % 140 : 20 + i % 140] = 255
    return list(pictures)


def test_a_gif_plays_in_real_time_with_the_screens_own_pixels():
    shown = screens(30)
    picture = Image.open(io.BytesIO(gif(shown, 4)))
    assert picture.size == (320, 420) and picture.n_frames == 30
    assert picture.info["duration"] == 70  # 4 / 60 s, in GIF's steps of 10 ms
    picture.seek(29)
    assert np.array_equal(np.asarray(picture.convert("RGB"))[::2, ::2], shown[29])


def test_a_gif_is_shortened_to_its_limit():
    noise = list(np.random.default_rng(0).integers(0, 255, (8, 105, 80, 3), np.uint8))
    whole, limited = gif(noise, 4, height=105), gif(noise, 4, height=105, max_bytes=20_000)
    assert len(whole) > 20_000 >= len(limited)
    assert Image.open(io.BytesIO(limited)).n_frames < 8
    with pytest.raises(ValueError, match="at least one screen"):
        gif([], 4)


def test_an_mp4_has_every_screen_in_real_time_and_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"older")
    writer = Mp4Writer(path, 4)
    for screen in screens(20):
        writer.add(screen)
    assert path.read_bytes() == b"older"
    writer.close()
    with imageio.get_reader(path) as reader:
        assert reader.get_meta_data()["fps"] == 15
        frames = [frame for frame in reader]  # list() trusts the reader's length, which is infinite
    assert len(frames) == 20 and frames[0].shape == (420, 320, 3)
    assert np.abs(frames[19][::2, ::2].astype(float) - screens(20)[19]).mean() < 5
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_an_mp4_without_its_packages_names_the_line_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"-r requirements\.txt"):
        Mp4Writer(tmp_path / "out.mp4", 4)


def test_no_display_is_a_reason_not_an_error(monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    if sys.platform == "linux":
        with pytest.raises(RuntimeError, match="display"):
            Window("pong", 4)
        assert watch.open_window("pong", 4) is None
        assert "no window: no display" in capsys.readouterr().err


class FakeTk:
    """Stands in for tkinter.Tk and tkinter.Label on a machine without a display."""

    def __init__(self, *_: object) -> None:
        self.updates, self.destroyed, self.on_close = 0, False, None

    def title(self, text: str) -> None: ...

    def pack(self) -> None: ...

    def configure(self, image: object) -> None: ...

    def protocol(self, _name: str, action) -> None:
        self.on_close = action

    def update(self) -> None:
        self.updates += 1
        if self.updates == 2:
            self.on_close()

    def destroy(self) -> None:
        self.destroyed = True


def test_closing_the_window_ends_the_show_not_the_game(monkeypatch):
    monkeypatch.setattr(tkinter, "Tk", FakeTk)
    monkeypatch.setattr(tkinter, "Label", FakeTk)
    monkeypatch.setattr("PIL.ImageTk.PhotoImage", lambda picture: picture.size)
    window = Window("pong", 4)
    root = window._root
    for screen in screens(4):
        window.add(screen)
    assert root.updates == 2 and root.destroyed
    assert window._shown == (320, 420)
    window.close()


# --- Where the encoder looks ---


def test_saliency_is_high_where_something_is_and_zero_on_a_plain_picture(run_dir):
    model = load_run(run_dir, "cpu").model
    plain = np.full((4, 84, 84), 90, np.uint8)
    assert np.abs(saliency(model, plain)).max() < 1e-6
    picture = plain.copy()
    picture[:, 15:20, 57:62] = 255
    heat = saliency(model, picture)
    assert heat.shape == (12, 12) and (heat >= 0).all()
    assert np.unravel_index(heat.argmax(), heat.shape) == (2, 8)  # rows 14 to 20, columns 56 to 62


def test_the_overlay_reddens_the_hottest_spot_and_leaves_cold_ones():
    screen = np.full((210, 160, 3), 100, np.uint8)
    heat = np.zeros((12, 12), np.float32)
    heat[0, 0] = 0.3
    drawn = overlay(screen, heat)
    assert drawn[2, 2].tolist() == [208, 30, 30]  # 70 % red
    assert np.array_equal(drawn[100:], screen[100:])
    assert np.array_equal(overlay(screen, np.zeros((12, 12))), screen)


def test_a_map_is_kept_for_some_screens(run_dir, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "agents.play.saliency.saliency", lambda model, observation: calls.append(1) or np.ones((12, 12))
    )
    draw = SaliencyOverlay(load_run(run_dir, "cpu").model, every=4)
    for screen in screens(9):
        draw(np.zeros((4, 84, 84), np.uint8), screen)
    assert len(calls) == 3


# --- The command ---


def test_watching_prints_scores_and_writes_both_files(run_dir, tmp_path, short_games, capsys):
    code, out, err = play(
        capsys, run_dir, "--episodes", 2, "--video", tmp_path / "a.mp4", "--gif", tmp_path / "a.gif", "--saliency"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "ppo with rl_s plays pong, protocol sb3"
    scores = [float(line.split()[-1]) for line in lines[1:3]]
    assert lines[3].split()[0] == "mean" and "over 2 games" in lines[3]
    normalised = (np.mean(scores) + 20.7) / (14.6 + 20.7)
    assert lines[4] == f"human-normalised {normalised:.2f} (0 is random play at -20.7, 1 a human tester at 14.6)"
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        n_screens = sum(1 for _ in reader)
    assert 80 <= n_screens <= 102  # two games of at most 50 timesteps, each with its first screen
    assert Image.open(tmp_path / "a.gif").n_frames > 0.8 * n_screens  # equal neighbours become one
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gif", "a.mp4"]


def test_recording_does_not_change_the_scores(run_dir, tmp_path, short_games, capsys):
    plain = play(capsys, run_dir, "--episodes", 2, "--protocol", "machado", "--seed", 5)[1]
    recorded = play(
        capsys, run_dir, "--episodes", 2, "--protocol", "machado", "--seed", 5, "--gif", tmp_path / "a.gif"
    )[1]
    assert recorded.splitlines()[:-1] == plain.splitlines()


def test_games_are_played_as_the_flags_say(monkeypatch):
    asked, env = [], SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(watch, "evaluate", lambda *args, **kwargs: asked.append((*args, kwargs)))
    config = watch.WatchConfig(run=Path("run"), episodes=7, deterministic=True, seed=5)
    assert watch.play(config, SimpleNamespace(model="agent"), env, print)
    assert asked == [("agent", env, 7, True, {"seed": 5, "on_game": print})]


def test_a_gif_has_the_first_twenty_seconds(tmp_path):
    config = watch.WatchConfig(run=Path("run"), gif=tmp_path / "a.gif", window=False)
    recording = watch.Recording(config, SimpleNamespace(model=None, game="pong"))
    for screen in screens(310):
        recording._keep(screen)
    assert len(recording._screens) == 20 * 60 // 4


def test_ctrl_c_keeps_what_was_played(run_dir, tmp_path, short_games, capsys, monkeypatch):
    step_wait = Show.step_wait

    def interrupted(self):
        if len(self._sinks[0].__self__._screens) == 70:
            raise KeyboardInterrupt
        return step_wait(self)

    monkeypatch.setattr(Show, "step_wait", interrupted)
    code, out, _ = play(capsys, run_dir, "--gif", tmp_path / "a.gif")
    assert code == 130
    assert "game 1" in out and "in a single game" in out and (tmp_path / "a.gif").exists()


def test_a_game_without_reference_scores_is_said_to_have_none():
    assert watch.report([3.0], Games("tetris"))[1] == "human-normalised no reference scores for this game"
    assert watch.report([], Games("pong")) == ["no game ended"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--episodes", "0"], "episodes must be"),
        (["--protocol", "mnih"], "Unknown protocol 'mnih'"),
        (["--video", "a.avi"], "mp4 files end in .mp4, got a.avi"),
        (["--gif", "nowhere/a.gif"], "There is no folder nowhere"),
        (["--saliency"], "there is no window; add --video or --gif"),
        (["--seed", "-1"], "seed must lie in [0, 2e+09], got -1"),
    ],
)
def test_wrong_flags_say_what_and_what_to_do(run_dir, capsys, args, message):
    code, out, err = play(capsys, run_dir, *args)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    code, _, err = play(capsys, tmp_path)
    assert code == 2 and "there is no config.yml in it" in err
    write_config(tmp_path, algo="ppo", game="pong", encoder="rl_s")
    code, _, err = play(capsys, tmp_path)
    assert code == 2 and "neither model.zip nor a sound checkpoint" in err
