"""A function on Ray, once for each item: a task each, which begins again elsewhere when its worker or node is lost.

Nothing travels but the item: what a task has done so far is in files on a path that all machines share, and a task that
begins again goes on from there.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from experiments.cli.command import sigterm_as_interrupt
from experiments.cli.results import ROOT
from experiments.engines.config import EngineConfig, import_ray

Item = TypeVar("Item")
Watch = Callable[[int, int], None]

RETRIES = 10  # of one task: each loss of its worker or node, and each stop before its end, takes one
POLL_SECONDS = 5.0
STOP_SECONDS = 120.0  # that tasks have to save what they did
KNOCK_SECONDS = 20.0
STORE_BYTES = 100 * 10**6  # of Ray's memory for objects, which stays empty


class StoppedError(RuntimeError):
    """A task was asked to stop before its end; it begins again."""


def run_all(
    config: EngineConfig,
    function: Callable[[Item], Any],
    items: Sequence[Item],
    shared: Path,
    *,
    n_cpus: int = 1,
    watch: Watch = lambda _running, _waiting: None,
) -> list[Any]:
    """Call a function with every item, each in a process of its own somewhere on Ray.

    Args:
        config: Which Ray, how many at once, and GPUs of each.
        function: Named in a module of the checkout, which every machine has at the same path.
        items: What it is called with; plain data.
        shared: A folder that every machine must see.
        n_cpus: CPUs of each call.
        watch: Called every so often with the numbers of items begun and not begun.

    Returns:
        For each item what the function returned, or the exception that ended it.

    Raises:
        ConnectionError: If there is no such cluster, or no machine of it is large enough for one call.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the tasks have stopped.
    """
    at_once = config.jobs or (len(items) if config.address else 1)
    with _connected(config, at_once * n_cpus) as ray:
        _check_room(ray, {"CPU": n_cpus, "GPU": config.gpus_per_run})
        options = {"num_cpus": n_cpus, "num_gpus": config.gpus_per_run, "scheduling_strategy": "SPREAD"}
        # max_calls: a process of its own draws the same random numbers wherever it runs.
        task = ray.remote(max_calls=1, max_retries=RETRIES, retry_exceptions=[StoppedError], **options)(_call)
        waiting, results = deque(enumerate(items)), dict[int, Any]()
        running: dict[Any, int] = {}
        with sigterm_as_interrupt(), _stopping(ray, running):
            while waiting or running:
                while waiting and len(running) < at_once:
                    index, item = waiting.popleft()
                    running[task.remote(function, item, shared)] = index
                for done in ray.wait(list(running), timeout=POLL_SECONDS)[0]:
                    results[running.pop(done)] = _result(ray, done)
                watch(len(running), len(waiting))
    return [results[index] for index in range(len(items))]


def _call(function: Callable[[Item], Any], item: Item, shared: Path) -> Any:
    """What a task does, on whatever machine it is."""
    if not shared.is_dir():
        raise ValueError(
            f"{socket.gethostname()} does not see {shared}: name a folder on a path that all machines share."
        )
    return function(item)


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except Exception as error:  # the function's own, or Ray's after the last retry
        return error


@contextmanager
def _connected(config: EngineConfig, n_cpus: int) -> Iterator[Any]:
    ray = import_ray()
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    place: dict[str, Any] = {"address": config.address}
    if config.address is None:
        place = {"address": "local", "num_cpus": n_cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(places)}}
    try:
        _knock(config.address)
        ray.init(**place, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray's are of every kind
        raise ConnectionError(f"Ray at {config.address or 'this machine'} does not answer: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_room(ray: Any, wanted: dict[str, float]) -> None:
    """Refuse what Ray would wait for without a word."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(kind, 0) >= amount for kind, amount in wanted.items()) for machine in machines):
        needed = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted.items() if amount)
        raise ConnectionError(f"No machine that Ray has here is large enough for a run, which takes {needed}.")


def _knock(address: str | None) -> None:
    """Find out whether anybody listens where a cluster should be: Ray itself waits there for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]") or "localhost", int(port)), KNOCK_SECONDS).close()


@contextmanager
def _stopping(ray: Any, running: dict[Any, int]) -> Iterator[None]:
    """On Ctrl-C ask every task to save and stop, as Ctrl-C would where it runs, and wait for them."""
    try:
        yield
    except KeyboardInterrupt:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=STOP_SECONDS)
        raise
