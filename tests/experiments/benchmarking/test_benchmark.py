"""The benchmark's arithmetic on a clock of our own, and the command with tiny settings; never an absolute time."""

import csv
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from torch import nn

from experiments import benchmark
from experiments.benchmarking import encoders as benchmark_encoders
from experiments.benchmarking import plan, report
from experiments.benchmarking import training as benchmark_training
from experiments.benchmarking.encoders import (
    Cost,
    Group,
    Limits,
    build,
    cost,
    encoder_groups,
    measure_group,
    random_images,
)
from experiments.benchmarking.measuring import Row, calls_per_second, interleave, ratio
from experiments.benchmarking.training import STOCK, Contender, Task, all_contenders, build_agent
from mnv4_rl.models.registry import DEFAULT_VARIANT
from tests.needs import needs_envpool

TINY = ["--forward-batches", "1", "--rl-batch", "2", "--other-batch", "1", "--frame-batch", "1", "--frame-sizes", "40"]
TINY += ["--rounds", "2", "--min-seconds", "0", "--devices", "cpu", "--threads", "1"]


class FakeClock:
    """Time passes only when something takes it, ``load`` times as slowly as it should."""

    def __init__(self):
        self.now, self.load = 0.0, 1.0

    def __call__(self):
        return self.now

    def take(self, seconds):
        self.now += seconds * self.load


