"""Play a trained agent under an evaluation protocol, whichever buttons it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ale_py
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.play.evaluate import Player
from mnv4_rl.atari import make_atari_env
from mnv4_rl.atari.games import minimal_actions

ALL_ACTIONS: tuple[str, ...] = tuple(ale_py.Action.__members__)  # the console's 18, in ALE's order


class ActionsByMeaning(VecEnvWrapper):
    """Offers an agent the actions it knows, and presses the same buttons in an environment that has more.

    Args:
        venv: Environment with ``action_meanings``.
        known: What the agent's action 0, 1, ... means.

    Raises:
        ValueError: If the environment lacks one of these actions.
    """

    def __init__(self, venv: VecEnv, known: Sequence[str]) -> None:
        offered: tuple[str, ...] = venv.get_attr("action_meanings")[0]
        missing = [meaning for meaning in known if meaning not in offered]
        if missing:
            raise ValueError(
                f"The environment has no action {', '.join(missing)}; it has {', '.join(offered)}. "
                "Build it with full_action_space=True."
            )
        super().__init__(venv, action_space=spaces.Discrete(len(known)))
        self._pressed = np.array([offered.index(meaning) for meaning in known])  # agent's action -> environment's

    def reset(self) -> Any:
        """Reset all environments."""
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step with the agent's actions, (n_envs,) integers."""
        self.venv.step_async(self._pressed[actions])

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step."""
        return self.venv.step_wait()


def known_actions(model: Player, game: str) -> tuple[str, ...]:
    """What a model's actions mean in a game: the game's own set or all 18, told apart by their number.

    Raises:
        ValueError: If it is neither number.
    """
    n_actions = int(getattr(model.action_space, "n", 0))
    for actions in (minimal_actions(game), ALL_ACTIONS):
        if n_actions == len(actions):
            return actions
    raise ValueError(
        f"An agent for {game} has {len(minimal_actions(game))} or {len(ALL_ACTIONS)} actions, "
        f"this one has {model.action_space}. Name the game it was trained on."
    )


def protocol_options(known: Sequence[str], game: str) -> dict[str, Any]:
    """What a protocol must change for an agent: one that knows all 18 actions keeps them under every protocol."""
    return {} if set(known) <= set(minimal_actions(game)) else {"full_action_space": True}


def make_protocol_env(
    model: Player, game: str, protocol: str, n_envs: int, seed: int, *, screens: bool = False
) -> ActionsByMeaning:
    """The environment to evaluate a trained agent in.

    Args:
        model: The agent.
        game: Rom id.
        protocol: A row of ``mnv4_rl.atari.options.PROTOCOLS``.
        n_envs: Environments that step together.
        seed: Seed of the first of them.
        screens: Whether ``get_images()`` shall give the console's screens.

    Raises:
        ValueError: An unknown protocol, or an agent that does not fit the game.
    """
    known = known_actions(model, game)
    mode = "rgb_array" if screens else None
    env = make_atari_env(game, n_envs, seed, protocol=protocol, render_mode=mode, **protocol_options(known, game))
    return ActionsByMeaning(env, known)
