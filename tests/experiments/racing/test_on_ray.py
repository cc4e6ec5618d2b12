"""What a task on Ray does with its run, without Ray; tests/scale has the rest, in an environment that has it."""

from types import SimpleNamespace

import pytest

from agents.runs.lock import FolderInUseError
from experiments.engines.on_ray import StoppedError
from experiments.racing import on_ray
from experiments.racing.planning import RaceConfig, Run, plan


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Call it with what each try of a run does: an error, or whether it trained to its end; gives the tries made."""
    monkeypatch.setattr(on_ray, "_RETRY_SECONDS", 0.0)
    (run,) = plan(RaceConfig(name="r", encoders=("rl_s",), race_dir=tmp_path))

    def call(*tries):
        left, done = list(tries), []

        def train(config, quiet):
            assert quiet and config == run.config()
            outcome = left.pop(0)
            done.append(outcome)
            if isinstance(outcome, Exception):
                raise outcome
            return SimpleNamespace(finished=outcome)

        monkeypatch.setattr(on_ray, "train_run", train)
        monkeypatch.setattr(Run, "finished", lambda _: done[-1:] == [True])
        on_ray.train_here(run)
        return done

    return call


def test_a_folder_that_a_lost_worker_still_holds_is_waited_for(task):
    assert len(task(FolderInUseError("held"), FolderInUseError("held"), True)) == 3


def test_a_folder_that_stays_held_is_an_error_in_the_end(task, monkeypatch):
    monkeypatch.setattr(on_ray, "WAIT_SECONDS", -1.0)
    with pytest.raises(FolderInUseError):
        task(FolderInUseError("held"), True)


def test_a_run_that_was_stopped_begins_again_elsewhere(task):
    with pytest.raises(StoppedError, match="before its end"):
        task(False)


def test_what_cannot_be_trained_is_not_tried_again(task):
    with pytest.raises(ValueError, match="no such"):
        task(ValueError("no such thing"), True)


def test_a_task_gets_a_cpu_for_each_thread_and_failed_runs_are_told(monkeypatch, tmp_path):
    config = RaceConfig(name="r", encoders=("nature", "rl_s"), race_dir=tmp_path, threads=3)
    runs, asked = plan(config), []
    config.path.mkdir()

    def run_all(_config, _function, items, shared, *, n_cpus, watch):
        asked.append((items, shared, n_cpus))
        return [None, ValueError("out of luck")]

    monkeypatch.setattr(on_ray, "run_all", run_all)
    assert on_ray.train_on_ray(runs, config, None, lambda *_: None) == [runs[1]]
    assert asked == [(runs, config.path, 3)]
    assert runs[1].log.read_text() == "out of luck\n" and not runs[0].log.exists()
