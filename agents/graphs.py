"""Functions of tensors as CUDA graphs: every kernel of a call is launched at once, without Python in between.

Recorded by hand and not by ``torch.compile(mode="reduce-overhead")``: that needs a compiler on the machine and a minute
for every shape, and it cannot record an optimiser's step together with the backward pass before it. An encoder that was
compiled (without graphs of its own) is recorded with the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import torch as th
from torch import Tensor

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]
_RECORDING = Lock()
WARM_UPS = 3  # calls before a recording: libraries, compilers and optimisers set themselves up in the first


class Recorder(Protocol):
    """What can record the work of a call and do it again on the same memory."""

    def beside(self) -> AbstractContextManager[None]:
        """Where to run what is about to be recorded."""

    def record(self, function: Function, arguments: Outputs) -> tuple[Outputs, Callable[[], None]]:
        """The outputs' memory, and what fills it anew from the arguments' memory. Nothing is computed yet."""


class CUDAGraphs:
    """Records on a stream of its own, as CUDA wants it.

    Args:
        device: A GPU.
    """

    def __init__(self, device: th.device) -> None:
        self._stream = th.cuda.Stream(device)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run on that stream, after all that was launched before and before all that will be."""
        current = th.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with th.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, function: Function, arguments: Outputs) -> tuple[Outputs, Callable[[], None]]:
        """Record one call; other threads may use the GPU meanwhile, but not record."""
        graph = th.cuda.CUDAGraph()
        with (
            _RECORDING,
            self.beside(),
            th.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            outputs = function(*arguments)
        return outputs, graph.replay


@dataclass
class _Graph:
    """Calls of one shape: how many there were, and their recording once there is one."""

    calls: int = 0
    addresses: tuple[int, ...] = ()
    arguments: Outputs = ()
    outputs: Outputs = ()
    replay: Callable[[], None] | None = None


@dataclass
class Captured:
    """A function that is recorded when it has been called a few times, for each shape of its arguments.

    The first calls run as they are, so that it may change tensors (weights, the state of an optimiser) as it likes: no
    call is made twice. After that it must do the same work at every call, without looking at a number.

    Args:
        function: Tensors to a tuple of tensors.
        memory: The tensors beside its arguments that it reads or changes, in a fixed order.
        recorder: Of the device that they are on.
        must: Whether to raise where it cannot be recorded, instead of a warning and no recording.
    """

    function: Function
    memory: Callable[[], Iterable[Tensor]]
    recorder: Recorder
    must: bool = False
    _graphs: dict[tuple[object, ...], _Graph] = field(default_factory=dict)
    _gave_up: bool = False

    @property
    def n_recorded(self) -> int:
        """Shapes that were recorded."""
        return sum(graph.replay is not None for graph in self._graphs.values())

    def refresh(self) -> None:
        """Forget recordings of memory that is another by now; loading an optimiser's state changes it."""
        now = self._addresses()
        for shape, graph in list(self._graphs.items()):
            if graph.replay is not None and graph.addresses != now:
                del self._graphs[shape]

    def __call__(self, *arguments: Tensor) -> Outputs:
        """Do the function's work; what is returned is the caller's own."""
        if self._gave_up:
            return self.function(*arguments)
        graph = self._graphs.setdefault(tuple((a.shape, a.dtype) for a in arguments), _Graph())
        graph.calls += 1
        if graph.calls <= WARM_UPS:
            with self.recorder.beside():
                return self.function(*arguments)
        if graph.replay is None and not self._record(graph, arguments):
            return self.function(*arguments)
        for kept, new in zip(graph.arguments, arguments, strict=True):
            kept.copy_(new)
        assert graph.replay is not None
        graph.replay()
        return tuple(output.clone() for output in graph.outputs)

    def _record(self, graph: _Graph, arguments: Outputs) -> bool:
        kept = tuple(argument.clone() for argument in arguments)
        try:
            outputs, replay = self.recorder.record(self.function, kept)
        except RuntimeError as error:
            if self.must:
                raise
            self._gave_up = True
            warnings.warn(f"PPO goes on without CUDA graphs: {error}", RuntimeWarning, stacklevel=3)
            return False
        graph.arguments, graph.outputs, graph.replay = kept, outputs, replay
        graph.addresses = self._addresses()
        return True

    def _addresses(self) -> tuple[int, ...]:
        return tuple(tensor.data_ptr() for tensor in self.memory())
