"""``tune`` says what it did, does nothing where it cannot, and changes no number."""

import subprocess
import sys

import pytest
import torch as th
from torch.distributions import Categorical, Distribution

from mnv4_rl import performance
from tests.tiny_env import tiny_ppo


class FakeLibc:
    """Stands in for the C library and notes what it is told."""

    def __init__(self, answer=1):
        self.calls, self.answer = [], answer

    def __call__(self, _):
        return self

    def mallopt(self, parameter, value):
        self.calls.append((parameter, value))
        return self.answer


@pytest.fixture(autouse=True)
def _restore_threads():
    threads = th.get_num_threads()
    yield
    th.set_num_threads(threads)


@pytest.fixture
def libc(monkeypatch):
    fake = FakeLibc()
    monkeypatch.setattr(performance.ctypes, "CDLL", fake)
    monkeypatch.setattr(performance.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return fake


def test_tune_raises_the_three_thresholds_once(libc):
    assert performance.tune().allocator
    assert sorted(parameter for parameter, _ in libc.calls) == [-3, -2, -1]  # mmap, top pad, trim in malloc.h
    assert all(0 < value < 2**31 for _, value in libc.calls)  # mallopt takes a C int


def test_tune_reports_a_refusal_and_still_asks_for_the_rest(libc):
    libc.answer = 0
    assert not performance.tune().allocator
    assert len(libc.calls) == 3


def test_tune_leaves_the_allocator_alone_without_glibc(libc, monkeypatch):
    monkeypatch.setattr(performance.platform, "libc_ver", lambda: ("", ""))
    assert not performance.tune().allocator
    assert libc.calls == []


@pytest.mark.parametrize("threads", [1, 2])
def test_tune_sets_the_threads_and_says_so(libc, threads):
    tuning = performance.tune(threads)
    assert tuning.threads == th.get_num_threads() == threads
    assert str(tuning) == f"allocator=True, threads={threads}"


def test_tune_leaves_the_threads_unless_told(libc):
    th.set_num_threads(2)
    assert performance.tune().threads == 2


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_fewer_than_one_thread_is_refused_before_anything_changes(libc, threads):
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1, got"):
        performance.tune(threads)
    assert libc.calls == []


def test_distributions_go_unchecked_inside_alone(monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", True)  # th.compile turns it off for good
    wrong = th.tensor([float("nan"), 1.0])
    with performance.unchecked_distributions():
        Categorical(logits=wrong)
    with pytest.raises(ValueError):
        Categorical(logits=wrong)


def test_distributions_that_went_unchecked_before_still_do(monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", False)
    with performance.unchecked_distributions():
        pass
    Categorical(logits=th.tensor([float("nan"), 1.0]))


def test_tune_changes_no_number():
    """In a process of its own: the allocator's settings last as long as the process."""
    code = (
        "import torch as th; from mnv4_rl import create_model; from mnv4_rl.performance import tune; th.manual_seed(0);"
        "model = create_model('rl_s', 4, 3); x = th.rand(4, 4, 84, 84); before = model(x);"
        "print(tune()); assert th.equal(model(x), before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "allocator=" in done.stdout


@pytest.mark.parametrize(
    "change", [lambda model: performance.set_precision(model, "bf16"), performance.compile_encoders]
)
def test_an_agent_in_place_of_its_policy_is_told(change):
    with pytest.raises(TypeError, match=r"pass model\.policy"):
        change(tiny_ppo())
