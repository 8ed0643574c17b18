"""After a power cut a run goes on from its newest checkpoint, and ends with the same bits."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import learned_opt
from tests.meta_train.command import TINY, Run, lines, meta_train, start, without_comparing
from tests.power import Disk, Image, write

FEW = f"{TINY} --updates 3 --checkpoint-every 2 --devices 2"
IMAGES = 12
UPDATES = 200
FLAGS = f"{TINY} --updates {UPDATES} --checkpoint-every 5 --devices 2"


def files_below(image: Image, folder: str) -> Image:
    return {name: content for name, content in image.items() if name.startswith(folder)}


def newest_checkpoint(image: Image) -> int:
    found = (re.fullmatch(r"run/checkpoints/(\d+)", name) for name in image)
    return max((int(name[1]) for name in found if name), default=-1)


def test_what_a_cut_leaves_of_a_run_is_whole(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    disk = Disk(tmp_path)
    with disk.recorded():
        assert meta_train(FEW, "--run-dir", tmp_path / "run").code == 0
    final = {
        str(path.relative_to(tmp_path)): None if path.is_dir() else path.read_bytes()
        for path in tmp_path.rglob("*")
    }
    lines = final["run/metrics.jsonl"].splitlines(keepends=True)
    optimizers = set()
    for image, _ in disk.cuts:
        newest = newest_checkpoint(image)
        if "run/config.yaml" in image:
            assert image["run/config.yaml"] == final["run/config.yaml"]
        else:
            assert newest == -1
        for name in image:
            if re.fullmatch(r"run/checkpoints/\d+", name):
                assert files_below(image, f"{name}/") == files_below(final, f"{name}/")
        assert image.get("run/metrics.jsonl", b"").startswith(b"".join(lines[: max(0, newest)]))
        if "run/optimizer.safetensors" in image:
            assert newest == 3
            optimizers.add(image["run/optimizer.safetensors"])
        if "run/report/summary.json" in image:
            # The report is complete. Only the lock says how far its process was.
            rest = {name: content for name, content in image.items() if name != "run/lock"}
            assert rest == {name: content for name, content in final.items() if name != "run/lock"}
    assert {newest_checkpoint(image) for image, _ in disk.cuts} == {-1, 0, 2, 3}
    for content in optimizers:  # before and after the comparison
        (tmp_path / "optimizer.safetensors").write_bytes(content)
        assert learned_opt.read(tmp_path / "optimizer.safetensors").metadata["meta_training"]["updates"] == 3
    assert len(optimizers) == 2 and tiny_run.optimizer in optimizers


@pytest.mark.slow
def test_a_run_is_resumed_after_any_cut(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    with disk.recorded():
        assert meta_train(FEW, "--run-dir", tmp_path / "disk" / "run").code == 0
    cuts = [image for image, _ in disk.cuts if "run/config.yaml" in image]
    for number in range(IMAGES):
        folder = tmp_path / str(number)
        write(cuts[number * (len(cuts) - 1) // (IMAGES - 1)], folder)
        outcome = meta_train("--resume", folder / "run")
        assert outcome.code == 0, outcome.err
        assert optimizer(folder / "run") == tiny_run.optimizer
        assert lines(folder / "run") == lines(tiny_run.path)


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
            # A cut is one moment, but copying takes some time, in which the run must not write.
            child.send_signal(signal.SIGSTOP)
            copies.append(shutil.copyfile(disk, tmp_path / f"copy-{number}"))
            child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()
    for copy in copies:
        with mounted(copy, tmp_path / "mounted") as folder, without_comparing(tiny_run.comparison):
            outcome = meta_train("--resume", folder / "run")
            assert outcome.code == 0, outcome.err
            print(f"{copy.name}: {outcome.err}")
            assert optimizer(folder / "run") == optimizer(whole)
            assert lines(folder / "run") == lines(whole)
