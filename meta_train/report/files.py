"""The files of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learned_opt._src.files import make_folder, write_whole
from meta_train.report.comparison import Comparison
from meta_train.report.suite import as_json, table
from meta_train.report.tables import summary


def write_comparison(comparison: Comparison, folder: Path, extra: Mapping[str, Any]) -> list[Path]:
    """Write the pictures, and then ``summary.json``; if that exists, the report is complete.

    Args:
      comparison: the comparison to report.
      folder: where to write; created if it is missing.
      extra: more entries for the summary.

    Returns:
      The pictures.
    """
    from meta_train.report.figures import draw_learning_rates, draw_training_curves

    make_folder(folder)
    curves, rates = folder / "training_curves.png", folder / "learning_rates.png"
    draw_training_curves([comparison], curves)
    draw_learning_rates([comparison], rates)
    values = {**summary(comparison), **extra}
    write_whole(folder / "summary.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
    return [curves, rates]


def write_suite(suite: Sequence[Comparison], folder: Path) -> None:
    """Write ``table.md``, ``training_curves.png``, ``learning_rates.png`` and ``ratios.png``."""
    from meta_train.report.figures import draw_learning_rates, draw_ratios, draw_training_curves

    draw_training_curves(suite, folder / "training_curves.png")
    draw_learning_rates(suite, folder / "learning_rates.png")
    draw_ratios(suite, folder / "ratios.png")
    write_whole(folder / "table.md", "".join(f"| {' | '.join(row)} |\n" for row in table(suite)))


def write_so_far(suite: Sequence[Comparison], folder: Path) -> None:
    """Write ``evaluation.json``."""
    text = json.dumps(as_json(suite), indent=2, allow_nan=False) + "\n"
    write_whole(folder / "evaluation.json", text)
