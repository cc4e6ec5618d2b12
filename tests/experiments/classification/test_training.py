"""Recipes, schedule, averages, and what a training run leaves."""

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch as th

from experiments.classification.images import Images, make_dataset
from experiments.classification.recipes import RECIPES, Overrides, Recipe, get_recipe
from experiments.classification.report import confusion_matrix, draw_confusion, wilson_interval
from experiments.classification.training import (
    Evaluation,
    Trainer,
    fingerprint,
    parameter_groups,
    set_dropout,
    update_average,
    warmup_cosine,
)
from mnv4_rl import create_model
from mnv4_rl.models import mobilenet_v4_custom

# MobileNetV4, arXiv:2404.10518, table 10.
TABLE_10 = {
    "paper_conv_s": (4096, 0.002, 9600, 5, 0.01, 0.6, 1e-6, 0.9999, 1e-5, 0.3, 0, 0.5, 9, 0),
    "paper_conv_m": (4096, 0.004, 500, 5, 0.1, 0.9, 1e-7, 0, 0, 0.2, 0.075, 0.7, 15, 0),
    "paper_hybrid_m": (16384, 0.016, 500, 20, 0.1, 0.9, 1e-7, 0, 0, 0.2, 0.075, 0.7, 15, 0),
    "paper_conv_l": (16384, 0.004, 500, 20, 0.2, 0.9, 1e-7, 0, 0, 0.2, 0.35, 1.0, 15, 0.3),
    "paper_hybrid_l": (16384, 0.01, 500, 20, 0.2, 0.9, 1e-7, 0, 0, 0.2, 0.35, 1.0, 15, 0.3),
}
COLUMNS = (
    "batch_size", "learning_rate", "epochs", "warmup_epochs", "weight_decay", "beta1", "epsilon", "ema_decay", "l2",
    "dropout", "drop_path", "randaugment_prob", "randaugment_magnitude", "mix_prob",
)  # fmt: skip


@pytest.mark.parametrize("name", TABLE_10)
def test_paper_recipes_are_table_10(name):
    recipe = RECIPES[name]
    assert tuple(getattr(recipe, column) for column in COLUMNS) == TABLE_10[name]
    assert (recipe.label_smoothing, recipe.beta2, recipe.randaugment_layers) == (0.1, 0.999, 2)
    assert (recipe.mixup_alpha, recipe.cutmix_alpha) == ((0.8, 1.0) if recipe.mix_prob else (0, 0))


def test_every_setting_of_a_recipe_is_a_flag():
    assert [f.name for f in fields(Overrides)] == [f.name for f in fields(Recipe)]


def test_overrides_replace_what_they_name():
    recipe = get_recipe("digits", Overrides(epochs=7, label_smoothing=0.0))
    assert recipe == replace(RECIPES["digits"], epochs=7, label_smoothing=0.0)


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("digit", Overrides(), r"no recipe called 'digit'. Did you mean 'digits'"),
        ("digits", Overrides(epochs=0), r"epochs must lie in \[1, inf\), got 0"),
        ("digits", Overrides(epochs=2), r"warmup_epochs \(2\) must be fewer than epochs \(2\)"),
        ("digits", Overrides(batch_size=1), r"batch_size must lie in \[2"),
        ("digits", Overrides(label_smoothing=1.0), r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ("digits", Overrides(randaugment_magnitude=31), r"randaugment_magnitude must lie in \[0, 30\]"),
        ("digits", Overrides(learning_rate=float("nan")), "learning_rate must lie in"),
    ],
)
def test_wrong_recipes_are_refused(name, overrides, says):
    with pytest.raises(ValueError, match=says):
        get_recipe(name, overrides)


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
    network, averaged = th.nn.BatchNorm1d(1), th.nn.BatchNorm1d(1)
    expected = 1.0
    for step in range(20):  # the start, where the decay still grows, and beyond
        value = float(step)
        th.nn.init.constant_(network.weight, value)
        network.num_batches_tracked += 1
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        update_average(averaged, network, 0.6, step)
    assert averaged.weight.item() == pytest.approx(expected, rel=1e-4)
    assert averaged.num_batches_tracked == 20


