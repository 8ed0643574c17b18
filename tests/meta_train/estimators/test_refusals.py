"""Problems and settings that estimators refuse, and their messages."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from inner_tasks import LinearRecurrence
from learned_opt import UserError
from meta_train.estimators import ESTIMATORS
from meta_train.estimators.rtrl import MAX_ENTRIES
from tests.meta_train.estimators.cases import (
    CASES,
    NAMES,
    make,
)
from tests.meta_train.problems import (
    Pendulum,
)


@pytest.mark.parametrize("name", [name for name in NAMES if name in CASES and CASES[name].differentiates])
def test_problem_without_derivative_is_refused(name: str):
    """The message names another estimator that works."""
    with pytest.raises(UserError, match=r"no derivative.*choose an estimator.*pes"):
        make(name, Pendulum(differentiable=False), 2)


@pytest.mark.parametrize("name", [name for name in NAMES if name in CASES and not CASES[name].differentiates])
def test_problem_without_derivative_is_taken_by_those_that_need_none(name: str):
    make(name, Pendulum(differentiable=False), 2)


def test_rtrl_refuses_a_large_theta():
    estimator = make("rtrl", LinearRecurrence(), 2)
    estimator.init(jax.random.key(0), np.zeros(MAX_ENTRIES, np.float32), 0.0)
    with pytest.raises(UserError, match=r"theta has 1,025.*at most 1,024.*[Cc]hoose a smaller"):
        estimator.init(jax.random.key(0), np.zeros(MAX_ENTRIES + 1, np.float32), 0.0)


def test_gpes_refuses_a_period_of_no_whole_windows():
    with pytest.raises(UserError, match=r"period is 5 steps; it must be a multiple.*K = 2"):
        ESTIMATORS["gpes"].make(LinearRecurrence(10), sigma=0.1, truncation=2, perturbation_period=5)
    # A period of the whole episode is accepted, although it is not a multiple of K either.
    ESTIMATORS["gpes"].make(LinearRecurrence(10), sigma=0.1, truncation=4, perturbation_period=10)
