"""The classification command: run folder, resume, interrupts, mistakes, and the accuracy it is said to reach."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch as th
import yaml
from safetensors.torch import load_file

from experiments.classification.config import ClassifyConfig
from experiments.classification.run import ClassificationRun
from experiments.classification.training import Evaluation, Trainer
from experiments.classify import main, prepare, result_row
from mnv4_rl import create_model
from mnv4_rl.weights.files import read_weights
from mnv4_rl.weights.statistics import image_statistics
from tests.experiments.classification.image_folders import write_folder, write_image

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "best.json", "best.safetensors", "command.txt", "config.yml", "confusion.csv", "confusion.png", "metrics.csv",
    "state.pt", "test.json", "versions.txt",
}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    return write_folder(tmp_path / "images")


def flags(images, run_dir, *more):
    return [
        "--data", str(images), "--run-dir", str(run_dir), "--epochs", "3", "--warmup-epochs", "1", "--batch-size", "8",
        "--learning-rate", "0.01", "--threads", "1", *more,
    ]  # fmt: skip


def state(run_dir):
    return th.load(run_dir / "state.pt", weights_only=True)


def same_weights(first, second):
    pairs = [(first[key], second[key]) for key in ("network", "averaged")]
    return all(th.equal(a[name], b[name]) for a, b in pairs for name in a)


def test_run_folder_explains_itself(images, tmp_path, capsys):
    main(flags(images, tmp_path / "run", "--drop-path", "0.1"))
    files = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert {name for name in files if not name.startswith("events.out")} == FILES
    config = yaml.safe_load((tmp_path / "run" / "config.yml").read_text())
    assert (config["model"], config["data"], config["image_size"]) == ("mobilenet_v4_nano", str(images), 8)
    assert config["drop_path"] == 0.1 and config["epochs"] == 3
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    test = json.loads((tmp_path / "run" / "test.json").read_text())
    screen = capsys.readouterr().out
    assert f"({test['correct']} of 5 images" in screen and "best.safetensors" in screen and "tensorboard" in screen


def test_best_weights_give_the_reported_accuracy_back(images, tmp_path):
    main(flags(images, tmp_path / "run"))
    about = json.loads((tmp_path / "run" / "best.json").read_text())
    network = create_model(about["model"], about["in_channels"], len(about["class_names"]), about["image_size"])
    network.load_state_dict(load_file(tmp_path / "run" / "best.safetensors"))
    from experiments.classification.sources import load_dataset

    test = load_dataset(str(images), seed=0).test
    x = (test.pixels / 255 - th.tensor(about["mean"]).view(-1, 1, 1)) / th.tensor(about["std"]).view(-1, 1, 1)
    correct = int((network.eval()(x).argmax(1) == test.labels).sum())
    assert correct == json.loads((tmp_path / "run" / "test.json").read_text())["correct"]
    # An encoder that starts from the file takes mean and deviation from it.
    mean, deviation = image_statistics(read_weights(tmp_path / "run" / "best.safetensors"))
    assert (list(mean), list(deviation)) == (about["mean"], about["std"])


def interrupt_at(monkeypatch, update):
    """Ctrl-C arrives during the given update, counted from 0."""
    original, count = Trainer._update, iter(range(1000))

    def interrupted(self, *args):
        if next(count) == update:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_update", interrupted)


@pytest.mark.parametrize(("update", "epochs"), [(0, 0), (4, 2)])
def test_interrupted_and_resumed_is_the_same_run(images, tmp_path, capsys, monkeypatch, update, epochs):
    main(flags(images, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        interrupt_at(patch, update)
        main(flags(images, tmp_path / "run"))
    assert left.value.code == 130
    screen = capsys.readouterr().out
    assert f"after {epochs} of 3 epochs" in screen and "--resume" in screen
    assert state(tmp_path / "run")["epochs_done"] == epochs
    assert not (tmp_path / "run" / "test.json").exists()
    main(["--resume", str(tmp_path / "run"), "--threads", "1"])
    assert same_weights(state(tmp_path / "whole"), state(tmp_path / "run"))
    whole, resumed = (load_file(tmp_path / run / "best.safetensors") for run in ("whole", "run"))
    assert all(th.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "confusion.csv").read_bytes() == (tmp_path / "run" / "confusion.csv").read_bytes()
    epoch_columns = [
        [list(row.values())[:5] for row in csv.DictReader((tmp_path / run / "metrics.csv").open())]
        for run in ("whole", "run")
    ]
    assert epoch_columns[0] == epoch_columns[1]


def test_data_are_read_as_the_flags_say(monkeypatch):
    asked = []

    def load(*args):
        asked.append(args)
        raise ValueError("enough")

    monkeypatch.setattr("experiments.classify.load_dataset", load)
    with pytest.raises(ValueError, match="enough"):
        prepare(ClassifyConfig(data="digits", seed=4, image_size=8, on_corrupt="skip", threads=1))
    assert asked == [("digits", 4, 8, "skip")]


def test_of_epochs_that_are_as_good_the_last_is_the_best():
    """Its weights are written last, and best.json is of the epoch that the command names."""
    run = ClassificationRun(SimpleNamespace(path=None), None)
    run.history = [{"epoch": epoch, "validation_accuracy": share} for epoch, share in ((1, 0.5), (2, 0.9), (3, 0.9))]
    assert run.best["epoch"] == 3


def test_a_resumed_run_counts_the_seconds_of_all_its_sessions(images, tmp_path):
    main(flags(images, tmp_path / "run"))
    before = state(tmp_path / "run")["history"][-1]
    resumed = prepare(ClassifyConfig(resume=tmp_path / "run", threads=1))
    with resumed.folder:
        wall, cpu = resumed.seconds()
        resumed.seconds = lambda: (20.0, 10.0)
        row = result_row(resumed, Evaluation(0.0, th.tensor([1, 0]), th.tensor([1, 1])))
    assert (row["wall_seconds"], row["cpu_seconds"], row["threads"]) == (20.0, 10.0, 1)
    assert (row["test_images"], row["test_accuracy"], row["best_epoch"]) == (2, 0.5, resumed.best["epoch"])
    here = time.time() - psutil.Process().create_time(), time.process_time()
    assert (wall, cpu) == pytest.approx((before["wall_seconds"] + here[0], before["cpu_seconds"] + here[1]), abs=1)


def test_result_table_grows_and_a_foreign_file_is_left_alone(images, tmp_path, capsys):
    table = tmp_path / "result.csv"
    for seed in ("0", "1"):
        run_dir = tmp_path / f"run{seed}"
        main(flags(images, run_dir, "--seed", seed, "--result-file", str(table)))
    assert [row["seed"] for row in csv.DictReader(table.open())] == ["0", "1"]
    assert "over 2 runs" in (tmp_path / "result.md").read_text()
    assert (tmp_path / "result_confusion.png").read_bytes() == (tmp_path / "run1" / "confusion.png").read_bytes()
    table.write_text("a,b\n1,2\n")
    refused(flags(images, tmp_path / "run2", "--result-file", str(table)), capsys, "not a table of classification")
    assert table.read_text() == "a,b\n1,2\n" and not (tmp_path / "run2").exists()


def refused(args, capsys, says):
    """One line on stderr that says it, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(args)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert says in error


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--model", "mobilenet_v4_nan"], "Did you mean 'mobilenet_v4_nano'"),
        (["--epochs", "0"], "epochs must lie in [1, inf)"),
        (["--image-size", "0"], "image_size must be a whole number of at least 1"),
        (["--device", "tpu"], "device must be auto, cpu"),
        (["--threads", "0"], "threads must be"),
        (["--data", "nowhere"], "no folder 'nowhere'"),
        (["--result-file", "result.txt"], "ends in .csv"),
        (["--result-file", "no_such_folder/result.csv"], "no folder no_such_folder"),
    ],
)
def test_wrong_flags_leave_nothing_behind(images, tmp_path, capsys, more, says):
    refused(flags(images, tmp_path / "run", *more), capsys, says)
    assert not (tmp_path / "run").exists()


