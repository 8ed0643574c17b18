"""What an experiment is, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from learned_opt._src.files import write_whole

Scale = Literal["small", "paper"]


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose but the scale and the seeds."""


class Settings(NamedTuple):
    """What a user may choose, and where an experiment is run."""

    scale: Scale
    seeds: tuple[int, ...]
    options: Any = NoOptions()  # the experiment's own
    folder: Path = Path()  # where it keeps what it needs to go on after it was stopped
    devices: int = 1
    chunk: int = 1  # of what is spread over devices: so much does each work on at once
    data_dir: Path | None = None  # of TFDS data sets


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
      protocol: the docstring of its file: the claim in one line, and how it is tested.
      seeds: those that it is run on where none are given.
      options: a frozen dataclass of what else may be chosen: its flags, each with a default.
      spread: whether its work is spread over all devices; the others are one compiled program on one device.
      variants: the options that it is run with when all experiments are; none stands for the defaults.
    """

    name: str
    summary: str
    source: str
    run: Callable[[Settings, Console], Result]
    draw: Callable[[Result, Path], Sequence[Path]]
    protocol: str | None
    seeds: tuple[int, ...] = (0, 1, 2)
    options: type = NoOptions
    spread: bool = False
    variants: tuple[Any, ...] = ()


def described(name: str, settings: Settings) -> dict[str, Any]:
    """What was chosen, as JSON values."""
    return {
        "experiment": name,
        "scale": settings.scale,
        "seeds": list(settings.seeds),
        "options": {option: str(value) for option, value in vars(settings.options).items()},
    }


def write_result(experiment: Experiment, settings: Settings, result: Result, folder: Path) -> list[Path]:
    """Draw the pictures, and then write ``result.json``: where that is, the result is whole.

    Returns:
      The files.
    """
    pictures = experiment.draw(result, folder)
    values = {
        **described(experiment.name, settings),
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
