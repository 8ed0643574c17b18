"""Reproducibility: the same run twice on the device; a run that moves from the CPU to the device and back."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from gpu_steps.commands import BRIEF, TINY, last_lines, meta_train

FLAGS = [*BRIEF, "--checkpoint-every", 5]


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Emit which results were equal to the bit, and how each change of device ended."""
    flags = [*FLAGS, *(TINY if arguments.miniature else [])]
    device = "cpu" if arguments.miniature else None  # None: the default device
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("first", "second"):
            meta_train("--run-dir", folder / name, "--updates", 20, *flags, platform=device)
        first, second = (_digest(folder / name / "optimizer.safetensors") for name in ("first", "second"))
        emit(same_run_twice="equal to the bit" if first == second else "different", digest=first[:12])

        wanderer = folder / "wanderer"
        outcome = meta_train("--run-dir", wanderer, "--updates", 10, *flags, platform="cpu")
        emit(started_on="cpu", updates=10, **outcome, loss=_loss(wanderer))
        shutil.copytree(wanderer, folder / "stays")
        for updates, platform in ((20, device), (30, "cpu")):
            outcome = meta_train("--resume", wanderer, "--updates", updates, platform=platform)
            emit(resumed_on=platform or "device", updates=updates, **outcome, loss=_loss(wanderer))
        # The same updates on the CPU alone, for comparison: at first they differ only by rounding.
        meta_train("--resume", folder / "stays", "--updates", 20, platform="cpu")
        here, there = _losses(folder / "stays")[:20], _losses(wanderer)[:20]
        emit(updates_11_to_20_on_cpu_and_device=[here[10:12], there[10:12]], last=[here[-1], there[-1]])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _loss(folder: Path) -> float | None:
    lines = last_lines(folder / "metrics.jsonl", 1)
    return json.loads(lines[0])["loss"] if lines else None