def test_wrong_data_leave_nothing_behind(images, tmp_path, capsys):
    (images / "dark" / "03.png").write_bytes(b"not an image")
    refused(flags(images, tmp_path / "run"), capsys, "03.png is not a readable image")
    (images / "empty").mkdir()
    refused(flags(images, tmp_path / "run"), capsys, "empty has no images")
    assert not (tmp_path / "run").exists()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_a_run_is_not_overwritten(images, tmp_path, capsys):
    main(flags(images, tmp_path / "run"))
    before = contents(tmp_path / "run")
    refused(flags(images, tmp_path / "run"), capsys, "already holds a run")
    assert contents(tmp_path / "run") == before


def test_resume_mistakes(images, tmp_path, capsys):
    refused(["--resume", str(tmp_path)], capsys, "holds no run")
    run = tmp_path / "run"
    main(flags(images, run))
    refused(["--resume", str(run), "--seed", "3"], capsys, "leave --seed out")
    refused(["--resume", str(run), "--epochs", "9"], capsys, "leave --epochs out")
    write_image(images / "dark" / "new.png", 40)
    refused(["--resume", str(run)], capsys, "not those the run was started with")
    (images / "dark" / "new.png").unlink()
    whole = (run / "state.pt").read_bytes()
    (run / "state.pt").write_bytes(whole[:-200])
    refused(["--resume", str(run)], capsys, "state.pt cannot be resumed from")
    (run / "state.pt").unlink()
    refused(["--resume", str(run)], capsys, "nothing to resume")
    (run / "config.yml").write_text("game: pong\n")
    refused(["--resume", str(run)], capsys, "not a configuration of this command")


def test_diverged_training_says_so(images, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(flags(images, tmp_path / "run", "--learning-rate", "1e30"))
    assert left.value.code == 2
    assert "lower --learning-rate" in capsys.readouterr().err


@pytest.mark.slow
def test_nano_reaches_98_percent_on_digits(tmp_path):
    command = [
        sys.executable,
        "experiments/classify.py",
        "--model",
        "mobilenet_v4_nano",
        "--data",
        "digits",
        "--run-dir",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ})
    assert json.loads((tmp_path / "test.json").read_text())["accuracy"] >= 0.98
