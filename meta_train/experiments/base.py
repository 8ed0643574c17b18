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
# A difference between two methods counts from this many standard errors on.
BOUND = 3
# A long experiment can continue from this long before it was stopped.
SAVE_EVERY_SECONDS = 30.0


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
    partly: bool = False  # whether a part of the claim holds

    @property
    def word(self) -> str:
        """The verdict without its figures."""
        return "holds" if self.holds else "holds in part" if self.partly else "does not hold"


class Claim(NamedTuple):
    """One part of the claim of an experiment."""

    holds: bool
    text: str


class Difference(NamedTuple):
    """The difference of two means over seeds."""

    mean: float
    error: float  # its standard error; nan for a single seed

    @property
    def is_clear(self) -> bool:
        """Whether the difference is at least ``BOUND`` standard errors above zero."""
        return bool(self.mean > 0 and self.mean >= BOUND * self.error)

    def __str__(self) -> str:
        """For example "58 ± 31, 1.9 standard errors"."""
        number = self.mean / self.error if self.error else np.nan
        return f"{self.mean:.3g} ± {self.error:.2g}, {number:.1f} standard errors"


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


def variance(values: np.ndarray) -> float:
    """The variance over seeds; NaN for a single one."""
    return float(np.var(values, ddof=1)) if values.size > 1 else np.nan


def difference(high: np.ndarray, low: np.ndarray) -> Difference:
    """The mean of `high` minus that of `low`, both ``[seeds]``; the methods' seeds are independent.

    The squared standard error is ``var(high) / n + var(low) / m``, as in Welch's test.
    """
    squared_error = sum(variance(values) / values.size for values in (high, low))
    return Difference(float(high.mean() - low.mean()), float(np.sqrt(squared_error)))


def is_above(high: tuple[str, np.ndarray], low: tuple[str, np.ndarray]) -> Claim:
    """That one method's values are higher on average than another's; each a label and values ``[seeds]``."""
    gap = difference(high[1], low[1])
    return Claim(gap.is_clear, f"{high[0]} above {low[0]} by {gap}")


def judged(measured: str, *claims: Claim) -> Verdict:
    """A verdict from what was measured and the parts of the claim."""
    parts = "; ".join(f"{claim.text}: {'holds' if claim.holds else 'does not hold'}" for claim in claims)
    held = [claim.holds for claim in claims]
    return Verdict(
        all(held), f"{measured}. Claims (a difference needs {BOUND} standard errors): {parts}", any(held)
    )


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
        "verdict": result.verdict._asdict(),
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
