"""Data sources: what is read is what was written, and what is wrong is named."""

import gzip
import pickle

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.classification.images import Dataset, Images, make_dataset, stratified_split
from experiments.classification.sources import load_dataset, read_cifar_pickle, read_idx
from tests.experiments.classification.image_folders import idx_bytes, random_pixels, write_folder, write_image

LABELS = np.arange(40, dtype=np.uint8) % 10


def test_digits_splits_do_not_overlap_and_cover_all_images():
    digits = load_dataset("digits", seed=0, image_size=8)
    assert [len(digits.train), len(digits.validation), len(digits.test)] == [1294, 144, 359]
    assert digits.in_channels == 1 and len(digits.class_names) == 10 and not digits.mirrors
    rows = th.cat([digits.train.pixels, digits.validation.pixels, digits.test.pixels]).flatten(1)
    from sklearn.datasets import load_digits

    source = np.round(load_digits().images * (255 / 16)).astype(np.uint8).reshape(1797, -1)
    assert sorted(map(bytes, rows.numpy())) == sorted(map(bytes, source))


def test_the_seed_alone_decides_the_split():
    tests = [load_dataset("digits", seed, 8).test.pixels for seed in (0, 0, 1)]
    assert th.equal(tests[0], tests[1]) and not th.equal(tests[0], tests[2])


@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.floats(0.01, 0.5), st.integers(0, 99))
@settings(deadline=None)
def test_split_takes_the_same_share_of_every_class(counts, fraction, seed):
    labels = th.repeat_interleave(th.arange(len(counts)), th.tensor(counts))
    images = Images(th.arange(len(labels)).view(-1, 1, 1, 1), labels)
    rest, part = stratified_split(images, fraction, seed)
    assert len(part) == max(len(counts), round(len(labels) * fraction))
    share = len(part) / len(labels)
    taken = th.bincount(part.labels, minlength=len(counts))
    assert (th.bincount(rest.labels, minlength=len(counts)) > 0).all()
    assert all(abs(n - share * count) <= 1 for n, count in zip(taken.tolist(), counts, strict=True))
    assert sorted(rest.pixels.flatten().tolist() + part.pixels.flatten().tolist()) == list(range(len(labels)))


@pytest.fixture
def mnist(tmp_path):
    for part, n in (("train", 40), ("t10k", 20)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(random_pixels(n, 28, 28)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[:n])))
    return tmp_path


def test_mnist_files_plain_and_gzipped(mnist):
    dataset = load_dataset(str(mnist), seed=0)
    assert dataset.test.pixels[:, 0].numpy().tobytes() == random_pixels(20, 28, 28).tobytes()
    assert dataset.test.labels.tolist() == LABELS[:20].tolist()
    assert len(dataset.train) == 30 and len(dataset.validation) == 10 and not dataset.mirrors


def test_emnists_names_have_the_split_in_front(mnist):
    for path in sorted(mnist.iterdir()):
        path.rename(mnist / f"emnist-balanced-{path.name.replace('t10k', 'test')}")
    dataset = load_dataset(str(mnist), seed=0)
    assert dataset.test.pixels[:, 0].numpy().tobytes() == random_pixels(20, 28, 28).tobytes()
    assert dataset.test.labels.tolist() == LABELS[:20].tolist() and len(dataset.train) == 30
    (mnist / "emnist-letters-train-images-idx3-ubyte").touch()
    with pytest.raises(ValueError, match=r"emnist-balanced, emnist-letters.*leave one"):
        load_dataset(str(mnist), seed=0)


def test_idx_with_a_wrong_magic_number_is_refused(mnist):
    (mnist / "t10k-images-idx3-ubyte").write_bytes(b"\x00\x00\x0d\x03" + bytes(100))
    with pytest.raises(ValueError, match=r"t10k-images.*0x00000d03.*0x00000803"):
        load_dataset(str(mnist), seed=0)


def test_truncated_idx_is_refused(mnist):
    path = mnist / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is truncated: 31,359 .* 31,360"):
        load_dataset(str(mnist), seed=0)


def test_broken_gzip_is_refused(mnist):
    path = mnist / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        load_dataset(str(mnist), seed=0)


def test_missing_mnist_file_is_named(mnist):
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load_dataset(str(mnist), seed=0)


