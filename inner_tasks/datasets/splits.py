"""The format of data sets, and how they are split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images and their labels, as host arrays (a pytree)."""

    images: np.ndarray  # uint8 [n, height * width * channels]
    labels: np.ndarray  # int32 [n], the class of each image


class Dataset(NamedTuple):
    """Three disjoint splits, and the moments for standardising pixels (a pytree)."""

    train: Split
    validation: Split  # held out of the official training images
    test: Split
    mean: np.float32  # scalar, over all raw pixels of `train`
    std: np.float32  # scalar, over the same; population standard deviation


def permute(split: Split) -> Split:
    """Put the examples of a split in a fixed random order.

    Args:
        split: n examples.

    Returns:
        The same n examples; the order depends on n alone.
    """
    # NumPy guarantees that the stream of RandomState never changes; it does not for Generator.
    order = np.random.RandomState(0).permutation(len(split.labels))
    return Split(split.images[order], split.labels[order])


def cut(split: Split, at: int) -> tuple[Split, Split]:
    """Cut a split in two: the first `at` examples, and the rest."""
    return Split(split.images[:at], split.labels[:at]), Split(split.images[at:], split.labels[at:])


def pooled(dataset: Dataset, shape: tuple[int, int, int], side: int) -> Dataset:
    """Shrink images: each square of ``side * side`` pixels becomes one, its mean, to the nearest integer.

    Args:
        dataset: images of this shape.
        shape: height, width (both multiples of `side`) and channels.
        side: side of a square, in pixels.
    """
    if side == 1:
        return dataset
    height, width, channels = shape
    squares = (-1, height // side, side, width // side, side, channels)

    def smaller(split: Split) -> Split:
        total = split.images.reshape(squares).sum(axis=(2, 4), dtype=np.uint32)
        images = (total + side**2 // 2) // side**2
        return Split(images.astype(np.uint8).reshape(len(images), -1), split.labels)

    return make_dataset(*(smaller(split) for split in dataset[:3]))


def make_dataset(train: Split, validation: Split, test: Split) -> Dataset:
    """Join three splits, and compute the moments of the training pixels.

    The sums are integers, hence exact: every machine gets the same mean and standard deviation.
    """
    pixels = train.images.size
    total = int(train.images.sum(dtype=np.int64))
    squares = sum(  # in pieces, because the squares take four times the memory of the pixels
        int(np.square(piece, dtype=np.uint32).sum(dtype=np.int64))
        for piece in np.array_split(train.images, 64)
    )
    mean = total / pixels
    std = (pixels * squares - total**2) ** 0.5 / pixels
    return Dataset(train, validation, test, np.float32(mean), np.float32(std))
