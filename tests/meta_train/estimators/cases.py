"""What each estimator promises; the tests in this folder hold all of ``ESTIMATORS`` to it.

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
    """What an estimator promises."""

    particles: int  # unrolled in every window
    steps: Callable[[int], int]  # steps of work per inner step of the window, given the entries of theta
    states: Callable[[int], int]  # inner states carried from window to window, given the entries of theta
    kept: int = 0  # inner states kept for each step of a window, to go back through it
    biased: bool = False  # the state at the start of a window counts as a constant
    differentiates: bool = False
    random: bool = True  # by perturbations or random signs, not by the data alone
    period: int | None = None  # windows that a perturbation serves, where a sum of them is carried
    options: dict[str, Any] = {}  # settings that are off by default


EPISODE = 1000  # windows; longer than any episode here

# Of steps: one forwards is 1. Backwards it is computed again, and its derivative with respect to state and
# theta are 2 more: with the way there 4. Forwards along a direction both are 2, and 1 for the step itself.
CASES = {
    "pes": Case(2, lambda p: 2, lambda p: 2, period=1),
    "nres": Case(2, lambda p: 2, lambda p: 2, period=EPISODE),
    "gpes": Case(2, lambda p: 2, lambda p: 2, period=2),
    "full-es": Case(2, lambda p: 2, lambda p: 2, period=1),
    "truncated-es": Case(3, lambda p: 3, lambda p: 1, biased=True),
    "tbptt": Case(1, lambda p: 4, lambda p: 1, kept=1, biased=True, differentiates=True, random=False),
    "bptt": Case(1, lambda p: 4, lambda p: 1, kept=1, differentiates=True, random=False),
    "rtrl": Case(1, lambda p: 2 * p + 1, lambda p: p + 1, differentiates=True, random=False),
    # Forwards for the two ways back (1), forwards along a direction (3), and two ways back (3 each).
    "uoro": Case(1, lambda p: 10, lambda p: 2, kept=1, differentiates=True),
    # Two particles of a pair, and the third particle forwards and back.
    "pes-analytic": Case(
        3, lambda p: 6, lambda p: 3, kept=1, differentiates=True, period=1, options={"analytic": True}
    ),
}
NAMES = [*ESTIMATORS, "pes-analytic"]
every_estimator = pytest.mark.parametrize("name", NAMES)
# The others are one of these with other settings: what has to be compiled for them is slow.
DISTINCT = ("pes", "truncated-es", "tbptt", "rtrl", "uoro", "pes-analytic")
every_estimator_compiled = pytest.mark.parametrize(
    "name", [name if name in DISTINCT else slow(name) for name in NAMES]
)


def case(name: str) -> Case:
    if name not in CASES:
        pytest.fail(
            f"the estimator '{name}' has no entry in CASES of tests/meta_train/estimators/cases.py; add a "
            "line that says what it promises, and these tests hold it to that"
        )
    return CASES[name]


def method(name: str) -> Any:
    return ESTIMATORS[name.removesuffix("-analytic")]


def make(name: str, problem: Any, truncation: int, sigma: float = 0.1) -> Estimator:
    """The estimator of that name, with the settings it takes. A perturbation of gpes serves two windows."""
    settings = {"sigma": sigma, "truncation": truncation, "perturbation_period": 2 * truncation}
    settings |= {"analytic": False} | case(name).options
    return method(name).make(problem, **{setting: settings[setting] for setting in method(name).settings})


def whole_episodes(name: str) -> bool:
    """Whether its windows are episodes, so that there is no K to choose."""
    return "truncation" not in method(name).settings


def at_truncations(
    *truncations: int,
    quick: tuple[int, ...],
    names: Sequence[str] = NAMES,
    quick_names: Sequence[str] = NAMES,
) -> list[Any]:
    """Parameters ``name, truncation``; the last truncation is the horizon.

    Quick are those of `quick_names` at the truncations `quick`, or where there is no truncation to choose.
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

    key: jax.Array  # that it was made with
    gradient: Any
    state: Any  # after it
    info: Info
