"""What can be chosen about an Atari environment, checked, and the two protocols the field compares under."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Real
from typing import Any

from mnv4_rl.checks import check_count, check_options
from mnv4_rl.plain import numbers_as_pythons


@dataclasses.dataclass(frozen=True)
class AtariOptions:
    """Options of an Atari environment; the defaults are SB3's.

    Attributes:
        frame_stack: Images in one observation, at least 1.
        screen_size: Side in pixels, or (height, width).
        grayscale: One channel per image; otherwise three (RGB).
        frame_skip: Emulator frames per agent timestep, at least 1.
        repeat_action_probability: Sticky actions: chance in 0..1 that a frame repeats the action of the frame before.
        full_action_space: All 18 actions of the console instead of those the game uses.
        clip_reward: The learner's reward is the sign of the raw one.
        terminal_on_life_loss: A lost life ends the return, not the game.
        fire_reset: Press FIRE at a game's start and after a lost life, in games that need it.
        noop_max: A game starts with 0 to `noop_max` - 1 frames of NOOP; 0 and 1 mean none.
        max_episode_frames: Emulator frames after which a game is cut off (108,000 are 30 minutes of play).
    """

    frame_stack: int = 4
    screen_size: int | tuple[int, int] = 84
    grayscale: bool = True
    frame_skip: int = 4
    repeat_action_probability: float = 0.0
    full_action_space: bool = False
    clip_reward: bool = True
    terminal_on_life_loss: bool = True
    fire_reset: bool = True
    noop_max: int = 30
    max_episode_frames: int = 108_000

    def __post_init__(self) -> None:
        numbers_as_pythons(self)
        for name in ("frame_stack", "frame_skip", "max_episode_frames"):
            check_count(name, getattr(self, name), 1)
        check_count("noop_max", self.noop_max, 0)
        for name in ("grayscale", "full_action_space", "clip_reward", "terminal_on_life_loss", "fire_reset"):
            _check_switch(name, getattr(self, name))
        _check_probability("repeat_action_probability", self.repeat_action_probability)
        if isinstance(self.screen_size, (tuple, list)) and len(self.screen_size) != 2:
            raise ValueError(
                f"screen_size must be a side or (height, width), got {self.screen_size}. Pass two numbers."
            )
        for side in self.height_width:
            check_count("screen_size", side, 1)

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) of an observation in pixels."""
        size = self.screen_size
        return (size[0], size[1]) if isinstance(size, (tuple, list)) else (size, size)


def options_of(protocol: str, changes: Mapping[str, Any]) -> AtariOptions:
    """A protocol's options with some of them changed.

    Raises:
        TypeError: A change names no option.
        ValueError: An unknown protocol, or a value out of range.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {protocol!r}; allowed: {', '.join(map(repr, PROTOCOLS))}.")
    check_options(AtariOptions, changes)
    return dataclasses.replace(PROTOCOLS[protocol], **changes)


def _check_probability(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must lie in 0..1, got {value!r}. Pass 0 for none, 0.25 for the usual sticky actions.")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}. Pass a bool.")


# "machado": Machado et al. 2018, "Revisiting the Arcade Learning Environment" (sticky actions, all 18 actions, returns
# end at game over). Randomness comes from the sticky actions alone, and FIRE is the agent's to press.
PROTOCOLS = {
    "sb3": AtariOptions(),
    "machado": AtariOptions(
        repeat_action_probability=0.25,
        full_action_space=True,
        terminal_on_life_loss=False,
        fire_reset=False,
        noop_max=0,
    ),
}
