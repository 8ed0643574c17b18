"""The promised properties of each estimator, which the tests in this folder check for all ``ESTIMATORS``.

A new estimator needs a line in ``CASES``. K is the truncation length, T the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import pytest

from meta_train.estimators import ESTIMATORS, Estimator, Info
from tests.marks import slow


class Case(NamedTuple):
    """The promised properties of an estimator."""

    particles: int  # particles unrolled in every window
    steps: Callable[[int], int]  # steps of work per inner step of the window, given the entries of theta
    states: Callable[[int], int]  # inner states carried from window to window, given the entries of theta
    kept: int = 0  # inner states kept for each step of a window, for backpropagation
    biased: bool = False  # whether the state at the start of a window counts as a constant
    differentiates: bool = False
    random: bool = True  # whether it draws perturbations or random signs, in addition to the data
    period: int | None = None  # windows per perturbation, if their sum is carried
    options: dict[str, Any] = {}  # settings that are off by default


EPISODE = 1000  # in windows; longer than any episode here

# Cost in steps: a forward step is 1. A backward step computes it again and adds 2 for the derivatives with
# respect to state and theta: 4 with the forward step. In forward mode, one direction adds 2 to a step of 1.
CASES = {
    "pes": Case(2, lambda p: 2, lambda p: 2, period=1),
    "nres": Case(2, lambda p: 2, lambda p: 2, period=EPISODE),
    "gpes": Case(2, lambda p: 2, lambda p: 2, period=2),
    "full-es": Case(2, lambda p: 2, lambda p: 2, period=1),
    "truncated-es": Case(3, lambda p: 3, lambda p: 1, biased=True),
    "tbptt": Case(1, lambda p: 4, lambda p: 1, kept=1, biased=True, differentiates=True, random=False),
    "bptt": Case(1, lambda p: 4, lambda p: 1, kept=1, differentiates=True, random=False),
    "rtrl": Case(1, lambda p: 2 * p + 1, lambda p: p + 1, differentiates=True, random=False),
    # A forward pass for two backward passes (1), forward mode (3), and the two backward passes (3 each).
    "uoro": Case(1, lambda p: 10, lambda p: 2, kept=1, differentiates=True),
    # The two particles of a pair, and a third particle forward and backward.
    "pes-analytic": Case(
        3, lambda p: 6, lambda p: 3, kept=1, differentiates=True, period=1, options={"analytic": True}
    ),
}
NAMES = [*ESTIMATORS, "pes-analytic"]
every_estimator = pytest.mark.parametrize("name", NAMES)
# The others are one of these with other settings; compiling them would be slow.
DISTINCT = ("pes", "truncated-es", "tbptt", "rtrl", "uoro", "pes-analytic")
every_estimator_compiled = pytest.mark.parametrize(
    "name", [name if name in DISTINCT else slow(name) for name in NAMES]
)


def case(name: str) -> Case:
    if name not in CASES:
        pytest.fail(
            f"the estimator '{name}' has no entry in CASES of tests/meta_train/estimators/cases.py; add a "
            "line with its promised properties, and these tests will check them"
        )
    return CASES[name]


def method(name: str) -> Any:
    return ESTIMATORS[name.removesuffix("-analytic")]


def make(name: str, problem: Any, truncation: int, sigma: float = 0.1) -> Estimator:
    """The estimator with this name and the settings it takes. gpes keeps a perturbation for two windows."""
    settings = {"sigma": sigma, "truncation": truncation, "perturbation_period": 2 * truncation}
    settings |= {"analytic": False} | case(name).options
    return method(name).make(problem, **{setting: settings[setting] for setting in method(name).settings})


def whole_episodes(name: str) -> bool:
    """Whether its windows are whole episodes, so that there is no K to choose."""
    return "truncation" not in method(name).settings


def at_truncations(
    *truncations: int,
    quick: tuple[int, ...],
    names: Sequence[str] = NAMES,
    quick_names: Sequence[str] = NAMES,
) -> list[Any]:
    """Parameters ``name, truncation``; the last truncation is the horizon.

    Quick tests are those of `quick_names` at the truncations `quick`, or without a truncation to choose.
    """
    pairs = [
        (name, truncation)
        for name in names
        for truncation in (truncations[-1:] if whole_episodes(name) else truncations)
    ]
    return [
        (name, truncation)
        if name in quick_names and (truncation in quick or whole_episodes(name))
        else slow(name, truncation)
        for name, truncation in pairs
    ]


class Estimated(NamedTuple):
    """One estimate, as NumPy arrays."""

    key: jax.Array  # the key of the estimate
    gradient: Any
    state: Any  # the state after it
    info: Info