def test_label_outside_the_classes_is_refused(mnist):
    labels = LABELS[:20].copy()
    labels[7] = 11
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    with pytest.raises(ValueError, match=r"test images .* 1 labels outside the 10 classes .* first is 11"):
        load_dataset(str(mnist), seed=0)


def test_empty_test_set_is_refused(mnist):
    (mnist / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((0, 28, 28), np.uint8)))
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[:0])))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is empty"):
        load_dataset(str(mnist), seed=0)
    images = Images(th.zeros(8, 1, 4, 4, dtype=th.uint8), th.arange(8) % 2)
    with pytest.raises(ValueError, match="no test images of x"):
        make_dataset("x", ("a", "b"), images, None, images[th.arange(0)], 0, 4)


def cifar_record(label: bytes, pixels: np.ndarray) -> bytes:
    return label + pixels.tobytes()


def test_cifar10_binary(tmp_path):
    pixels = random_pixels(40, 3, 32, 32)
    content = b"".join(cifar_record(bytes([n]), image) for n, image in zip(LABELS, pixels, strict=True))
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / f"{name}.bin").write_bytes(content)
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    dataset = load_dataset(str(tmp_path), seed=0)
    assert np.array_equal(dataset.test.pixels.numpy(), pixels)
    assert dataset.test.labels.tolist() == LABELS.tolist()
    assert dataset.class_names == tuple("abcdefghij") and dataset.mirrors
    (tmp_path / "data_batch_4.bin").write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"data_batch_4\.bin is truncated"):
        load_dataset(str(tmp_path), seed=0)


def test_cifar100_binary_uses_the_fine_label(tmp_path):
    pixels = random_pixels(300, 3, 32, 32)
    content = b"".join(cifar_record(bytes([5, n % 100]), image) for n, image in enumerate(pixels))
    for part in ("train", "test"):
        (tmp_path / f"{part}.bin").write_bytes(content)
    dataset = load_dataset(str(tmp_path), seed=0)
    assert len(dataset.class_names) == 100
    assert dataset.test.labels.tolist() == [n % 100 for n in range(300)]
    assert np.array_equal(dataset.test.pixels.numpy(), pixels)


def test_cifar_pickles_hold_arrays_and_nothing_else(tmp_path):
    pixels, path = random_pixels(4, 3072), tmp_path / "data_batch_1"
    content = pickle.dumps({"data": pixels, "labels": [3, 1, 4, 1]}, protocol=2)
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))  # numpy's name when CIFAR was published
    read, labels = read_cifar_pickle(path, "labels")
    assert read.reshape(4, -1).tobytes() == pixels.tobytes() and labels.tolist() == [3, 1, 4, 1]
    for broken in (b"", b"not a pickle", path.read_bytes()[:50]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="not unpickled"):
            read_cifar_pickle(path, "labels")


def test_cifar_pickle_that_runs_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Attack(), "labels": []}))
    with pytest.raises(ValueError, match=r"not unpickled \(it asks for .*binary version"):
        read_cifar_pickle(path, "labels")
    assert not (tmp_path / "ran").exists()


def test_folder_of_grey_and_of_colour_images(tmp_path):
    grey = load_dataset(str(write_folder(tmp_path / "grey")), seed=0)
    assert (grey.in_channels, grey.image_size, grey.class_names) == (1, 8, ("dark", "light"))
    write_image(tmp_path / "grey" / "dark" / "colour.png", 40, mode="RGB")
    assert load_dataset(str(tmp_path / "grey"), seed=0).in_channels == 3


def test_folder_images_are_cut_to_their_centre(tmp_path):
    write_folder(tmp_path)
    left_white = np.zeros((8, 24), np.uint8)
    left_white[:, :8] = 255
    for index in range(12):
        Image.fromarray(left_white).save(tmp_path / "dark" / f"{index:02d}.png")
    images = load_dataset(str(tmp_path), seed=0).train
    assert images.pixels[images.labels == 0].max() == 0


def test_sixteen_bit_images_keep_their_upper_byte(tmp_path):
    write_folder(tmp_path)
    for index in range(12):
        Image.fromarray(np.full((8, 8), 0x40FF, np.uint16)).save(tmp_path / "dark" / f"{index:02d}.png")
    images = load_dataset(str(tmp_path), seed=0).train
    assert (images.pixels[images.labels == 0] == 0x40).all()


