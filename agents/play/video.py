"""The console's screen: beside an agent's observations, in an mp4, in a GIF, in a window."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents import INSTALL_LINE
from mnv4_rl.atari.env import FRAMES_PER_SECOND

Sink = Callable[[np.ndarray], None]
Overlay = Callable[[np.ndarray, np.ndarray], np.ndarray]  # observation, screen -> screen
LARGE, SMALL = 420, 210  # pixels that a picture is high at most, where its screen is no higher


def magnified(height: int, at_most: int) -> int:
    """Picture pixels for a screen pixel, in both directions: 2 for the console's 210 rows and ``LARGE``."""
    return max(1, at_most // height)


class Show(VecEnvWrapper):
    """Passes every screen of the first environment on, to a file or a window.

    Args:
        venv: Environment with ``get_images()``.
        sinks: Each is called with every (height, width, 3) uint8 screen.
        overlay: Draws onto a screen, given the observation that belongs to it.
    """

    def __init__(self, venv: VecEnv, sinks: Sequence[Sink], overlay: Overlay | None = None) -> None:
        super().__init__(venv)
        self._sinks, self._overlay = sinks, overlay

    def reset(self) -> Any:
        """Reset all environments."""
        observations = self.venv.reset()
        self._pass_on(observations[0])  # type: ignore[index]
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """Finish a step."""
        observations, rewards, dones, infos = self.venv.step_wait()
        # At a game's end the screen is still the old game's, the observation the new one's.
        own = infos[0]["terminal_observation"] if "episode" in infos[0] else observations[0]  # type: ignore[index]
        self._pass_on(own)
        return observations, rewards, dones, infos

    def _pass_on(self, observation: np.ndarray) -> None:
        screen = self.venv.get_images()[0]
        if screen is None:
            raise ValueError("The environment shows no screen; build it with render_mode='rgb_array'.")
        if self._overlay is not None:
            screen = self._overlay(observation, screen)
        for sink in self._sinks:
            sink(screen)


def check_mp4() -> None:
    """Refuse early where no mp4 can be written.

    Raises:
        ModuleNotFoundError: Without imageio and imageio-ffmpeg; the message has the install line.
    """
    if find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None:
        raise ModuleNotFoundError(
            f"mp4 needs imageio and imageio-ffmpeg; install them with: {INSTALL_LINE} (a GIF needs neither)"
        )


class Mp4Writer:
    """Writes screens into an mp4 file (H.264, real time). The file appears under its name when it is complete.

    Args:
        path: The file.
        frame_skip: Emulator frames from one screen to the next.

    Raises:
        ModuleNotFoundError: Without imageio and imageio-ffmpeg; the message has the install line.
    """

    def __init__(self, path: Path, frame_skip: int) -> None:
        check_mp4()
        import imageio

        self._path = path
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part.mp4")
        fps = FRAMES_PER_SECOND / frame_skip
        # Twice 210 is no multiple of ffmpeg's usual 16, and would be stretched; H.264 needs even sides alone.
        self._writer = imageio.get_writer(self._part, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)

    def add(self, screen: np.ndarray) -> None:
        """Append one (height, width, 3) uint8 screen."""
        times = magnified(len(screen), LARGE)
        self._writer.append_data(screen.repeat(times, axis=0).repeat(times, axis=1))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        if self._part.exists():  # nothing was added, nothing is written
            os.replace(self._part, self._path)


def gif(screens: Sequence[np.ndarray], frame_skip: int, *, height: int = LARGE, max_bytes: int | None = None) -> bytes:
    """Screens as a GIF that plays in real time, up to its resolution of 10 ms a picture.

    Args:
        screens: (height, width, 3) uint8, at least one.
        frame_skip: Emulator frames from one screen to the next.
        height: Pixels that it is high at most; a screen is magnified by whole numbers.
        max_bytes: Its end is dropped until the file is no larger; None for no limit.

    Raises:
        ValueError: For no screens.
    """
    if not screens:
        raise ValueError("A GIF needs at least one screen, got none.")
    rows, columns, _ = screens[0].shape
    times = magnified(rows, height)
    # The console has 128 colours, a game's screen far fewer than 64; no dithering, which would not compress.
    colours = [Image.fromarray(screen).quantize(64, dither=Image.Dither.NONE) for screen in screens]
    pictures = [picture.resize((columns * times, rows * times), Image.Resampling.NEAREST) for picture in colours]
    duration = 10 * max(2, round(100 * frame_skip / FRAMES_PER_SECOND))  # ms; viewers slow down anything under 20
    while True:
        file = io.BytesIO()
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
        if max_bytes is None or file.tell() <= max_bytes or len(pictures) == 1:
            return file.getvalue()
        pictures = pictures[: min(len(pictures) - 1, int(len(pictures) * max_bytes / file.tell()))]


class Window:
    """A window that shows screens in real time. Closing it ends the show, not the game.

    Args:
        title: Its title.
        frame_skip: Emulator frames from one screen to the next.

    Raises:
        RuntimeError: Where no window can be opened, with the reason.
    """

    def __init__(self, title: str, frame_skip: int) -> None:
        try:
            import tkinter

            from PIL import ImageTk

            self._root: tkinter.Tk | None = tkinter.Tk()
        except ImportError as error:  # some systems package it apart from Python
            raise RuntimeError(f"Python has no tkinter here ({error})") from error
        except tkinter.TclError as error:
            raise RuntimeError(str(error)) from error
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._photo = ImageTk.PhotoImage
        self._pause = frame_skip / FRAMES_PER_SECOND  # seconds
        self._due = time.perf_counter()

    def add(self, screen: np.ndarray) -> None:
        """Show one (height, width, 3) uint8 screen, not before its time."""
        if self._root is None:
            return
        time.sleep(max(0.0, self._due - time.perf_counter()))
        self._due = max(self._due, time.perf_counter() - self._pause) + self._pause
        rows, columns, _ = screen.shape
        times = magnified(rows, LARGE)
        picture = Image.fromarray(screen).resize((columns * times, rows * times), Image.Resampling.NEAREST)
        self._shown = self._photo(picture)  # Tk holds no reference of its own
        self._label.configure(image=self._shown)
        self._root.update()  # may run close()

    def close(self) -> None:
        """Close the window."""
        if self._root is not None:
            self._root.destroy()
            self._root = None