class FakeEncoder(nn.Module):
    """Takes a known time for every image."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.layer = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        if not x.is_meta:
            self.clock.take(self.seconds * len(x) / (2 if th.is_autocast_enabled("cpu") and self.seconds > 1 else 1))
        return self.layer(x).flatten(1)


@pytest.fixture
def clock(monkeypatch):
    """``nature`` takes 2 s an image (1 s in bf16), ``rl_s`` 0.5 s, the matrix product of 800 multiply-adds 1 s."""
    clock = FakeClock()
    seconds = {"nature": 2.0, "rl_s": 0.5, "rl_slow": 30.0}
    monkeypatch.setattr(benchmark_encoders, "build", lambda name, size: FakeEncoder(clock, seconds[name]))
    monkeypatch.setattr(benchmark_encoders, "peak_call", lambda device, dtype: (lambda: clock.take(1.0), 800.0))
    return clock


def limits(clock, dtypes=("fp32",), **more):
    values = {"rounds": 4, "min_seconds": 20.0, "max_seconds": 50.0, "max_bytes": 1e9, **more}
    return Limits(dtypes=dtypes, clock=clock, **values)


def group(*models, task="forward", batch=2):
    return Group("encoders", task, "cpu", batch, 5, models)


def test_calls_per_second_calls_until_the_time_is_up():
    clock = FakeClock()
    assert calls_per_second(lambda: clock.take(0.25), 0.9, clock) == 4
    assert clock.now == 1.0
    assert calls_per_second(lambda: clock.take(5.0), 0.9, clock) == 0.2  # at least once


def test_rounds_visit_everyone_and_turn_round():
    order, steps = [], []
    measures = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    rates = interleave(measures, 2, lambda: steps.append(1))
    assert order == ["a", "b", "c", "c", "b", "a"] and len(steps) == 6
    assert {name: values.tolist() for name, values in rates.items()} == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}


def test_ratio_is_taken_within_rounds():
    """The medians are 20 and 10, but no round saw a factor of two: the machine was slow in different rounds."""
    compared = ratio(np.array([10.0, 20.0, 30.0]), np.array([10.0, 40.0, 10.0]))
    assert compared == (1.0, 0.5, 3.0)


def test_a_group_has_exact_rates_ratios_and_share_of_peak(clock):
    nature, rl_s = measure_group(group("nature", "rl_s"), limits(clock), lambda: None)
    assert (nature.per_second, nature.ratio) == (0.5, 1.0)
    assert (rl_s.per_second, rl_s.ratio, rl_s.rounds) == (2.0, 4.0, 4)
    # One 1x1 convolution of 4 channels on 5x5 positions.
    assert (rl_s.macs, rl_s.parameters) == (100, 5)
    assert rl_s.peak_fraction == pytest.approx(2.0 * 100 / 800)


def test_backward_counts_as_two_more_products(clock):
    _, rl_s = measure_group(group("nature", "rl_s", task="forward+backward"), limits(clock), lambda: None)
    assert rl_s.peak_fraction == pytest.approx(3 * 2.0 * 100 / 800)


def test_load_on_the_machine_does_not_bend_ratios(clock):
    """Every round is twice as slow as the one before; a round is two encoders and the matrix product."""
    done = []

    def advance():
        done.append(1)
        clock.load = 2.0 ** (len(done) // 3)

    _, rl_s = measure_group(group("nature", "rl_s"), limits(clock), advance)
    assert rl_s.per_second == 2.0 * np.median([1, 1 / 2, 1 / 4, 1 / 8])
    assert (rl_s.ratio, rl_s.ratio_low, rl_s.ratio_high) == (4.0, 4.0, 4.0)
    assert rl_s.peak_fraction == pytest.approx(2.0 * 100 / 800)


def test_best_dtype_ratio_compares_with_the_faster_reference(clock):
    rows = measure_group(group("nature", "rl_s"), limits(clock, ("fp32", "bf16")), lambda: None)
    found = {(row.model, row.dtype): (row.ratio, row.best_dtype_ratio) for row in rows}
    assert found == {
        ("nature", "fp32"): (1.0, 0.5),
        ("nature", "bf16"): (1.0, 1.0),
        ("rl_s", "fp32"): (4.0, 2.0),
        ("rl_s", "bf16"): (2.0, 2.0),
    }


def test_over_the_time_cap_is_left_out_and_said(clock):
    steps = []
    rows = measure_group(group("nature", "rl_slow"), limits(clock), lambda: steps.append(1))
    assert rows[1].note == "left out: one call took 60.0 s, the cap is 50 s"
    assert (rows[1].rounds, rows[1].ratio, rows[1].parameters) == (0, None, 5)
    assert len(steps) == 4 * 3  # the bar still gets to its end


def test_over_the_memory_cap_is_left_out_without_a_call(clock):
    before = clock.now
    note = benchmark_encoders.admit(
        lambda: clock.take(1), Cost(10, 1, 600), group("nature"), limits(clock, max_bytes=2000), "rl_s"
    )
    # Saved bytes and their gradients for two images, and 12 bytes a parameter: 2520 in all.
    assert note.startswith("left out: needs about 0.0 GB") and clock.now == before
    assert benchmark_encoders.admit(lambda: None, Cost(10, 1, 600), group("nature"), limits(clock), "rl_s") == ""


def test_the_reference_is_never_left_out(clock):
    rows = measure_group(group("nature"), limits(clock, max_seconds=0.1, max_bytes=1), lambda: None)
    assert rows[0].ratio == 1.0


def test_small_encoders_train_at_the_large_batch_and_the_reference_in_both():
    groups = encoder_groups(["nature", "impala", "rl_s", "mobilenet_v4_nano"], "cpu", (1, 8), 256, 16)
    found = {(g.task, g.batch): g.models for g in groups}
    assert found == {
        ("forward", 1): ("nature", "impala", "rl_s", "mobilenet_v4_nano"),
        ("forward", 8): ("nature", "impala", "rl_s", "mobilenet_v4_nano"),
        ("forward+backward", 256): ("nature", "impala", "rl_s"),
        ("forward+backward", 16): ("nature", "mobilenet_v4_nano"),
    }


def test_a_call_trains_or_not_and_leaves_no_gradients():
    model, images = build("rl_s", 40), random_images(2, 40)
    seen = []
    model.register_forward_hook(lambda module, _, output: seen.append((module.training, output.requires_grad)))
    benchmark_encoders.make_call(model, images, "forward", "fp32")()
    benchmark_encoders.make_call(model, images, "forward+backward", "bf16")()
    assert seen == [(False, False), (True, True)]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "dtype"), [("rl_s", th.uint8), ("nature", th.float32)])
def test_every_encoder_gets_a_uint8_batch_as_its_own_policy_would_hand_it_over(name, dtype):
    model, seen = build(name, 40), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = random_images(2, 40)
    benchmark_encoders.make_call(model, images, "forward+backward", "fp32")()
    assert seen[0].dtype == dtype
    assert th.equal(seen[0], images if dtype == th.uint8 else images.float() / 255)


def test_saved_bytes_are_told_for_both_kinds_of_image_where_an_encoder_takes_both():
    nature, rl_s = (cost(build(name, 84), 84) for name in ("nature", "rl_s"))
    assert nature.saved_bytes_uint8 is None
    assert rl_s.saved_bytes - rl_s.saved_bytes_uint8 == 3 * 4 * 84 * 84


def test_command_measures_writes_and_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(benchmark_encoders.PEAK_SIDES, "cpu", 64)
    names = ["--encoders", "rl_s", "mobilenet_v4_nano", "--parts", "encoders", "frames"]
    benchmark.main([*TINY, *names, "--results-dir", str(tmp_path)])
    lines = (tmp_path / "benchmark.csv").read_text().splitlines()
    comments = [line for line in lines if line.startswith("# ")]
    assert all(any(f"# {key}: " in line for line in comments) for key in ("torch", "cpu", "cores", "threads", "commit"))
    rows = list(csv.DictReader(lines[len(comments) :]))
    assert list(rows[0]) == [field.name for field in fields(Row)]
    assert {row["model"] for row in rows} == {"nature", "rl_s", "mobilenet_v4_nano"}
    assert {row["dtype"] for row in rows} == {"fp32", "bf16"}
    assert {(row["part"], row["task"], row["batch"], row["size"]) for row in rows} == {
        ("encoders", "forward", "1", "84"),
        ("encoders", "forward+backward", "2", "84"),
        ("encoders", "forward+backward", "1", "84"),
        ("frames", "forward+backward", "1", "40"),
    }
    for row in rows:
        low, middle, high = (float(row[key]) for key in ("ratio_low", "ratio", "ratio_high"))
        assert 0 < low <= middle <= high and float(row["per_second"]) > 0 and int(row["rounds"]) == 2
        assert row["model"] != "nature" or middle == 1
        assert (row["saved_bytes_uint8"] == "") == (row["model"] == "nature")
        assert int(row["parameters"]) > 0 and int(row["macs"]) > 0 and int(row["saved_bytes"]) > 0
    assert (tmp_path / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    assert "## encoders" in (tmp_path / "benchmark.md").read_text()
    assert "benchmark.csv" in capsys.readouterr().out


def test_timm_is_left_out_with_the_reason_where_it_cannot_be_imported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    config = plan.BenchmarkConfig(parts=("encoders",), devices=("cpu",))
    groups = plan.plan_encoders(config)
    assert not any(benchmark_encoders.TIMM_NAME in g.models for g in groups)
    assert "is left out" in (out := capsys.readouterr().out) and "pip install" in out


def test_training_is_left_out_with_the_reason_without_sb3s_wrappers(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_training, "find_spec", lambda name: None)
    assert plan.plan_training(plan.BenchmarkConfig(devices=("cpu",))) == []
    assert "need cv2; install it with" in capsys.readouterr().out


def test_agents_train_in_the_numbers_that_were_asked_for():
    ((task, asked),) = plan.plan_training(plan.BenchmarkConfig(parts=("end-to-end",), algos=("ppo",), dtypes=("fp32",)))
    assert {contender.precision for contender in asked} == {"fp32"} and task.algo == "ppo"


def test_training_parts_plan_every_algorithm_and_number_of_environments():
    tasks = plan.plan_training(plan.BenchmarkConfig(devices=("cpu",), growth=(1, 64), agents=("rl_s", "rl_m")))
    found = [(task.part, task.algo, task.n_envs, len(contenders)) for task, contenders in tasks]
    assert found == [
        ("end-to-end", "ppo", 8, 8),
        ("end-to-end", "dqn", 8, 8),
        ("n-envs", "ppo", 1, 3),
        ("n-envs", "ppo", 64, 3),
    ]


@needs_envpool
def test_on_procgen_both_set_ups_play_in_the_same_environment():
    config = plan.BenchmarkConfig(devices=("cpu",), game="procgen/starpilot", algos=("ppo",), growth=())
    ((task, _),) = plan.plan_training(config)
    for contender in all_contenders(["rl_s"], ["fp32"])[:2]:
        env = benchmark_training.make_env(contender, task)
        assert (env.num_envs, env.observation_space.shape) == (8, (3, 64, 64))
        env.close()
    assert benchmark_training.make_row(task, STOCK, np.ones(2), np.ones(2)).size == 64


def test_training_compares_with_plain_sb3_round_by_round(monkeypatch):
    rates = {"SB3, NatureCNN": iter([100.0, 50.0]), "runner, rl_s": iter([300.0, 100.0])}
    monkeypatch.setattr(benchmark_training, "open_contender", lambda c, task, stack: lambda: next(rates[c.name]))
    reference, ours = benchmark_training.measure_task(
        ppo_task(), benchmark_training.growing_contenders(["rl_s"]), 2, lambda: None
    )
    assert (reference.ratio, ours.ratio, ours.ratio_low, ours.ratio_high) == (1.0, 2.5, 2.0, 3.0)
    assert (ours.per_second, ours.n_envs, ours.task) == (200.0, 2, "ppo")


def ppo_task(algo="ppo"):
    return Task(part="end-to-end", algo=algo, game="pong", n_envs=2, rollout=256, threads=1, device="cpu")


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("ppo", ["n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm"]),
        ("dqn", ["buffer_size", "batch_size", "learning_starts", "gamma", "train_freq", "gradient_steps",
                 "target_update_interval", "exploration_fraction", "exploration_final_eps", "max_grad_norm"]),
    ],
)  # fmt: skip
def test_plain_sb3_gets_the_same_hyperparameters_and_network(algo, settings):
    plain, ours = (build_agent(Contender("", plain, "nature"), ppo_task(algo)) for plain in (True, False))
    for name in settings:
        assert getattr(plain, name) == getattr(ours, name), name
    assert plain.lr_schedule(0.7) == pytest.approx(ours.lr_schedule(0.7))
    layers, our_layers = ([str(m) for m in a.policy.modules() if not list(m.children())] for a in (plain, ours))
    assert layers == our_layers
    assert plain.observation_space.shape == ours.observation_space.shape == (4, 84, 84)
    assert [type(agent.get_env()).__name__ for agent in (plain, ours)] == ["VecTransposeImage", "AtariVecEnv"]
    assert (type(plain.replay_buffer) is not type(ours.replay_buffer)) if algo == "dqn" else True
    for agent in (plain, ours):
        agent.get_env().close()


@pytest.mark.parametrize(
    ("plain", "told"),
    [(True, {"set_num_threads": (3,)}), (False, {"tune": (3,), "make_atari_env": ("pong", 2, 0, 3)})],
)
def test_a_contender_has_the_threads_and_the_numbers_that_were_asked_for(plain, told, monkeypatch):
    """Of plain SB3 nothing but the threads is tuned; ours has them for its games too."""
    found = {}

    def note(name):
        return lambda *args, **kwargs: found.update({name: (*args, *kwargs.values())})

    for name in ("tune", "make_atari_env", "set_precision"):
        monkeypatch.setattr(benchmark_training, name, note(name))
    monkeypatch.setattr(th, "set_num_threads", note("set_num_threads"))
    for name in ("make_sb3_atari_env", "VecFrameStack"):
        monkeypatch.setattr(benchmark_training, name, lambda *_, **__: None)
    for name in ("build_sb3_agent", "build_our_agent"):
        monkeypatch.setattr(benchmark_training, name, lambda *_: SimpleNamespace(policy="policy"))
    build_agent(Contender("", plain, "nature", "bf16"), replace(ppo_task(), threads=3))
    assert found == told | {"set_precision": ("policy", "bf16")}


def test_a_row_is_shown_in_the_units_of_its_headings():
    row = Row(
        part="encoders", model="rl_s", task="forward", device="cpu", batch=8, size=84, rounds=7, per_second=1234.0,
        ratio=2.25, ratio_low=1.5, ratio_high=4.0, best_dtype_ratio=1.25, peak_fraction=0.26, parameters=1000,
        macs=2_500_000, saved_bytes=3_000, saved_bytes_uint8=2_000,
    )  # fmt: skip
    header, _, shown = (line.strip("| ").split(" | ") for line in report.markdown([row], []).splitlines()[2:5])
    found = dict(zip(header, shown, strict=True))
    assert (found["a second"], found["lowest to highest"], found["of peak"]) == ("1,234", "1.50 to 4.00", "26%")
    assert (found["ratio"], found["best dtypes"]) == ("2.25x", "1.25x")
    assert (found["MMACs"], found["kB saved"], found["of uint8"]) == ("2.5", "3", "2")


def test_whiskers_reach_from_the_lowest_round_to_the_highest():
    rows = [
        Row(part="encoders", model=model, task="forward", device="cpu", ratio=2.0, ratio_low=low, ratio_high=high)
        for model, low, high in (("nature", 1.0, 2.5), ("rl_s", 1.5, 4.0))
    ]
    axis = Figure().subplots()
    report.bars(axis, rows, lambda row: row.dtype, "")
    (bars,) = [container for container in axis.containers if isinstance(container, BarContainer)]
    segments = bars.errorbar.lines[2][0].get_segments()
    assert {(low, high) for (low, _), (high, _) in segments} == {(1.0, 2.5), (1.5, 4.0)}
    assert [bar.get_width() for bar in bars] == [2.0, 2.0]


def test_limits_are_those_of_the_flags(monkeypatch):
    asked = []
    monkeypatch.setattr(plan, "measure_group", lambda _group, limits, _advance: asked.append(limits) or [])
    flags = dict(parts=("encoders",), dtypes=("fp32",), rounds=3, min_seconds=0.5, max_seconds=7, max_gigabytes=2)
    plan.run([group("nature")], [], plan.BenchmarkConfig(**flags), lambda rows: None)
    assert asked == [Limits(("fp32",), 3, 0.5, 7, 2e9)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--encoders", "rl-s"], "Did you mean 'rl_s'"),
        (["--agents", "rl-s2"], "Did you mean 'rl_s2'"),
        (["--rounds", "0"], "rounds must be a whole number of at least 1, got 0"),
        (["--frame-sizes", "84", "0"], "frame_sizes[1] must be a whole number of at least 1, got 0"),
        (["--n-envs", "3"], "rollout must be a multiple of every n_envs, got 1024 and 3"),
        (["--game", "pongg"], "pong"),
        (["--game", "procgen/starpilot"], "--algos ppo"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing_behind(wrong, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        benchmark.main(["--results-dir", str(tmp_path / "out"), *wrong])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_interrupt_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    row = Row(part="encoders", model="nature", task="forward", device="cpu")

    def measure_then_stop(group, limits, advance, calls=[]):  # noqa: B006  one list for all calls is the point
        if calls:
            raise KeyboardInterrupt
        calls.append(group)
        return [row]

    monkeypatch.setattr(plan, "measure_group", measure_then_stop)
    with pytest.raises(SystemExit) as interrupted:
        benchmark.main([*TINY, "--encoders", "rl_s", "--parts", "encoders", "--results-dir", str(tmp_path)])
    assert interrupted.value.code == 130
    assert "what was measured is in" in capsys.readouterr().out
    assert (tmp_path / "benchmark.csv").read_text().splitlines()[-1].startswith("encoders,nature,forward,cpu")


@pytest.mark.slow
def test_agents_train_in_turns_in_processes_of_their_own(tmp_path):
    """The whole command, DQN's warm-up included; Pong with two environments and 64 timesteps a measurement."""
    small = ["--n-envs", "2", "--growth", "1", "--rollout", "64", "--rounds", "1", "--devices", "cpu", "--threads", "1"]
    benchmark.main([*small, "--parts", "end-to-end", "n-envs", "--results-dir", str(tmp_path)])
    lines = [line for line in (tmp_path / "benchmark.csv").read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert {(row["task"], row["model"]) for row in rows if row["part"] == "end-to-end"} == {
        (algo, contender.name)
        for algo in ("ppo", "dqn")
        for contender in all_contenders([DEFAULT_VARIANT], ["fp32", "bf16"])
    }
    assert all(float(row["per_second"]) > 0 for row in rows)
    assert [float(row["ratio"]) for row in rows if row["model"] == STOCK.name] == [1, 1, 1]
