"""Reading data sets that TFDS has prepared as array_record, without TensorFlow."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inner_tasks.datasets.cache import load_or_build
from inner_tasks.datasets.display import progress_bar
from inner_tasks.datasets.prepare import prepare
from inner_tasks.datasets.splits import Dataset, Split, cut, make_dataset, permute
from learned_opt._src.errors import UserError

_HELD_OUT = {"mnist": 6, "fashion_mnist": 6, "cifar10": 5}  # one in this many train images; 10,000 in all
_CHUNK = 1000  # reading examples one by one takes more than twice as long


def load_tfds(name: str, image_size: int, data_dir: str | Path | None) -> Dataset:
    """Load a TFDS set from the cache, or else from its prepared copy, which is made if necessary.

    Args:
        name: `mnist`, `fashion_mnist` or `cifar10`.
        image_size: pixels times channels of an image.
        data_dir: folder of TFDS sets, or None for TFDS's default.

    Raises:
        UserError: there is no copy and none can be made, or it cannot be read.
    """
    # The same rule as in TFDS, without importing TFDS.
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    data_dir = Path(os.path.expanduser(data_dir)).absolute()
    folder = find_prepared(name, data_dir) or prepare(name, data_dir)
    try:
        key = f"{name}-{folder.name}-{fingerprint(folder)}.arrays"
    except OSError as error:
        raise _unreadable(name, folder, error) from error
    return load_or_build(key, partial(decode, folder, name, image_size))


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """Find the newest prepared version of a set that can be read without TensorFlow.

    Returns:
        The folder `<data_dir>/<name>/<version>`, or None if no version is prepared.

    Raises:
        UserError: all versions are in a format that needs TensorFlow.
    """
    versions = [  # TFDS prepares in a folder with another name, and writes this file last
        file.parent
        for file in (data_dir / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name)
    ]
    versions.sort(key=lambda folder: [int(part) for part in folder.name.split(".")])
    readable = [folder for folder in versions if any(folder.glob("*.array_record*"))]
    if versions and not readable:
        raise UserError(
            f"The copy of {name} in '{versions[-1]}' is not in the array_record format, the only one "
            "that can be read without TensorFlow: set --data-dir or TFDS_DATA_DIR to another folder, "
            "which has a readable copy or where one will be made, or remove this copy."
        )
    return readable[-1] if readable else None


def fingerprint(folder: Path) -> str:
    """A digest of the names and contents of the files in a folder, which tells two copies apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0")
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def decode(folder: Path, name: str, image_size: int) -> Dataset:
    """Decode a prepared set; about 6 s for MNIST and 9 s for CIFAR-10."""
    from inner_tasks.datasets import tfds_bridge  # takes a second to import

    try:
        with tfds_bridge.silence():
            sources = tfds_bridge.open_prepared(folder)
            with progress_bar(f"Reading {name}", sum(map(len, sources)), "images") as advance:
                train, test = (_decode_split(source, image_size, advance) for source in sources)
    except ModuleNotFoundError:
        raise  # the packages are at fault, not the copy
    except Exception as error:  # array_record, Pillow and TFDS may raise anything on a bad file
        raise _unreadable(name, folder, error) from error
    validation, train = cut(permute(train), len(train.labels) // _HELD_OUT[name])
    return make_dataset(train, validation, test)


def _unreadable(name: str, folder: Path, error: Exception) -> UserError:
    return UserError(
        f"The copy of {name} in '{folder}' cannot be read ({error}): remove that folder, so that "
        "it is made again, or set --data-dir or TFDS_DATA_DIR to another folder."
    )


def _decode_split(source: Any, image_size: int, advance: Callable[[float], None]) -> Split:
    split = Split(
        np.empty((len(source), image_size), np.uint8),
        np.empty(len(source), np.int32),
    )
    for start in range(0, len(source), _CHUNK):
        examples = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
        for i, example in enumerate(examples, start):
            split.images[i] = example["image"].reshape(-1)
            split.labels[i] = example["label"]
        advance(len(examples))
    return split
