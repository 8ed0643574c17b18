"""The main command without flags, and a run of many particles on MNIST, each up to its report."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_steps.commands import BRIEF, meta_train

OPTIMIZER, PARTICLES, TRUNCATION = "nadam-mlp", 512, 50
SECONDS = 90  # time for meta-training on MNIST
UPDATES = 1000  # if its speed has not been measured


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Make both runs; their folders are kept as one archive."""
    folder = arguments.out / "runs"
    default, mnist = folder / "default", folder / "mnist-mlp"
    outcome = meta_train("--run-dir", default, *(["--updates", 3, *BRIEF] if arguments.miniature else []))
    emit(run="no flag", **outcome, **_summary(default))
    if not arguments.miniature:
        settings = {
            "--task": "mnist-mlp",
            "--optimizer": OPTIMIZER,
            "--estimator.particles": PARTICLES,
            "--estimator.truncation": TRUNCATION,
            "--estimator.sigma": 0.1,
            "--outer.learning-rate": 2e-2,
            "--task.objective": "mean-and-validation-end",
            "--checkpoint-every": 10_000,  # each one holds all particles
            "--updates": _updates(arguments.out / "gpu.jsonl"),
        }
        words = [word for pair in settings.items() for word in pair]
        outcome = meta_train("--run-dir", mnist, *words)
        emit(run=" ".join(map(str, words)), **outcome, **_summary(mnist))
    for checkpoints in folder.glob("*/checkpoints"):
        shutil.rmtree(checkpoints)  # hundreds of megabytes
    shutil.make_archive(str(folder), "gztar", folder)
    shutil.rmtree(folder)


def _updates(results: Path) -> int:
    """The number of updates that fit the time at the measured throughput."""
    for line in results.read_text().splitlines() if results.exists() else []:
        found = json.loads(line)
        is_it = found.get("task") == "random-mnist-mlp" and found.get("optimizer") == OPTIMIZER
        if is_it and "particle_steps_a_second" in found:
            return max(10, round(SECONDS * found["particle_steps_a_second"] / (PARTICLES * TRUNCATION)))
    return UPDATES


def _summary(folder: Path) -> dict[str, Any]:
    """The report's figures for the optimizers."""
    path = folder / "report" / "summary.json"
    if not path.exists():
        return {"report": "missing"}
    summary = json.loads(path.read_text())
    shown = ("mean_loss", "final_loss", "validation_loss")
    return {"report": "written"} | {
        name: {key: row[key] for key in shown} for name, row in summary["optimizers"].items()
    }
