"""What an experiment is, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from learned_opt.files import write_whole

Scale = Literal["small", "paper"]


class Settings(NamedTuple):
    """What a user may choose."""

    scale: Scale
    seeds: tuple[int, ...]
    text: Path | None = None  # for experiments on text: the file to read


class Outcome(NamedTuple):
    """What came of one method, over seeds."""

    final_loss: np.ndarray  # [seeds]
    theta: np.ndarray  # [seeds, ...], at the end
    curve: Mapping[str, np.ndarray]  # what was recorded on the way; its x axis is [records]


class Verdict(NamedTuple):
    """Whether the experiment shows what it is there to show."""

    holds: bool
    text: str


@dataclass(frozen=True)
class Result:
    """All that an experiment found.

    Attributes:
      methods: an outcome for each method.
      verdict: what it shows.
      checks: single numbers, each as (measured, expected).
      pictured: arrays that are drawn and not written as JSON.
    """

    methods: Mapping[str, Outcome]
    verdict: Verdict
    checks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pictured: Mapping[str, Any] = field(default_factory=dict)


class Experiment(NamedTuple):
    """One experiment of the paper, in one file.

    Attributes:
      name: what `pes-paper` calls it.
      summary: one line.
      source: where its protocol comes from.
      run: does it, with progress on the console.
      draw: pictures of the result in a folder; their paths.
      reads_text: whether `text` of the settings means something to it.
    """

    name: str
    summary: str
    source: str
    run: Callable[[Settings, Console], Result]
    draw: Callable[[Result, Path], Sequence[Path]]
    reads_text: bool = False


def write_result(experiment: Experiment, settings: Settings, result: Result, folder: Path) -> list[Path]:
    """Draw the pictures, and then write ``result.json``: where that is, the result is whole.

    Returns:
      The files.
    """
    pictures = experiment.draw(result, folder)
    values = {
        "experiment": experiment.name,
        "scale": settings.scale,
        "seeds": list(settings.seeds),
        "methods": {name: _plain(outcome._asdict()) for name, outcome in result.methods.items()},
        "checks": {
            name: {"measured": _plain(measured), "expected": _plain(expected)}
            for name, (measured, expected) in result.checks.items()
        },
        "verdict": {"holds": bool(result.verdict.holds), "text": result.verdict.text},
    }
    path = folder / "result.json"
    write_whole(path, json.dumps(values, allow_nan=False) + "\n")
    return [*pictures, path]


def _plain(value: Any) -> Any:
    """As JSON values of seven digits; a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if np.ndim(value):
        return [_plain(item) for item in value]
    if isinstance(value, int | np.integer):
        return int(value)
    return float(f"{float(value):.7g}") if np.isfinite(value) else None
