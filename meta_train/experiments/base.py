"""The definition of an experiment, and the files that it writes."""

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
    """No options besides the scale and the seeds."""


class Settings(NamedTuple):
    """The settings that a user may choose, and the resources of an experiment."""

    scale: Scale
    seeds: tuple[int, ...]
    options: Any = NoOptions()  # the experiment's own options
    folder: Path = Path()  # for the files that it needs to continue after it was stopped
    devices: int = 1
    chunk: int = 1  # elements that a device works on at once, of work that is spread over devices
    data_dir: Path | None = None  # of TFDS data sets


class Outcome(NamedTuple):
    """The results of one method over seeds."""

    final_loss: np.ndarray  # [seeds]
    theta: np.ndarray  # [seeds, ...], at the end
    curve: Mapping[str, np.ndarray]  # values recorded during the run; the x axis is [records]


class Verdict(NamedTuple):
    """Whether the claim of the experiment holds."""

    holds: bool
    text: str


@dataclass(frozen=True)
class Result:
    """The result of an experiment.

    Attributes:
      methods: an outcome for each method.
      verdict: whether the claim holds.
      checks: single numbers, each as (measured, expected).
      pictured: arrays that are drawn but not written as JSON.
    """

    methods: Mapping[str, Outcome]
    verdict: Verdict
    checks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pictured: Mapping[str, Any] = field(default_factory=dict)


class Experiment(NamedTuple):
    """One experiment of the paper, in one file.

    Attributes:
      name: its name for `pes-paper`.
      summary: one line.
      source: the source of its protocol.
      run: runs it, with progress on the console.
      draw: draws the result into a folder, and returns the paths of the pictures.
      protocol: the docstring of its file: the claim in one line, and how it is tested.
      seeds: the default seeds.
      options: a frozen dataclass of its own flags, each with a default.
      spread: whether its work is spread over all devices; otherwise it is one program on one device.
      variants: the options that `pes-paper all` runs it with; empty for the defaults.
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
    """The settings as JSON values."""
    return {
        "experiment": name,
        "scale": settings.scale,
        "seeds": list(settings.seeds),
        "options": {option: str(value) for option, value in vars(settings.options).items()},
    }


def write_result(experiment: Experiment, settings: Settings, result: Result, folder: Path) -> list[Path]:
    """Draw the pictures, and then write ``result.json``; if that exists, the result is complete.

    Returns:
      The paths of the files.
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
    """A value in JSON form, rounded to seven digits; non-finite numbers are null."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if np.ndim(value):
        return [_plain(item) for item in value]
    if isinstance(value, int | np.integer):
        return int(value)
    return float(f"{float(value):.7g}") if np.isfinite(value) else None
