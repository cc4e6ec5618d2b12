"""An agent as one ONNX file: written only after ONNX Runtime has given the agent's own answers with it."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from mnv4_rl.checks import check_positive
from mnv4_rl.export.acting import FoldedAgent, fold, policy_of
from mnv4_rl.export.int8 import Graph, quantize_largest_layer
from mnv4_rl.safe_files import make_folder, write_file

Quantize = Literal["fc"] | None
Frames = np.ndarray | Mapping[str, np.ndarray]

EXPORT_INSTALL_LINE = 'pip install onnx onnxscript onnxruntime, or this package with its extra: pip install ".[export]"'
OPSET = 18
METADATA = "mnv4_rl"
N_MADE_UP = 64
# Largest difference of a score, as a share of the largest score: rounding, and int8 in one layer.
TOLERANCE = {None: 1e-3, "fc": 0.1}


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how well it agrees with the agent.

    Attributes:
        path: The file.
        n_bytes: Its size.
        n_frames: Observations it was compared on.
        same_actions: Observations with the agent's own action.
        max_error: Largest difference of a score.
        max_score: Largest score, for comparison.
    """

    path: Path
    n_bytes: int
    n_frames: int
    same_actions: int
    max_error: float
    max_score: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.n_bytes / 1e6:.2f} MB, {self.same_actions:,} of {self.n_frames:,} actions are the "
            f"agent's, scores differ by at most {self.max_error:.2g} of {self.max_score:.2g}"
        )


def to_onnx(
    agent: BaseAlgorithm | BasePolicy,
    path: str | os.PathLike[str],
    quantize: Quantize = None,
    *,
    frames: Frames | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Exported:
    """Write an agent's policy as an ONNX file of one piece, batch size open.

    Inputs are observations as the environment gives them, uint8 images among them: ``observation``, or the keys of a
    Dict. Outputs are ``logits``, ``q_values`` or ``mean``, and ``action`` as ``predict(deterministic=True)`` gives it.

    Args:
        agent: As in :func:`mnv4_rl.export.fold`.
        path: A new file that ends in ``.onnx``.
        quantize: ``"fc"`` stores the largest fully connected layer in int8, with a scale for each output and, at run
            time, for each observation: a third of the size. None for float32.
        frames: Observations to compare on, at best of play: (N, ...), or a Dict of them. None makes some up.
        notes: Plain data to keep in the file, for example ``{"game": "pong"}``.

    Returns:
        What was written, and how well it agrees.

    Raises:
        ValueError: For another ending, another ``quantize``, or a file that would not act as the agent does.
        FileExistsError: If the path exists; it is left as it is.
        TypeError: For a policy or an encoder that cannot be folded.
        ModuleNotFoundError: Without onnx, onnxscript and onnxruntime; the message has the install line.
    """
    path = new_file(path, ".onnx")
    if quantize not in TOLERANCE:
        raise ValueError(
            f"quantize must be None or 'fc', got {quantize!r}. int8 in the convolutions is refused: without norms an "
            "empty picture, as at a game's start, reaches 100 times the usual range of the maps, and Breakout's score "
            "fell from 39 to 4."
        )
    _check_installed()
    folded, space = fold(agent), policy_of(agent).observation_space
    observations = _observations(space, frames)
    model = _convert(folded, space, observations)
    if quantize == "fc":
        quantize_largest_layer(model)
    _describe(model, agent, folded, notes or {})
    content = model.SerializeToString()
    result = _compare(path, content, policy_of(agent), folded, observations)
    if not result.max_error <= TOLERANCE[quantize] * max(result.max_score, 1e-6):
        raise ValueError(f"ONNX Runtime does not act as the agent does, so nothing is written: {result}.")
    make_folder(path.parent)
    new_file(path, ".onnx")  # a check takes seconds: somebody may have written it meanwhile
    write_file(path, content)
    return result


def new_file(path: str | os.PathLike[str], ending: str) -> Path:
    """A path that nothing is at yet.

    Raises:
        ValueError: For another ending.
        FileExistsError: If something is there.
    """
    path = Path(path)
    if path.suffix.lower() != ending:
        raise ValueError(f"The file must end in {ending}, got {str(path)!r}.")
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists and stays as it is; name a new file.")
    return path


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"ONNX files need {error.name}; install it with: {EXPORT_INSTALL_LINE}") from error


