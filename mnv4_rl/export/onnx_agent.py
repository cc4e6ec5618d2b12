"""An ONNX file of :func:`mnv4_rl.export.to_onnx` that plays: ``predict`` as SB3's agents have it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch.distributions import Bernoulli, Categorical

from mnv4_rl.checks import check_positive
from mnv4_rl.export.onnx_file import METADATA, session_of

_TYPES: dict[str, np.dtype] = {  # ONNX Runtime's names -> numpy's
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    **{f"tensor({name})": np.dtype(name) for name in ("bool", "float16")},
    **{f"tensor({kind}{bits})": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


class OnnxAgent:
    """Plays by ONNX Runtime. Actions are drawn from the generators that SB3 draws from: equal seeds, equal games.

    Args:
        path: The file.
        threads: CPU threads of one call.

    Attributes:
        notes: What the file says of itself: ``algorithm``, ``scores``, and whatever the exporter noted, as ``game``.
        action_space: Discrete, MultiDiscrete or MultiBinary, if the agent's is; continuous actions are not drawn, and
            theirs is a Box without bounds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an agent of this package.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        path = Path(path)
        check_positive(threads=threads)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
        try:
            self._session = session_of(path.read_bytes(), threads)
            self.notes: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is no agent that mnv4_rl.export wrote ({error}).") from error
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        scores, action = self._session.get_outputs()
        self.action_space = _action_space(self.notes, int(scores.shape[1]), tuple(action.shape[1:]))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions, as :meth:`stable_baselines3.common.base_class.BaseAlgorithm.predict` does.

        Args:
            observation: A batch of observations, or a single one; of any type whose numbers the agent's own can hold.
            state: Handed back; no agent here remembers.
            episode_start: Ignored.
            deterministic: Take the likeliest action. Otherwise one is drawn from the logits, each part of a
                MultiDiscrete or MultiBinary by itself, or at random at DQN's rate of exploration; continuous actions
                are always the mean.

        Returns:
            Actions, and ``state``.

        Raises:
            ValueError: For observations of another shape, or with numbers that the agent's type cannot hold.
        """
        batch, is_single = self._batch(observation)
        scores, actions = self._session.run(None, batch)
        if not deterministic:
            actions = self._sampled(scores, actions)
        return (actions[0] if is_single else actions), state

    def _batch(self, observation: np.ndarray | Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
        given = observation if isinstance(observation, Mapping) else {"observation": observation}
        named = {name: np.asarray(value) for name, value in given.items()}
        if named.keys() != self._inputs.keys():
            raise ValueError(f"The agent takes {', '.join(self._inputs)}, got {', '.join(named)}.")
        singles = set()
        for name, value in named.items():
            shape = tuple(self._inputs[name].shape[1:])
            value = _cast(name, value, _TYPES[self._inputs[name].type])
            singles.add(value.shape == shape)
            named[name] = value[None] if value.shape == shape else value
            if named[name].shape[1:] != shape:
                raise ValueError(f"The agent takes {name} (N, {', '.join(map(str, shape))}), got {value.shape}.")
        return named, singles == {True}

    def _sampled(self, scores: np.ndarray, actions: np.ndarray) -> np.ndarray:
        if self.notes["scores"] == "q_values":  # SB3's DQN explores with all of them at once
            explores = np.random.rand() < self.notes.get("exploration_rate", 0.0)
            return np.array([self.action_space.sample() for _ in actions]) if explores else actions
        logits = th.as_tensor(scores)
        match self.action_space:
            case spaces.Discrete():
                drawn = Categorical(logits=logits).sample()
            case spaces.MultiDiscrete(nvec=sizes):
                drawn = th.stack([Categorical(logits=part).sample() for part in logits.split(sizes.tolist(), 1)], 1)
            case spaces.MultiBinary():
                drawn = Bernoulli(logits=logits).sample()
            case _:
                return actions
        return drawn.numpy().astype(actions.dtype)


def _action_space(notes: Mapping[str, Any], n_scores: int, shape: tuple[int, ...]) -> spaces.Space:
    """The agent's; a file that was written before MultiDiscrete and MultiBinary were noted gives those as a Box."""
    if not shape:
        return spaces.Discrete(n_scores)
    if sizes := notes.get("nvec"):
        return spaces.MultiDiscrete(sizes)
    return spaces.MultiBinary(n_scores) if notes.get("multi_binary") else spaces.Box(-np.inf, np.inf, shape)


def _cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers as the agent takes them: floats are rounded, as SB3 does; whole numbers must be the same."""
    if value.dtype == dtype:
        return value
    with np.errstate(invalid="ignore", over="ignore"):
        cast = value.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, value):
        raise ValueError(
            f"The agent takes {name} as {dtype}, got {value.dtype} with numbers that are none of those, from "
            f"{value.min():g} to {value.max():g}; give what the environment gave in training."
        )
    return cast