def test_dropout_is_set_in_the_head():
    network = create_model("mobilenet_v4_nano", 1, 10)
    set_dropout(network, 0.45)
    assert network.head.dropout.p == 0.45


def tiny_dataset(n=64):
    """Two classes of 8x8 noise, one dark and one light."""
    labels = th.arange(n) % 2
    noise = np.random.default_rng(0).integers(0, 80, (n, 1, 8, 8))
    pixels = th.from_numpy((noise + 150 * labels.view(-1, 1, 1, 1).numpy()).astype(np.uint8))
    return make_dataset("tiny", ("dark", "light"), Images(pixels, labels), None, None, seed=0, image_size=8)


RECIPE = Recipe(
    epochs=4, warmup_epochs=1, batch_size=16, learning_rate=0.01, weight_decay=0.05, l2=1e-4, ema_decay=0.9,
    drop_path=0.2, shift=0.125, randaugment_prob=0.5, mix_prob=0.5, mixup_alpha=0.2, cutmix_alpha=1.0,
)  # fmt: skip


def make_trainer(recipe=RECIPE, seed=0, dataset=None, num_classes=2):
    th.manual_seed(seed)
    return Trainer(mobilenet_v4_custom(1, num_classes), dataset or tiny_dataset(), recipe, seed, th.device("cpu"))


def equal(first, second):
    return all(th.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_it_learns_and_evaluates_the_average():
    trainer = make_trainer()
    losses = [trainer.train_epoch() for _ in range(4)]
    assert losses[-1] < losses[0]
    evaluation = trainer.evaluate(trainer.dataset.test)
    assert evaluation.accuracy == 1
    with th.no_grad():
        logits = trainer.averaged(trainer._normalised(trainer.dataset.test.pixels))
    assert th.equal(evaluation.predictions, logits.argmax(1))
    assert not equal(trainer.network.state_dict(), trainer.averaged.state_dict())


def test_continuing_is_the_same_as_never_stopping():
    whole = make_trainer()
    for _ in range(4):
        whole.train_epoch()
    first, second = make_trainer(), make_trainer(seed=0)
    first.train_epoch()
    first.train_epoch()
    th.rand(100)  # whatever happens between two sessions
    second.load_state(first.state())
    second.train_epoch()
    second.train_epoch()
    assert equal(whole.network.state_dict(), second.network.state_dict())
    assert equal(whole.averaged.state_dict(), second.averaged.state_dict())


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
    trainer = make_trainer(replace(RECIPE, batch_size=4096))
    assert (trainer.batch_size, trainer.n_batches) == (len(trainer.dataset.train), 1)


def test_a_loss_that_is_no_number_stops_with_advice():
    trainer = make_trainer(replace(RECIPE, learning_rate=1e30, warmup_epochs=0))
    with pytest.raises(FloatingPointError, match=r"loss became .* in epoch .* lower --learning-rate"):
        for _ in range(4):
            trainer.train_epoch()


def test_confusion_counts_true_rows_and_predicted_columns():
    evaluation = Evaluation(0.0, th.tensor([0, 1, 1, 2]), th.tensor([0, 0, 1, 2]))
    assert confusion_matrix(evaluation, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert evaluation.accuracy == 0.75


def test_wilson_interval_of_a_known_case():
    # scipy.stats.binomtest(355, 360).proportion_ci(method="wilson")
    assert wilson_interval(355, 360) == pytest.approx((0.96792, 0.99406), abs=1e-4)
    assert wilson_interval(10, 10)[1] == 1.0


@pytest.mark.parametrize("n_classes", [2, 30, 100])
def test_confusion_is_drawn_for_any_number_of_classes(tmp_path, n_classes):
    names = tuple(f"class {i}" for i in range(n_classes))
    draw_confusion(tmp_path / "confusion.png", np.eye(n_classes, dtype=int), names, "title")
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
