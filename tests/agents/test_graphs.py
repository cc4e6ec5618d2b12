import warnings

import pytest
import torch as th

from agents.graphs import WARM_UPS, Captured
from tests.tapes import Tapes


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
