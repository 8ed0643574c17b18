"""After a power cut a run goes on from its newest checkpoint, and ends with the same bits."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta_train.command import TINY, Run, lines, meta_train, start, without_comparing

IMAGES = 12
UPDATES = 200
FLAGS = f"{TINY} --updates {UPDATES} --checkpoint-every 5 --devices 2"


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image of a disk; only a superuser can do this."""
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"an image of a disk cannot be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def optimizer(folder: Path) -> bytes:
    return (folder / "optimizer.safetensors").read_bytes()


@pytest.mark.slow
def test_images_of_a_disk_that_lost_its_power(tiny_run: Run, tmp_path: Path) -> None:
    """A copy of the disk below a mounted file system holds only what has reached the disk."""
    whole = tmp_path / "whole"
    with without_comparing(tiny_run.comparison):
        assert meta_train(FLAGS, "--run-dir", whole).code == 0
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(2**26)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    copies = []
    with mounted(disk, tmp_path / "mounted") as folder, start(FLAGS, "--run-dir", folder / "run") as child:
        config, metrics = folder / "run" / "config.yaml", folder / "run" / "metrics.jsonl"
        while not config.exists():
            assert child.poll() is None
            time.sleep(0.01)
        for number in range(IMAGES):
            while number and (
                not metrics.exists() or metrics.read_bytes().count(b"\n") < number * UPDATES // (IMAGES + 1)
            ):
                assert child.poll() is None
                time.sleep(0.01)
            copies.append(shutil.copyfile(disk, tmp_path / f"copy-{number}"))
        child.kill()
        child.wait()
    for copy in copies:
        with mounted(copy, tmp_path / "mounted") as folder, without_comparing(tiny_run.comparison):
            outcome = meta_train("--resume", folder / "run")
            assert outcome.code == 0, outcome.err
            print(f"{copy.name}: {outcome.err}")
            assert optimizer(folder / "run") == optimizer(whole)
            assert lines(folder / "run") == lines(whole)
