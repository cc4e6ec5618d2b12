"""Cases tried in a child with bounds on memory, CPU time and seconds; what kills the child is the finding."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import torch as th

EXTRA_BYTES = 3 * 2**29  # beyond what the process has: nothing that a small file claims may take more
CASE_SECONDS = 30
# What the random part tries: so many cases, or so many seconds of them by `make fuzz`.
N_CASES = 60
FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))

Case = tuple[str, Callable[[], str]]


def outcomes(cases: Iterable[Case]) -> dict[str, str]:
    """What came of each case: what it returned, what it raised, or what killed the child in the middle of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _try_all(cases, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().decode(errors="replace").splitlines()
    status = os.waitpid(child, 0)[1]
    found = dict(line.split("\t", 1) for line in lines)
    if status and lines:
        name = lines[-1].split("\t")[0]
        kind = (
            f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.waitstatus_to_exitcode(status)}"
        )
        found[name] = f"killed the process: {kind}"
    assert lines, f"the child did not start: {status}"
    return found


def _try_all(cases: Iterable[Case], writer: int) -> None:
    th.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for name, case in cases:
        os.write(writer, f"{name}\tdid not end\n".encode())
        signal.alarm(CASE_SECONDS)
        try:
            outcome = case()
        except BaseException as error:
            outcome = f"raised {type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
        os.write(writer, f"{name}\t{outcome}\n".encode())
    os._exit(0)


def sampled(make: Callable[[random.Random], Case], seed: int = 0) -> Iterator[Case]:
    """Random cases: the same ones each time, or other ones for as long as asked."""
    numbered = (make(random.Random(seed * 10**9 + number)) for number in count())
    if not FUZZ_SECONDS:
        yield from islice(numbered, N_CASES)
        return
    end = time.monotonic() + FUZZ_SECONDS
    seed = time.time_ns()
    while time.monotonic() < end:
        seed += 1
        yield make(random.Random(seed))


def assert_all(found: dict[str, str], *allowed: str) -> None:
    """Every case came to one of the allowed ends; any case that did not is named."""
    wrong = {name: outcome for name, outcome in found.items() if outcome not in allowed}
    assert not wrong, f"{len(wrong)} of {len(found)}: " + "\n".join(f"{name}: {end}" for name, end in wrong.items())
