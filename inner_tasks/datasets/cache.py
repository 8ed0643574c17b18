"""Decoded data sets, one file each, in the user's cache folder.

A file consists of a SHA-256 of everything after it, and eight arrays in NumPy's format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path

import numpy as np

from inner_tasks.datasets.display import say
from inner_tasks.datasets.splits import Dataset, Split
from learned_opt._src.cache import cache_folder
from learned_opt._src.files import make_folder, whole_file

_DIGEST_SIZE = 32


def load_or_build(key: str, build: Callable[[], Dataset]) -> Dataset:
    """Return the data set cached under a key, or build it and cache it.

    A damaged file is built again. A cache that cannot be read or written is ignored.

    Args:
        key: name of the file; it must contain everything that the result depends on.
        build: builds the data set.
    """
    path = cache_folder() / "datasets" / key
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except ValueError:
        say(f"The cached data set {path} is damaged: building it again.")
    except OSError:
        pass  # the attempt to write will report the reason
    dataset = build()
    try:
        _write(path, dataset)
    except OSError as error:
        reason = error.strerror or error
        say(f"The cache folder {path.parent} cannot be used ({reason}): continuing without it.")
    return dataset


def _digest_after_header(file: BufferedReader | BufferedRandom) -> bytes:
    file.seek(_DIGEST_SIZE)
    return hashlib.file_digest(file, "sha256").digest()


def _read(path: Path) -> Dataset:
    with path.open("rb") as file:
        if file.read(_DIGEST_SIZE) != _digest_after_header(file):
            raise ValueError(f"the digest of {path} does not match")
        file.seek(_DIGEST_SIZE)
        arrays = [np.load(file, allow_pickle=False) for _ in range(8)]
    train, validation, test = (Split(*arrays[i : i + 2]) for i in (0, 2, 4))
    return Dataset(train, validation, test, np.float32(arrays[6]), np.float32(arrays[7]))


def _write(path: Path, dataset: Dataset) -> None:
    """Write the file whole: no process ever sees a part of it."""
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(bytes(_DIGEST_SIZE))
        for array in (*dataset.train, *dataset.validation, *dataset.test, *dataset[3:]):
            np.save(file, array, allow_pickle=False)
        digest = _digest_after_header(file)
        file.seek(0)
        file.write(digest)
