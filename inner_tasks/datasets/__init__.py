"""Data sets as NumPy arrays: the bundled digits, and MNIST, Fashion-MNIST and CIFAR-10 from TFDS.

Nothing here needs TensorFlow. TFDS is imported only when one of its sets is read for the first time.
"""

from __future__ import annotations

import math
from pathlib import Path

from inner_tasks.datasets.digits import load_digits
from inner_tasks.datasets.splits import Dataset, Split, pooled
from inner_tasks.datasets.tfds_source import load_tfds
from learned_opt._src.errors import UserError

__all__ = [
    "CLASSES",
    "DATASET_NAMES",
    "IMAGE_SHAPES",
    "IMAGE_SIZES",
    "Dataset",
    "Split",
    "load_dataset",
    "pooled",
]

IMAGE_SHAPES: dict[str, tuple[int, int, int]] = {  # height, width, channels
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
}
IMAGE_SIZES: dict[str, int] = {name: math.prod(shape) for name, shape in IMAGE_SHAPES.items()}
CLASSES: dict[str, int] = dict.fromkeys(IMAGE_SIZES, 10)
DATASET_NAMES: tuple[str, ...] = tuple(IMAGE_SIZES)


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set, split into train, validation and test with a fixed seed.

    `digits` comes with scikit-learn. The others are read from prepared TFDS sets. If there is no prepared
    set, the official files are downloaded and prepared, without TensorFlow. Official files that are already
    in `<data_dir>/downloads/manual/<name>`, or in TFDS's `<data_dir>/downloads/manual`, under their official
    names, are used instead of a download. The decoded arrays are kept in the user's cache folder
    (`LEARNED_OPT_CACHE`, else `$XDG_CACHE_HOME/learned-opt`, else `~/.cache/learned-opt`).

    Args:
        name: one of `DATASET_NAMES`.
        data_dir: folder of TFDS sets; by default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
        Images as uint8 `[n, IMAGE_SIZES[name]]` and labels as int32 `[n]` in 0..9, for each split.

    Raises:
        UserError: the name is unknown, the data is missing and cannot be downloaded, or it is unreadable.
        LearnedOptError: the disk failed while the data was being prepared.

    Example:
        >>> load_dataset("digits").train.images.shape
        (1400, 64)
    """
    if name not in DATASET_NAMES:
        raise UserError(f"There is no data set {name!r}; available: {', '.join(DATASET_NAMES)}.")
    return load_digits() if name == "digits" else load_tfds(name, IMAGE_SIZES[name], data_dir)
