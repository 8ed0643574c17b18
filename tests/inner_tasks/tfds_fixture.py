"""Tiny data sets for tests: prepared TFDS copies, and official downloads in miniature."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

VERSIONS = {"mnist": "3.0.1", "fashion_mnist": "3.0.1", "cifar10": "3.0.2"}
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
CIFAR_CLASSES = (
    ["airplane", "automobile", "bird", "cat", "deer"]  #
    + ["dog", "frog", "horse", "ship", "truck"]
)

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 [n, height, width, channels] and int [n]


def random_splits(name: str, train: int = 60, test: int = 20, seed: int = 0) -> dict[str, Arrays]:
    """Make random images and labels of the size of a data set.

    Returns:
        For "train" and "test", images uint8 `[n, height, width, channels]` and labels `[n]`.
    """
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (n, *SHAPES[name]), np.uint8), rng.integers(0, 10, n))
        for split, n in (("train", train), ("test", test))
    }


def write_tfds(name: str, data_dir: Path, splits: Mapping[str, Arrays]) -> Path:
    """Write a prepared array_record copy of a data set, in the order given.

    Args:
        name: `mnist`, `fashion_mnist` or `cifar10`.
        data_dir: folder of TFDS sets (for instance `tmp_path`).
        splits: as from `random_splits`.

    Returns:
        The folder `<data_dir>/<name>/<version>`.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from PIL import Image

    fields = {
        "image": tfds.features.Image(shape=SHAPES[name]),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    if name == "cifar10":
        fields["id"] = tfds.features.Text()
    features = tfds.features.FeaturesDict(fields)
    folder = data_dir / name / VERSIONS[name]
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        dataset_name=name, data_dir=folder, filetype_suffix="array_record"
    )
    infos = []
    for split, (images, labels) in splits.items():
        records = []
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            # As a PIL image, because TFDS would use TensorFlow to encode an array.
            example = {"image": Image.fromarray(image.squeeze()), "label": int(label)}
            if name == "cifar10":
                example["id"] = f"{split}_{i:05d}"
            records.append(features.serialize_example(example))
        file = template.replace(split=split)
        path = file.sharded_filepath(shard_index=0, num_shards=1)
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(records)],
                num_bytes=sum(map(len, records)),
                filename_template=file,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        version=VERSIONS[name],
        filename_template=template,
        description="Made by a test.",
        check_data=False,
    )
    return folder


def write_official(name: str, folder: Path, splits: Mapping[str, Arrays]) -> dict[str, str]:
    """Write files in the format and under the names of the official downloads.

    Returns:
        Their SHA-256, by file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = _cifar_files(splits) if name == "cifar10" else _idx_files(splits)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}


def _idx_files(splits: Mapping[str, Arrays]) -> dict[str, bytes]:
    files = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split]
        sizes = np.array([0x803, *images.shape[:3]], ">u4").tobytes()
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(sizes + images.tobytes())
        sizes = np.array([0x801, len(labels)], ">u4").tobytes()
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(sizes + labels.astype(np.uint8).tobytes())
    return files


def _cifar_files(splits: Mapping[str, Arrays]) -> dict[str, bytes]:
    members = {"batches.meta.txt": "\n".join([*CIFAR_CLASSES, ""]).encode()}
    images, labels = splits["train"]
    for i in range(5):
        part = slice(i * len(labels) // 5, (i + 1) * len(labels) // 5)
        members[f"data_batch_{i + 1}.bin"] = _cifar_records(images[part], labels[part])
    members["test_batch.bin"] = _cifar_records(*splits["test"])
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for file, data in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {"cifar-10-binary.tar.gz": content.getvalue()}


def _cifar_records(images: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(
        bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for image, label in zip(images, labels, strict=True)
    )
