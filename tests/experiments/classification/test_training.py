"""Schedule, averages, and what a training run leaves."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch as th
from torch.optim.swa_utils import AveragedModel

from experiments.classification.config import ClassifyConfig
from experiments.classification.images import Images, make_dataset
from experiments.classification.report import draw_confusion, interval, write_test
from experiments.classification.training import (
    Evaluation,
    Trainer,
    fingerprint,
    moving_average,
    parameter_groups,
    warmup_cosine,
)
from experiments.cli.results import read_csv
from mnv4_rl import create_model
from mnv4_rl.models.layers import DropPath


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2}, r"warmup_epochs \(2\).*epochs \(2\)"),
        ({"batch_size": 1}, r"batch_size .*\[2"),
        ({"label_smoothing": 1.0}, r"label_smoothing .*\[0, 1\)"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        ClassifyConfig(**wrong).check()


def test_schedule_rises_linearly_and_falls_to_zero():
    shares = [warmup_cosine(step, 4, 104) for step in range(105)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4] == 1.0 and shares[54] == pytest.approx(0.5) and shares[104] == pytest.approx(0)
    assert all(later <= earlier for earlier, later in pairwise(shares[3:]))
    assert warmup_cosine(0, 0, 10) == 1.0


def test_only_matrices_and_kernels_decay():
    network = create_model("mobilenet_v4_nano", 1, 10)
    decayed, kept = parameter_groups(network, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2, 4} and {p.dim() for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(network.parameters()))


def test_average_follows_the_formula():
    network, expected = th.nn.BatchNorm1d(1), 0.0
    averaged = AveragedModel(network, avg_fn=moving_average(0.6), use_buffers=True)
    for step in range(20):  # the start, where the decay still grows, and beyond
        th.nn.init.constant_(network.weight, float(step))
        network.num_batches_tracked += 1
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step if step else 0.0  # the first is copied
        averaged.update_parameters(network)
    assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert averaged.module.num_batches_tracked == 20


def tiny_dataset(n=64):
    """Two classes of 8x8 noise, one dark and one light."""
    labels = th.arange(n) % 2
    noise = np.random.default_rng(0).integers(0, 80, (n, 1, 8, 8))
    pixels = th.from_numpy((noise + 150 * labels.view(-1, 1, 1, 1).numpy()).astype(np.uint8))
    return make_dataset("tiny", ("dark", "light"), Images(pixels, labels), None, None, seed=0, image_size=8)


CONFIG = ClassifyConfig(
    epochs=4, warmup_epochs=1, batch_size=16, learning_rate=0.01, ema_decay=0.9, dropout=0.45, drop_path=0.2,
    shift=0.125, device="cpu",
)  # fmt: skip


def make_trainer(dataset=None, **changes):
    return Trainer(replace(CONFIG, **changes), dataset or tiny_dataset())


def equal(first, second):
    return all(th.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_it_learns_and_evaluates_the_average():
    trainer = make_trainer()
    assert trainer.network.head.dropout.p == 0.45
    losses = [trainer.train_epoch() for _ in range(4)]
    assert losses[-1] < losses[0]
    evaluation = trainer.evaluate(trainer.dataset.test)
    assert evaluation.accuracy == 1
    with th.no_grad():
        logits = trainer.kept(trainer._normalised(trainer.dataset.test.pixels))
    assert th.equal(evaluation.predictions, logits.argmax(1))
    assert not equal(trainer.network.state_dict(), trainer.kept.state_dict())


def test_settings_reach_the_network_the_loss_and_the_optimiser():
    trainer = make_trainer(weight_decay=0.3)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.3, 0.0]
    rates = [module.rate for module in trainer.network.modules() if isinstance(module, DropPath)]
    assert 0 < max(rates) < 0.2  # the peak is reached behind the last block
    plain, smoothed = (make_trainer(label_smoothing=share, epochs=2).train_epoch() for share in (0.0, 0.9))
    assert abs(plain - smoothed) > 0.01


def test_continuing_is_the_same_as_never_stopping():
    whole = make_trainer()
    for _ in range(4):
        whole.train_epoch()
    first, second = make_trainer(), make_trainer()
    first.train_epoch()
    first.train_epoch()
    th.rand(100)  # whatever happens between two sessions
    second.load_state(first.state())
    second.train_epoch()
    second.train_epoch()
    assert equal(whole.network.state_dict(), second.network.state_dict())
    assert equal(whole.kept.state_dict(), second.kept.state_dict())


def test_the_seed_changes_the_run():
    trainers = [make_trainer(seed=seed) for seed in (0, 1)]
    trainers[1].network.load_state_dict(trainers[0].network.state_dict())
    for trainer in trainers:
        trainer.train_epoch()
    assert not equal(trainers[0].network.state_dict(), trainers[1].network.state_dict())


def test_other_images_are_noticed():
    trainer, dataset = make_trainer(), tiny_dataset()
    assert fingerprint(dataset) == fingerprint(tiny_dataset())
    dataset.test.pixels[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="not those the run was started with"):
        trainer.load_state(make_trainer(dataset=dataset).state())


def test_a_batch_larger_than_the_data_is_all_of_them():
    trainer = make_trainer(batch_size=4096)
    assert (trainer.batch_size, trainer.n_batches) == (len(trainer.dataset.train), 1)


def test_a_loss_that_is_no_number_stops_with_advice():
    trainer = make_trainer(learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(FloatingPointError, match=r"loss became .* in epoch .* lower --learning-rate"):
        for _ in range(4):
            trainer.train_epoch()


def test_a_test_is_counted_by_true_rows_and_predicted_columns(tmp_path):
    evaluation = Evaluation(0.0, th.tensor([0, 1, 1, 2]), th.tensor([0, 0, 1, 2]))
    write_test(tmp_path, evaluation, ("a", "b", "c"), "title")
    assert (tmp_path / "confusion.csv").read_text().split() == ["true/predicted,a,b,c", "a,1,1,0", "b,0,1,0", "c,0,0,1"]
    assert json.loads((tmp_path / "test.json").read_text())["accuracy"] == 0.75


def test_a_class_may_be_called_true(tmp_path):
    write_test(tmp_path, Evaluation(0.0, th.tensor([0, 0, 1]), th.tensor([0, 1, 1])), ("false", "true"), "title")
    rows = read_csv(tmp_path / "confusion.csv")
    assert [list(row.values()) for row in rows] == [["false", "1", "0"], ["true", "1", "1"]]


def test_interval_of_a_known_case():
    """By hand from Wilson's formula."""
    right = th.zeros(360, dtype=th.int64)
    wrong = th.cat([right[:355], right[355:] + 1])
    assert interval(Evaluation(0.0, wrong, right)) == pytest.approx((0.96792, 0.99406), abs=1e-4)


@pytest.mark.parametrize("n_classes", [2, 30, 100])
def test_confusion_is_drawn_for_any_number_of_classes(tmp_path, n_classes):
    names = tuple(f"class {i}" for i in range(n_classes))
    draw_confusion(tmp_path / "confusion.png", np.eye(n_classes, dtype=int), names, "title")
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
