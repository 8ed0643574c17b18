"""Known facts about the real data sets, if TFDS_DATA_DIR has prepared copies of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from inner_tasks.datasets import Dataset, load_dataset


def load_real(name: str, cache: Path) -> Dataset:
    """Load a set with an empty cache."""
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not (Path(data_dir) / name).exists():
        pytest.skip(f"TFDS_DATA_DIR is not set, or has no prepared copy of {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEARNED_OPT_CACHE", str(cache))
        return load_dataset(name)


def all_training(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    train, validation = dataset.train, dataset.validation
    images = np.concatenate([train.images, validation.images])
    return images, np.concatenate([train.labels, validation.labels])


def test_mnist(tmp_path: Path):
    mnist = load_real("mnist", tmp_path)
    assert [split.images.shape for split in mnist[:3]] == [(50000, 784), (10000, 784), (10000, 784)]
    images, labels = all_training(mnist)
    assert images.mean() / 255 == pytest.approx(0.13066, abs=1e-5)
    assert np.sqrt(np.square(images, dtype=np.float64).mean() - images.mean() ** 2) / 255 == (
        pytest.approx(0.30811, abs=1e-5)
    )
    # The known numbers of zeros, ones, ... in the set.
    known = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(labels).tolist() == known
    known = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.test.labels).tolist() == known
    # Close to the moments of the whole set, because they are those of five sixths of it.
    assert mnist.mean / 255 == pytest.approx(0.13066, rel=0.01)
    assert mnist.std / 255 == pytest.approx(0.30811, rel=0.01)


@pytest.mark.slow
def test_cifar10(tmp_path: Path):
    cifar = load_real("cifar10", tmp_path)
    shapes = [(40000, 3072), (10000, 3072), (10000, 3072)]
    assert [split.images.shape for split in cifar[:3]] == shapes
    images, labels = all_training(cifar)
    assert np.bincount(labels).tolist() == [5000] * 10
    assert np.bincount(cifar.test.labels).tolist() == [1000] * 10
    # The known means of red, green and blue, within the differences of a JPEG copy.
    means = images.reshape(-1, 3).mean(axis=0) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=2e-3)
