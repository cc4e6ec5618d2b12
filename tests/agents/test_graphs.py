import warnings
from contextlib import contextmanager

import pytest
import torch as th

from agents.graphs import WARM_UPS, Captured, CUDAGraphs
from tests.tapes import Tape, Tapes


class Counting:
    """Adds to a weight, and counts how often Python was there."""

    def __init__(self, must=False):
        self.weight, self.calls = th.zeros(2), 0
        self.captured = Captured(self.add, lambda: [self.weight], Tapes(lambda: [self.weight]), must)

    def add(self, x):
        self.calls += 1
        self.weight.add_(x.sum(0))
        return self.weight * 2, x + 1


def test_every_call_is_made_once_and_later_ones_without_python():
    counting = Counting()
    kept = []
    for call in range(1, 8):
        doubled, more = counting.captured(th.full((3, 2), float(call)))
        total = 3.0 * call * (call + 1) / 2
        assert counting.weight.tolist() == [total, total] and doubled.tolist() == [2 * total] * 2
        kept.append(more)
    assert counting.calls == WARM_UPS + 1  # the recording is the last
    assert [float(more[0, 0]) for more in kept] == [2.0, 3, 4, 5, 6, 7, 8]  # the caller's own


def test_each_shape_has_a_recording_of_its_own():
    counting = Counting()
    for _ in range(5):
        for n in (4, 1):
            assert counting.captured(th.ones(n, 2))[1].shape == (n, 2)
    assert counting.captured.n_recorded == 2 and counting.calls == 2 * (WARM_UPS + 1)
    assert counting.weight.tolist() == [25.0, 25.0]


def test_memory_that_is_another_is_recorded_anew():
    counting = Counting()
    for _ in range(5):
        counting.captured(th.ones(1, 2))
    counting.captured.refresh()
    assert counting.captured.n_recorded == 1
    before, counting.weight = counting.weight, th.zeros(2)
    counting.captured.refresh()
    assert counting.captured.n_recorded == 0
    for _ in range(5):
        counting.captured(th.ones(1, 2))
    assert counting.weight.tolist() == before.tolist() == [5.0, 5.0] and counting.captured.n_recorded == 1


def test_what_cannot_be_recorded_goes_on_with_one_warning_or_raises():
    def look(x):
        return (x * float(x.sum()),)

    captured = Captured(look, list, Tapes())
    for _ in range(WARM_UPS):
        captured(th.ones(2))
    with pytest.warns(RuntimeWarning, match="waits for the device"):
        assert captured(th.ones(2))[0].tolist() == [2.0, 2.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captured(th.full((2,), 2.0))[0].tolist() == [8.0, 8.0]
    assert captured.n_recorded == 0
    strict = Captured(look, list, Tapes(), must=True)
    for _ in range(WARM_UPS):
        strict(th.ones(2))
    with pytest.raises(RuntimeError, match="waits"):
        strict(th.ones(2))


class FakeStream:
    """What CUDA's streams are asked here, written down."""

    def __init__(self, log, name):
        self.device, self._log, self._name = th.device("cpu"), log, name

    def wait_stream(self, other):
        self._log.append(f"{self._name} waits for {other._name}")


@pytest.fixture
def fake_cuda(monkeypatch):
    """PyTorch's CUDA with tapes for graphs; the log of what was asked of it."""
    log: list[str] = []
    entered = [FakeStream(log, "main")]

    @contextmanager
    def stream(entering):
        before = list(entered)
        entered.append(entering)
        try:
            yield
        finally:
            entered[:] = before

    @contextmanager
    def graph(tape, stream, capture_error_mode):
        assert entered[-1] is stream and capture_error_mode == "thread_local"
        entered.append(stream)  # as PyTorch's own, which leaves it there if the recording fails
        log.append("recording")
        with tape:
            yield
        entered.pop()

    fakes = {
        "Stream": lambda device: FakeStream(log, "side"),
        "current_stream": lambda device: entered[-1],
        "stream": stream,
        "CUDAGraph": Tape,
        "graph": graph,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(th.cuda, name, fake)
    return log, entered


def test_work_beside_is_in_order_with_all_around_it(fake_cuda):
    log, entered = fake_cuda
    captured = Captured(lambda x: (x * 2,), list, CUDAGraphs(th.device("cpu")))
    for call in range(WARM_UPS):
        assert captured(th.tensor([float(call)]))[0].tolist() == [2.0 * call]
    assert log == ["side waits for main", "main waits for side"] * WARM_UPS
    log.clear()
    for call in range(4):
        assert captured(th.tensor([float(call)]))[0].tolist() == [2.0 * call]
    assert log == ["side waits for main", "recording", "main waits for side"]  # once
    assert len(entered) == 1 and captured.n_recorded == 1


def test_a_recording_that_fails_leaves_the_stream_that_was_current(fake_cuda):
    log, entered = fake_cuda
    captured = Captured(lambda x: (x * float(x.sum()),), list, CUDAGraphs(th.device("cpu")))
    for _ in range(WARM_UPS):
        captured(th.ones(1))
    with pytest.warns(RuntimeWarning, match="CUDA graphs"):
        captured(th.ones(1))
    assert len(entered) == 1 and log[-1] == "recording"
    assert captured(th.full((1,), 3.0))[0].tolist() == [9.0]