def _observations(space: spaces.Space, frames: Frames | None) -> dict[str, np.ndarray]:
    """Observations by input name; made up where none are given: noise, flat pictures and what lies between."""
    if frames is None:
        space.seed(0)
        samples = [space.sample() for _ in range(N_MADE_UP)]
        if isinstance(space, spaces.Dict):
            return {key: _varied(np.stack([sample[key] for sample in samples])) for key in space.spaces}
        return {"observation": _varied(np.stack(samples))}
    by_name = dict(frames) if isinstance(frames, Mapping) else {"observation": np.asarray(frames)}
    known = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
    if by_name.keys() != known.keys():
        raise ValueError(f"frames must have {', '.join(known)}, got {', '.join(by_name)}.")
    for name, batch in by_name.items():
        if batch.shape[1:] != known[name].shape or batch.dtype != known[name].dtype:
            raise ValueError(
                f"frames of {name!r} must be (N, {', '.join(map(str, known[name].shape or ()))}) {known[name].dtype}, "
                f"got {batch.shape} {batch.dtype}."
            )
    check_positive(frames=len(next(iter(by_name.values()))))
    return by_name


def _varied(batch: np.ndarray) -> np.ndarray:
    """A quarter of the images darker, a quarter flat: noise alone would show a network one thing."""
    if batch.ndim < 4:
        return batch
    quarter = len(batch) // 4
    batch[:quarter] = batch[:quarter] // 4 if batch.dtype == np.uint8 else batch[:quarter] / 4
    batch[quarter : 2 * quarter] = batch[quarter : 2 * quarter, :1, :1, :1]
    return batch


class _ByPosition(nn.Module):
    """Inputs by position, as graphs have them."""

    def __init__(self, folded: FoldedAgent, names: list[str], is_dict: bool) -> None:
        super().__init__()
        self.folded, self.names, self.is_dict = folded, names, is_dict

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.folded(dict(zip(self.names, inputs, strict=True)) if self.is_dict else inputs[0])


def _convert(folded: FoldedAgent, space: spaces.Space, observations: Mapping[str, np.ndarray]) -> Graph:
    names = list(observations)
    examples = tuple(th.as_tensor(batch[:2]).clone() for batch in observations.values())
    dynamic = tuple({0: th.export.Dim("n", min=1)} for _ in names)
    with _without_advice():
        program = th.onnx.export(
            _ByPosition(folded, names, isinstance(space, spaces.Dict)).eval(),
            examples,
            opset_version=OPSET,
            dynamic_shapes=(dynamic,),
            input_names=names,
            output_names=[folded.scores, "action"],
            external_data=False,
            verbose=False,
        )
    assert program is not None  # it is with the exporter of torch 2.6 and later
    return _without_traces(program.model_proto)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without the exporter's lines about packages that are not installed and not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch to itself
            yield
    finally:
        logger.setLevel(level)


def _without_traces(model: Graph) -> Graph:
    """Without what the exporter notes of this machine: paths of source files, in every node and value."""
    import onnx

    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def _describe(model: Graph, agent: BaseAlgorithm | BasePolicy, folded: FoldedAgent, notes: Mapping[str, Any]) -> None:
    data = {"algorithm": type(agent).__name__, "scores": folded.scores, **notes}
    if (rate := getattr(agent, "exploration_rate", None)) is not None:
        data["exploration_rate"] = float(rate)
    model.producer_name, model.producer_version = METADATA, ""
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(data)


def _compare(
    path: Path, content: bytes, policy: BasePolicy, folded: FoldedAgent, observations: Mapping[str, np.ndarray]
) -> Exported:
    """Run the file on observations, whole and one alone, beside the agent itself."""
    session = session_of(content)
    scores, actions = session.run(None, dict(observations))
    alone = session.run(None, {name: batch[:1] for name, batch in observations.items()})[0]
    given = observations if isinstance(policy.observation_space, spaces.Dict) else observations["observation"]
    with th.no_grad():
        tensors = {name: th.as_tensor(batch) for name, batch in observations.items()}
        expected = folded(tensors if isinstance(given, Mapping) else tensors["observation"])[0].numpy()
    theirs, _ = policy.predict(given, deterministic=True)  # type: ignore[arg-type]
    same = _same_actions(actions, theirs)
    error = max(float(np.abs(scores - expected).max()), float(np.abs(alone - expected[:1]).max()))
    return Exported(path, len(content), len(scores), same, error, float(np.abs(expected).max()))


def _same_actions(actions: np.ndarray, expected: np.ndarray) -> int:
    close = np.isclose(actions.reshape(len(actions), -1), expected.reshape(len(actions), -1), rtol=1e-3, atol=1e-3)
    return int(close.all(1).sum())


def session_of(content: bytes, threads: int = 1) -> Any:
    """ONNX Runtime's session of a model, on the CPU.

    Raises:
        ValueError: If it is no model that ONNX Runtime can run.
    """
    _check_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        raise ValueError(f"ONNX Runtime cannot run it: {error}") from error
