"""Continues a long run from elsewhere for the time that is left, and packs it up again."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable

from gpu_steps.commands import last_lines, meta_train


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Resume the run until this step is asked to stop, which lets it save; its folder becomes an archive."""
    if arguments.resume is None:
        emit(resumed="nothing: no --resume")
        return
    folder = arguments.out / "resumed"
    shutil.copytree(arguments.resume, folder)
    outcome = meta_train("--resume", folder)
    emit(resumed=str(arguments.resume), **outcome, last=last_lines(folder / "metrics.jsonl", 1))
    shutil.make_archive(str(folder), "gztar", folder)
    shutil.rmtree(folder)
