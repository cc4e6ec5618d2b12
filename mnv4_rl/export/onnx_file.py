"""An agent as one ONNX file: written only after ONNX Runtime has given the agent's own answers with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from mnv4_rl.export.acting import FoldedAgent, Largest, Positive, fold, policy_of
from mnv4_rl.export.agreement import (
    ByPosition,
    Exported,
    Frames,
    agreement,
    keep,
    new_file,
    observations_of,
    without_advice,
)
from mnv4_rl.export.int8 import Graph, quantize_largest_layer
from mnv4_rl.observations import warn_of_normalised

Quantize = Literal["fc"] | None

EXPORT_INSTALL_LINE = 'pip install onnx onnxscript onnxruntime, or this package with its extra: pip install ".[export]"'
OPSET = 18
METADATA = "mnv4_rl"
# What :class:`mnv4_rl.export.OnnxAgent` plays by.
OWN_NOTES = ("algorithm", "scores", "exploration_rate", "nvec", "multi_binary")
# Largest difference of a score, as a share of the largest score: rounding, and int8 in one layer.
TOLERANCE = {None: 1e-3, "fc": 0.1}


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
        notes: Plain data to keep in the file, for example ``{"game": "pong"}``; none of :data:`OWN_NOTES`.

    Returns:
        What was written, and how well it agrees.

    Raises:
        ValueError: For another ending, another ``quantize``, a note that the file keeps for itself, or a file that
            would not act as the agent does.
        FileExistsError: If the path exists; it is left as it is.
        TypeError: For a policy or an encoder that cannot be folded.
        ModuleNotFoundError: Without onnx, onnxscript and onnxruntime; the message has the install line.

    Warns:
        UserWarning: If VecNormalize normalises the observations: the file wants them normalised too.
    """
    path = new_file(path, ".onnx")
    if quantize not in TOLERANCE:
        raise ValueError(
            f"quantize must be None or 'fc', got {quantize!r}. int8 in the convolutions is refused: without norms an "
            "empty picture, as at a game's start, reaches 100 times the usual range of the maps, and Breakout's score "
            "fell from 39 to 4."
        )
    _check_notes(notes or {})
    _check_installed()
    folded, space = fold(agent), policy_of(agent).observation_space
    observations = observations_of(space, frames)
    model = _convert(folded, space, observations)
    if quantize == "fc":
        quantize_largest_layer(model)
    _describe(model, agent, folded, notes or {})
    content = model.SerializeToString()
    result = _compare(path, content, policy_of(agent), folded, observations)
    keep(content, result, TOLERANCE[quantize])
    warn_of_normalised(agent, path)
    return result


def _check_notes(notes: Mapping[str, Any]) -> None:
    if taken := [key for key in OWN_NOTES if key in notes]:
        raise ValueError(
            f"notes cannot have {', '.join(taken)}: the file says so of itself, and the agent plays by it. "
            "Call it otherwise."
        )


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"ONNX files need {error.name}; install it with: {EXPORT_INSTALL_LINE}") from error


def _convert(folded: FoldedAgent, space: spaces.Space, observations: Mapping[str, np.ndarray]) -> Graph:
    names = list(observations)
    # Two, of a single frame too: torch takes a batch of one for a number that never changes.
    examples = tuple(th.as_tensor(np.resize(batch, (2, *batch.shape[1:]))) for batch in observations.values())
    dynamic = tuple({0: th.export.Dim("n", min=1)} for _ in names)
    with without_advice():
        program = th.onnx.export(
            ByPosition(folded, names, isinstance(space, spaces.Dict)),
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
    match folded.decide:
        case Largest(sizes=sizes, flat=False):
            data["nvec"] = sizes
        case Positive():
            data["multi_binary"] = True
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
    result = agreement(path, content, policy, folded, observations, scores, actions)
    return replace(result, max_error=max(result.max_error, float(np.abs(alone - scores[:1]).max())))


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
