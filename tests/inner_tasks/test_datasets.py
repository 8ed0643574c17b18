"""Data sets: the digits, prepared TFDS copies, and the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from inner_tasks.datasets import (
    CLASSES,
    DATASET_NAMES,
    IMAGE_SIZES,
    Dataset,
    Split,
    load_dataset,
    pooled,
    tfds_source,
)
from learned_opt._src.errors import UserError
from tests.inner_tasks.tfds_fixture import SHAPES, random_splits, write_tfds

TFDS_NAMES = DATASET_NAMES[1:]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LEARNED_OPT_CACHE", str(folder))
    return folder


def rows(*splits) -> np.ndarray:
    """Images with their labels, sorted, to compare collections regardless of order."""
    table = np.concatenate([np.column_stack([split.images, split.labels]) for split in splits])
    return table[np.lexsort(table.T)]


def assert_equal(left: Dataset, right: Dataset) -> None:
    for a, b in zip((*left[0], *left[1], *left[2]), (*right[0], *right[1], *right[2]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert left[3:] == right[3:]


# --- The digits ---


def test_digits_are_those_of_scikit_learn_each_in_one_split():
    digits = load_dataset("digits")
    assert [len(split.labels) for split in digits[:3]] == [1400, 197, 200]
    for split in digits[:3]:
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.images.shape == (len(split.labels), IMAGE_SIZES["digits"])
    bunch = sklearn.datasets.load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    np.testing.assert_array_equal(rows(*digits[:3]), expected[np.lexsort(expected.T)])


def test_digits_split_never_changes():
    labels = [split.labels.astype(np.uint8).tobytes() for split in load_dataset("digits")[:3]]
    assert hashlib.sha256(b"|".join(labels)).hexdigest() == (
        "d0077a330669e054fbb9e0edd8d11fc288c3131165a833f6ff47e2df07498ac2"
    )


def test_digits_need_no_folder_and_no_tfds(tmp_path: Path):
    load_dataset("digits", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


# --- Prepared TFDS copies ---


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_prepared_copy_is_read_pixel_for_pixel(name: str, tmp_path: Path):
    splits = random_splits(name, train=60, test=20)
    write_tfds(name, tmp_path, splits)
    dataset = load_dataset(name, tmp_path)
    images, labels = splits["train"]
    held_out = {"mnist": 10, "fashion_mnist": 10, "cifar10": 12}[name]
    order = np.random.RandomState(0).permutation(60)
    for split, chosen in (
        (dataset.validation, order[:held_out]),
        (dataset.train, order[held_out:]),
    ):
        np.testing.assert_array_equal(split.images, images[chosen].reshape(len(chosen), -1))
        np.testing.assert_array_equal(split.labels, labels[chosen])
    np.testing.assert_array_equal(dataset.test.images, splits["test"][0].reshape(20, -1))
    np.testing.assert_array_equal(dataset.test.labels, splits["test"][1])
    for split in dataset[:3]:
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.images.shape[1] == IMAGE_SIZES[name] == np.prod(SHAPES[name])
    assert CLASSES[name] == 10


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_moments_are_those_of_the_training_pixels(name: str, tmp_path: Path):
    if name != "digits":
        write_tfds(name, tmp_path, random_splits(name))
    dataset = load_dataset(name, tmp_path)
    pixels = dataset.train.images.astype(np.float64)
    assert dataset.mean.dtype == dataset.std.dtype == np.float32
    assert dataset.mean == pytest.approx(pixels.mean(), rel=1e-6)
    assert dataset.std == pytest.approx(pixels.std(), rel=1e-6)


def test_more_images_than_a_chunk(tmp_path: Path):
    splits = random_splits("mnist", train=1003, test=1000)
    write_tfds("mnist", tmp_path, splits)
    dataset = load_dataset("mnist", tmp_path)
    np.testing.assert_array_equal(dataset.test.images, splits["test"][0].reshape(1000, -1))
    images = np.concatenate([dataset.validation.images, dataset.train.images])
    order = np.random.RandomState(0).permutation(1003)
    np.testing.assert_array_equal(images, splits["train"][0].reshape(1003, -1)[order])


def test_data_dir_then_environment_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = {}
    for i, place in enumerate(("argument", "variable", "home/tensorflow_datasets")):
        splits = random_splits("mnist", seed=i)
        write_tfds("mnist", tmp_path / place, splits)
        folders[place] = splits["test"][1]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))

    def labels(data_dir: Path | None = None) -> np.ndarray:
        return load_dataset("mnist", data_dir).test.labels

    np.testing.assert_array_equal(labels(tmp_path / "argument"), folders["argument"])
    np.testing.assert_array_equal(labels(), folders["variable"])
    monkeypatch.delenv("TFDS_DATA_DIR")
    np.testing.assert_array_equal(labels(), folders["home/tensorflow_datasets"])


def test_the_newest_version_counts_and_unfinished_ones_do_not(tmp_path: Path):
    old, new = random_splits("mnist", seed=1), random_splits("mnist", seed=2)
    parent = write_tfds("mnist", tmp_path, old).parent
    (parent / "3.0.1").rename(parent / "3.0.2")
    write_tfds("mnist", tmp_path, new)
    (parent / "3.0.1").rename(parent / "3.0.10")
    write_tfds("mnist", tmp_path, old)
    (parent / "3.0.1").rename(parent / "incomplete.ABCDEF_9.0.0")
    np.testing.assert_array_equal(load_dataset("mnist", tmp_path).test.labels, new["test"][1])


def test_reading_is_quiet_but_for_its_progress(tmp_path: Path):
    write_tfds("mnist", tmp_path, random_splits("mnist"))
    code = "from inner_tasks.datasets import load_dataset as l; import sys; l('mnist', sys.argv[1])"
    code += "; print('tensorflow' in sys.modules, 'tensorflow_datasets' in sys.modules)"
    outputs = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
        )
        outputs.append((run.stdout.split(), run.stderr.strip().splitlines()))
    (first, first_errors), (second, second_errors) = outputs
    assert first == ["False", "True"]
    assert len(first_errors) == 1 and "80/80 images" in first_errors[0]
    assert second == ["False", "False"]  # the cache needs no TFDS
    assert second_errors == []


def test_unknown_name():
    with pytest.raises(UserError, match="'imagenet'.*digits, mnist, fashion_mnist, cifar10"):
        load_dataset("imagenet")


def test_copy_in_a_format_that_needs_tensorflow(tmp_path: Path):
    folder = write_tfds("mnist", tmp_path, random_splits("mnist"))
    for file in folder.glob("*.array_record*"):
        file.rename(str(file).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="array_record") as caught:
        load_dataset("mnist", tmp_path)
    assert str(folder) in str(caught.value) and "--data-dir" in str(caught.value)


@pytest.mark.parametrize("damage", ["missing split", "short file", "wrong shape"])
def test_damaged_copy(damage: str, tmp_path: Path):
    folder = write_tfds("mnist", tmp_path, random_splits("mnist"))
    (file,) = folder.glob("*test.array_record*")
    if damage == "missing split":
        file.unlink()
    elif damage == "short file":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        folder.rename(tmp_path / "mnist" / "keep")
        write_tfds("cifar10", tmp_path, random_splits("cifar10")).rename(folder)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_dataset("mnist", tmp_path)
    assert str(folder) in str(caught.value)


# --- The cache ---


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_copy_that_names_code_is_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """TFDS would import the module of an unknown feature."""
    import tensorflow_datasets as tfds

    folder = write_tfds("mnist", tmp_path, random_splits("mnist"))
    module = f"my_evil_{key}"  # a new name, because Python imports each module once
    (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    label = features["featuresDict"]["features"]["label"]
    del label["pythonClassName"]
    label[key] = f"{module}.Label"
    if key == "type":
        label["content"] = {}
        features = {"type": features["pythonClassName"], "content": {"label": label}}
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=f"cannot be read .*'{module}.Label', which is not part of TFDS"):
        load_dataset("mnist", tmp_path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ValueError):
        tfds.builder_from_directory(folder)
    assert (tmp_path / "executed").exists()


@pytest.fixture
def cached(tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture) -> tuple[Dataset, Path, Path]:
    """A data set, the folder from which it was loaded, and its cache file."""
    write_tfds("mnist", tmp_path, random_splits("mnist"))
    dataset = load_dataset("mnist", tmp_path)
    (file,) = (cache / "datasets").iterdir()
    capfd.readouterr()
    return dataset, tmp_path, file


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*arguments: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(tfds_source, "decode", decode)


def test_cached_set_is_not_decoded_again(cached, monkeypatch, capfd):
    dataset, data_dir, _ = cached
    forbid_decoding(monkeypatch)
    assert_equal(load_dataset("mnist", data_dir), dataset)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "damage",
    {
        "empty": lambda data: b"",
        "cut in the digest": lambda data: data[:10],
        "cut in the middle": lambda data: data[: len(data) // 2],
        "last byte missing": lambda data: data[:-1],
        "one byte too many": lambda data: data + b"\0",
        "bit flipped in the digest": lambda data: flip(data, 3),
        "bit flipped in a header": lambda data: flip(data, 60),
        "bit flipped in an image": lambda data: flip(data, len(data) // 2),
        "bit flipped at the end": lambda data: flip(data, len(data) - 1),
    }.items(),
    ids=lambda item: item[0],
)
def test_damaged_cache_is_noticed_and_made_again(damage, cached, monkeypatch, capfd):
    dataset, data_dir, file = cached
    intact = file.read_bytes()
    file.write_bytes(damage[1](intact))
    assert_equal(load_dataset("mnist", data_dir), dataset)
    lines = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1 and str(file) in lines[0]
    assert file.read_bytes() == intact
    forbid_decoding(monkeypatch)
    assert_equal(load_dataset("mnist", data_dir), dataset)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_two_copies_do_not_share_a_cache_file(tmp_path: Path):
    for seed in range(2):  # with equal sizes and equal metadata
        splits = random_splits("mnist", seed=seed)
        write_tfds("mnist", tmp_path / str(seed), splits)
        labels = load_dataset("mnist", tmp_path / str(seed)).test.labels
        np.testing.assert_array_equal(labels, splits["test"][1])


def test_moved_copy_finds_its_cache_file(cached, monkeypatch):
    dataset, data_dir, _ = cached
    (data_dir / "elsewhere").mkdir()
    (data_dir / "mnist").rename(data_dir / "elsewhere" / "mnist")
    forbid_decoding(monkeypatch)
    assert_equal(load_dataset("mnist", data_dir / "elsewhere"), dataset)


def test_unusable_cache_folder_is_no_failure(tmp_path: Path, monkeypatch, capfd):
    splits = random_splits("mnist")
    write_tfds("mnist", tmp_path, splits)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEARNED_OPT_CACHE", str(tmp_path / "file" / "cache"))
    dataset = load_dataset("mnist", tmp_path)
    np.testing.assert_array_equal(dataset.test.labels, splits["test"][1])
    lines = [line for line in capfd.readouterr().err.splitlines() if "cache" in line]
    assert len(lines) == 1 and "Not a directory" in lines[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_read_only_cache_folder_is_no_failure(tmp_path: Path, cache: Path, capfd):
    write_tfds("mnist", tmp_path, random_splits("mnist"))
    cache.mkdir(mode=0o500)
    load_dataset("mnist", tmp_path)
    assert "Permission denied" in capfd.readouterr().err


def test_full_disk_leaves_no_part_of_a_cache_file(tmp_path: Path, cache: Path, monkeypatch, capfd):
    write_tfds("mnist", tmp_path, random_splits("mnist"))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    (cache / "datasets").mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", full)
    load_dataset("mnist", tmp_path)
    assert "No space left on device" in capfd.readouterr().err
    assert list((cache / "datasets").iterdir()) == []


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch):
    write_tfds("mnist", tmp_path, random_splits("mnist"))
    monkeypatch.delenv("LEARNED_OPT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_dataset("mnist", tmp_path)
    assert len(list((tmp_path / "xdg" / "learned-opt" / "datasets").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    load_dataset("mnist", tmp_path)
    assert len(list((tmp_path / "home/.cache/learned-opt/datasets").iterdir())) == 1


def test_a_user_without_a_home_is_no_failure(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LEARNED_OPT_CACHE", "~nobody-of-this-name/cache")
    monkeypatch.chdir(tmp_path)
    write_tfds("mnist", tmp_path, random_splits("mnist"))
    load_dataset("mnist", tmp_path)


def test_smaller_images_are_the_means_of_squares():
    images, labels = random_splits("cifar10")["train"]
    split = Split(images.reshape(len(images), -1), labels)
    full = Dataset(split, split, split, np.float32(0), np.float32(1))
    small = pooled(full, (32, 32, 3), 4)
    for split, whole in zip(small[:3], full[:3], strict=True):
        assert split.images.dtype == np.uint8
        np.testing.assert_array_equal(split.labels, whole.labels)
        for image, original in zip(split.images[:3], whole.images, strict=False):
            for row, column, channel in np.ndindex(8, 8, 3):
                square = [
                    int(original[((4 * row + i) * 32 + 4 * column + j) * 3 + channel])
                    for i in range(4)
                    for j in range(4)
                ]
                assert image[(row * 8 + column) * 3 + channel] == (sum(square) + 8) // 16
    assert small.mean == pytest.approx(small.train.images.mean(), rel=1e-6)
    assert pooled(full, (32, 32, 3), 1) is full
