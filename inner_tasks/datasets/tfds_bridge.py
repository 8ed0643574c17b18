"""The code that needs TFDS itself. Importing this takes a second, so it is imported only when needed.

The official builders need TensorFlow to prepare a data set, for two things: extracting the downloads
and encoding NumPy images. The builders here differ only in these two.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

Examples = Iterator[tuple[int, dict[str, Any]]]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep TFDS from printing, from showing progress bars, and from recommending OpenCV."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        absl.setLevel(level)


def open_prepared(folder: Path) -> tuple[Any, Any]:
    """Open the train and test splits of a prepared set as random-access data sources.

    Raises:
        ValueError: the folder names a feature class outside TFDS. TFDS would import its module.
    """
    json.loads((folder / "features.json").read_text(), object_hook=_check_feature)
    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source("train"), builder.as_data_source("test")


def _check_feature(entry: dict[str, Any]) -> None:
    """Refuse an entry of `features.json` that names code outside TFDS."""
    for key in ("pythonClassName", "python_class_name", "type"):  # old versions use the last
        name = entry.get(key, "tensorflow_datasets.")
        if not str(name).startswith("tensorflow_datasets."):
            raise ValueError(f"its features are of class {name!r}, which is not part of TFDS")


def build(name: str, files: Mapping[str, Path], data_dir: Path, advance: Callable) -> Path:
    """Prepare a set as array_record.

    Args:
        name: `mnist`, `fashion_mnist` or `cifar10`.
        files: paths of its official files, by name.
        data_dir: folder in which `<name>/<version>` is created.
        advance: called with the number of images just written.

    Returns:
        The created folder.
    """
    builder = {"mnist": Mnist, "fashion_mnist": FashionMnist, "cifar10": Cifar10}[name](data_dir=data_dir)
    builder.files, builder.advance = files, advance
    with tempfile.TemporaryDirectory() as unused:  # TFDS always creates a folder for downloads
        builder.download_and_prepare(
            download_dir=unused,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format="array_record",
        )
    return Path(builder.data_dir)


class _FromFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The common part of the builders below; each combines it with an official builder."""

    files: Mapping[str, Path]  # `build` sets this and the next
    advance: Callable[[int], None]

    def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
        return {split: self._count(self._generate_examples(split)) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Examples:
        raise NotImplementedError

    def _count(self, examples: Examples) -> Examples:
        for example in examples:
            yield example
            self.advance(1)


class Mnist(_FromFiles, mnist.MNIST, skip_registration=True):  # type: ignore[call-arg]
    """MNIST from its four files."""

    name = "mnist"
    # A name without dots: for others TFDS needs importlib_resources, which it does not install.
    __module__ = "mnist"

    def _generate_examples(self, split: str) -> Examples:
        prefix = {"train": "train", "test": "t10k"}[split]
        # In the idx format pixels come after 16 bytes of sizes, and labels after 8.
        with gzip.open(self.files[f"{prefix}-images-idx3-ubyte.gz"]) as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(self.files[f"{prefix}-labels-idx1-ubyte.gz"]) as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": Image.fromarray(image), "label": int(label)}


class FashionMnist(Mnist, mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    """Fashion-MNIST, whose files have MNIST's names and format."""

    name = "fashion_mnist"
    __module__ = "fashion_mnist"


class Cifar10(_FromFiles, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10 from its binary archive."""

    name = "cifar10"
    __module__ = "cifar10"

    def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
        with tarfile.open(self.files["cifar-10-binary.tar.gz"]) as archive:
            self.content = {
                Path(member.name).name: file.read()
                for member in archive
                if (file := archive.extractfile(member))  # None for a folder
            }
        self.info.features["label"].names = self.content["batches.meta.txt"].decode().split()
        return super()._split_generators(dl_manager)

    def _generate_examples(self, split: str) -> Examples:
        batches = {
            "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["test_batch.bin"],
        }
        records = b"".join(self.content[batch] for batch in batches[split])
        # A record consists of a label and of a red, a green and a blue plane of 32 x 32 pixels.
        table = np.frombuffer(records, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        images = np.ascontiguousarray(table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        for i, (image, label) in enumerate(zip(images, table[:, 0], strict=True)):
            identity = f"{split}_{i:05d}"
            yield i, {"id": identity, "image": Image.fromarray(image), "label": int(label)}
