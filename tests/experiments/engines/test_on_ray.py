"""How items are handed to Ray, on a stand-in for it; tests/scale has the real one, in an environment that has it."""

from types import SimpleNamespace

import pytest

from experiments.engines import on_ray
from experiments.engines.config import EngineConfig
from experiments.engines.on_ray import run_all


class FakeRay:
    """What of Ray is used, in this process: of the tasks that were begun the last ends first."""

    def __init__(self, *machines):
        self.machines, self.begun, self.most = machines, {}, 0

    def init(self, **place):
        self.place = place

    def shutdown(self):
        self.is_down = True

    def nodes(self):
        return [{"Alive": True, "Resources": machine} for machine in self.machines]

    def remote(self, **options):
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda *args: self._begin(function, args))

    def _begin(self, function, args):
        task = object()
        self.begun[task] = function, args
        self.most = max(self.most, len(self.begun))
        return task

    def wait(self, tasks, timeout):
        return tasks[-1:], tasks[:-1]

    def get(self, task):
        function, args = self.begun.pop(task)
        return function(*args)


@pytest.fixture
def start(monkeypatch):
    """Put a stand-in with some machines in Ray's place."""

    def build(*machines):
        ray = FakeRay(*machines)
        monkeypatch.setattr(on_ray, "import_ray", lambda: ray)
        return ray

    return build


def inverse(number):
    return 1 / number


def test_results_are_in_the_order_of_the_items_whoever_ends_first(start, tmp_path):
    ray, told = start({"CPU": 8.0, "GPU": 1.0}), []
    config = EngineConfig(engine="ray", jobs=2, gpus_per_run=0.5)
    watch = lambda running, waiting: told.append((running, waiting))  # noqa: E731
    one, error, other = run_all(config, inverse, [1, 0, 4], tmp_path, n_cpus=3, watch=watch)
    assert (one, other) == (1, 0.25) and isinstance(error, ZeroDivisionError)
    assert ray.most == 2 and ray.is_down and told == [(1, 1), (1, 0), (0, 0)]
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (3, 0.5)
    assert ray.place["num_cpus"] == 6  # of this machine: two jobs of three


@pytest.mark.parametrize(("address", "most"), [(None, 1), ("auto", 4)])
def test_without_a_number_of_jobs_a_machine_has_one_and_a_cluster_as_many_as_fit(address, most, start, tmp_path):
    ray = start({"CPU": 2.0})
    assert run_all(EngineConfig(engine="ray", address=address), inverse, [1, 2, 4, 8], tmp_path) == [
        1,
        0.5,
        0.25,
        0.125,
    ]
    assert ray.most == most and ray.place["address"] == (address or "local")


def test_a_call_that_fits_on_no_machine_is_refused_though_all_together_have_room(start, tmp_path):
    ray = start({"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(ConnectionError, match=r"takes 4 CPU and 0\.5 GPU"):
        run_all(EngineConfig(engine="ray", gpus_per_run=0.5), inverse, [1], tmp_path, n_cpus=4)
    assert ray.is_down and not ray.begun


def test_a_machine_that_does_not_see_the_folder_says_so(start, tmp_path):
    start({"CPU": 1.0})
    (error,) = run_all(EngineConfig(engine="ray"), inverse, [1], tmp_path / "elsewhere")
    assert isinstance(error, ValueError) and "does not see" in str(error)
