"""What a bare machine needs besides the repository: a few wheels, and MNIST as prepared by TFDS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON, PLATFORMS = "3.12", [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]
# Packages that do not come with JAX, Flax, Optax, Orbax, scikit-learn or Matplotlib.
WHEELS = (
    "tyro",
    "docstring-parser",
    "typeguard",
    "safetensors",
    "requests",
    "urllib3",
    "idna",
    "certifi",
    "charset-normalizer",
)
# Packages for reading MNIST.
TFDS_WHEELS = (
    "tensorflow-datasets",
    "array-record",
    "dm-tree",
    "wrapt",
    "attrs",
    "immutabledict",
    "simple-parsing",
    "tensorflow-metadata",
    "googleapis-common-protos",
    "termcolor",
    "toml",
    "tqdm",
    "six",
)
SOURCES = ("promise",)  # published without a wheel


def pack(folder: Path) -> None:
    """Fill the folder; MNIST is taken from the data folder, and prepared there if necessary."""
    from inner_tasks.datasets import load_dataset
    from inner_tasks.datasets.tfds_source import find_prepared

    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    for name in (*WHEELS, *TFDS_WHEELS):
        command = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        subprocess.run([*command, "--python-version", PYTHON, *platforms, name], check=True)
    for name in SOURCES:
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), name], check=True)
    load_dataset("mnist")
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    mnist = find_prepared("mnist", data_dir)
    assert mnist is not None
    shutil.copytree(mnist, folder / "mnist" / mnist.name, dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