@pytest.mark.parametrize(("level", "kept"), [(0xFF, 0xFF), (0x40FF, 0x40)])
def test_integers_are_bytes_unless_one_is_larger(tmp_path, level, kept):
    write_folder(tmp_path)
    for index in range(12):
        (tmp_path / "dark" / f"{index:02d}.png").unlink()
        Image.fromarray(np.full((8, 8), level, np.int32)).save(tmp_path / "dark" / f"{index:02d}.tif")
    images = load_dataset(str(tmp_path), seed=0).train
    assert (images.pixels[images.labels == 0] == kept).all()


def test_an_image_of_floats_is_refused_by_name(tmp_path):
    write_folder(tmp_path)
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "dark" / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif .*floats.*save it with 8 or 16 bits"):
        load_dataset(str(tmp_path), seed=0)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train", "test"), (22, 2, 24)),
        (("train", "val"), (22, 2, 24)),
        (("train", "val", "test"), (24, 24, 24)),
        (("train",), (17, 2, 5)),
    ],
)
def test_split_folders(tmp_path, splits, sizes):
    for split in splits:
        write_folder(tmp_path / split)
    dataset = load_dataset(str(tmp_path), seed=0)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == sizes


def test_a_class_called_train_is_a_class(tmp_path):
    dataset = load_dataset(str(write_folder(tmp_path, classes=("car", "plane", "train"))), seed=0)
    assert dataset.class_names == ("car", "plane", "train")


def test_folder_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*digits, or a folder"):
        load_dataset(str(tmp_path / "nowhere"), seed=0)
    with pytest.raises(ValueError, match="has no subfolders"):
        load_dataset(str(tmp_path), seed=0)
    write_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no images"):
        load_dataset(str(tmp_path), seed=0)
    (tmp_path / "empty").rmdir()
    write_image(tmp_path / "few" / "only.png", 9)
    with pytest.raises(ValueError, match=r"'few' .* has 1 training images and needs at least 3"):
        load_dataset(str(tmp_path), seed=0)


def test_test_class_that_is_not_trained_is_refused(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", classes=("dark", "light", "purple"))
    with pytest.raises(ValueError, match="class 'purple', which is not among the training classes"):
        load_dataset(str(tmp_path), seed=0)


def test_corrupt_image_is_refused_by_name_or_skipped_by_count(tmp_path):
    path = write_folder(tmp_path) / "dark" / "03.png"
    whole = path.read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"03\.png is not a readable image .*--on-corrupt skip"):
            load_dataset(str(tmp_path), seed=0)
        dataset = load_dataset(str(tmp_path), seed=0, on_corrupt="skip")
        assert dataset.skipped == 1
        assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 23
        assert "1 unreadable images skipped" in dataset.describe()


def test_statistics_are_those_of_the_training_pixels(tmp_path):
    dataset = load_dataset(str(write_folder(tmp_path, mode="RGB")), seed=0)
    values = dataset.train.pixels.double() / 255
    mean, deviation = dataset.statistics()
    assert mean.flatten().tolist() == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert deviation.flatten().tolist() == pytest.approx(values.std((0, 2, 3), correction=0).tolist())


def test_statistics_of_many_images_are_of_all_of_them_not_of_the_first(monkeypatch):
    """A folder's images come class by class: the first thousand may all be dark."""
    monkeypatch.setattr("experiments.classification.images.PIECE", 10)
    pixels = th.cat([th.zeros(50, 1, 2, 2), th.full((50, 1, 2, 2), 255)]).to(th.uint8)
    images = Images(pixels, th.arange(100) // 50)
    dataset = Dataset(name="x", class_names=("dark", "light"), train=images, validation=images, test=images)
    mean, deviation = dataset.statistics()
    assert (mean.item(), deviation.item()) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.5, abs=0.05))


def test_read_idx_of_any_shape(tmp_path):
    for shape in ((3, 2, 5), (1, 1, 1)):
        values = random_pixels(*shape)
        (tmp_path / "x").write_bytes(idx_bytes(values))
        assert np.array_equal(read_idx(tmp_path / "x", 3), values)
