"""The files of a report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learned_opt._src.files import make_folder, write_whole
from meta_train.report.comparison import Comparison
from meta_train.report.suite import as_json, table
from meta_train.report.tables import summary

# The folder of the results of each optimizer, in that of a comparison.
RESULTS = "results"


def write_report(
    name: str, suite: Sequence[Comparison], folder: Path, extra: Mapping[str, Any]
) -> list[Path]:
    """Write the report of a run: pictures, a table, and then ``summary.json``, which completes it.

    Args:
      name: the name of the task.
      suite: its comparison; for a distribution of tasks, that of each member.
      folder: where to write; created if it is missing.
      extra: more entries for the summary.

    Returns:
      The pictures.
    """
    make_folder(folder)
    if len(suite) > 1:
        pictures, values = write_suite(suite, folder), {"task": name, **as_json(suite)}
    else:
        pictures, values = _draw_curves(suite, folder), summary(suite[0])
    write_whole(folder / "summary.json", json.dumps({**values, **extra}, indent=2, allow_nan=False) + "\n")
    return pictures


def write_suite(suite: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write ``table.md``, and ``training_curves.png``, ``learning_rates.png`` and ``ratios.png``.

    Returns:
      The pictures.
    """
    from meta_train.report.figures import draw_ratios

    ratios = folder / "ratios.png"
    draw_ratios(suite, ratios)
    write_whole(folder / "table.md", "".join(f"| {' | '.join(row)} |\n" for row in table(suite)))
    return [*_draw_curves(suite, folder), ratios]


def _draw_curves(suite: Sequence[Comparison], folder: Path) -> list[Path]:
    from meta_train.report.figures import draw_learning_rates, draw_training_curves

    curves, rates = folder / "training_curves.png", folder / "learning_rates.png"
    draw_training_curves(suite, curves)
    draw_learning_rates(suite, rates)
    return [curves, rates]


def write_so_far(suite: Sequence[Comparison], folder: Path) -> None:
    """Write ``evaluation.json``."""
    text = json.dumps(as_json(suite), indent=2, allow_nan=False) + "\n"
    write_whole(folder / "evaluation.json", text)


def result_file(folder: Path, number: int, optimizer: str) -> Path:
    """The file that keeps the result of an optimizer on a task, from the task's number; its folder exists."""
    results = folder / RESULTS / f"{number}"
    make_folder(results)
    return results / f"{re.sub(r'[^a-zA-Z0-9._-]', '_', optimizer)}.safetensors"
