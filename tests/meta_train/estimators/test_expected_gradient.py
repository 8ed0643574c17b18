"""The mean of many estimates, against forward-mode differentiation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import chi2

from inner_tasks import LinearRecurrence
from tests.compiling import often
from tests.meta_train.estimators.cases import (
    at_truncations,
    case,
    make,
)
from tests.meta_train.problems import (
    Descent,
    TinyLearnedOptimizer,
)


class Known(NamedTuple):
    """A problem with a known gradient at a theta."""

    problem: Any
    theta: Any
    sigma: float  # small enough that smoothing changes the gradient by less than 0.1%
    samples: int  # enough for a standard error of 0.5%


KNOWN = {
    "linear": Known(LinearRecurrence(horizon=4, decay=0.9), np.float32(0.5), 0.1, 60_000),
    "descent": Known(Descent(horizon=5), np.float32(-1.0), 0.01, 75_000),
    "learned-optimizer": Known(
        TinyLearnedOptimizer(horizon=5),
        {"feed": np.array([0.5, 0.2], np.float32), "out": np.float32(1)},
        0.01,
        140_000,
    ),
}
EXACT = 9.049  # of "linear", sum_{t=1}^{4} (1 - 0.9^t) / (1 - 0.9)


class Mean(NamedTuple):
    """A mean of samples, and its uncertainty."""

    value: np.ndarray  # [entries of theta]
    covariance: np.ndarray  # of the mean: the squared standard error
    error: float  # standard error of the whole vector

    @classmethod
    def of(cls, samples: jax.Array) -> Mean:
        samples = np.asarray(samples, np.float64)
        covariance = np.atleast_2d(np.cov(samples, rowvar=False)) / len(samples)
        return cls(samples.mean(axis=0), covariance, math.sqrt(np.trace(covariance)))


@lru_cache
def forward_mode(name: str) -> Callable[[int], Mean]:
    """``held -> `` the gradient of an episode's summed loss, with the state at every held-th step constant.

    A plain loop over the problem's steps, in forward mode. It draws independent random data, so that it
    shares nothing with the estimates.
    """
    problem, theta, _, samples = KNOWN[name]

    def gradient(key: jax.Array, held: jax.Array) -> jax.Array:
        start, data = jax.random.split(key)

        def total(theta: Any) -> jax.Array:
            def step(carry: tuple, inputs: tuple) -> tuple:
                state, total = carry
                t, key = inputs
                state = optax.tree.where(t % held == 0, jax.lax.stop_gradient(state), state)
                state, loss = problem.step(theta, state, key)
                return (state, total + loss), None

            steps = jnp.arange(problem.horizon), jax.random.split(data, problem.horizon)
            return jax.lax.scan(step, (problem.init(start), 0.0), steps)[0][1]

        return ravel_pytree(jax.jacfwd(total)(theta))[0]

    keys = jax.random.split(jax.random.key(1), samples)
    mapped = often(jax.vmap(gradient, in_axes=(0, None)))
    return lru_cache(lambda held: Mean.of(mapped(keys, held)))


def estimated(name: str, known: str, truncation: int) -> Mean:
    """An estimator's mean estimate of the gradient of an episode's summed loss.

    Over two consecutive episodes of many independent units: effects of the first on the second would show.
    """
    problem, theta, sigma, samples = KNOWN[known]
    estimator = make(name, problem, truncation, sigma)
    windows = -(-problem.horizon // truncation)

    def unit(key: jax.Array) -> jax.Array:
        start, rest = jax.random.split(key)

        def window(carry: tuple, key: jax.Array) -> tuple:
            state, total = carry
            gradient, state, _ = estimator.estimate(theta, state, key)
            return (state, total + truncation * ravel_pytree(gradient)[0]), None

        carry = estimator.init(start, theta, 0.0), jnp.zeros_like(ravel_pytree(theta)[0])
        return jax.lax.scan(window, carry, jax.random.split(rest, 2 * windows))[0][1] / 2

    if not case(name).random:
        samples //= 8
    jit = jax.jit if samples < 70_000 else often
    keys = jax.random.split(jax.random.key(2), samples)
    return Mean.of(jit(jax.vmap(unit))(keys))


def standard_errors(mean: Mean, other: Mean, rounding: float) -> float:
    """The distance between two independent means, in standard errors.

    For several entries it is the length of the difference, scaled to standard errors of 1 in every direction.
    A rounding error is added to the standard errors, because some are zero.
    """
    covariance = mean.covariance + other.covariance + rounding**2 * np.eye(len(mean.value))
    difference = mean.value - other.value
    return math.sqrt(difference @ np.linalg.solve(covariance, difference))


def check_expected_gradient(name: str, known: str, truncation: int) -> None:
    exact = forward_mode(known)(KNOWN[known].problem.horizon)
    promised = forward_mode(known)(truncation) if case(name).biased else exact
    size = np.linalg.norm(exact.value)
    rounding = 1e-5 * size
    mean = estimated(name, known, truncation)
    assert math.hypot(mean.error, promised.error) < 0.005 * size
    # Several entries exceed this bound as rarely as a single one exceeds 3 standard errors.
    bound = math.sqrt(chi2.isf(chi2.sf(9, 1), len(exact.value)))
    assert standard_errors(mean, promised, rounding) < bound
    if case(name).biased and truncation < KNOWN[known].problem.horizon:
        assert standard_errors(mean, exact, rounding) > 10


def test_forward_mode_gives_what_is_known_in_closed_form():
    assert forward_mode("linear")(4).value == pytest.approx(EXACT, rel=1e-6)
    assert forward_mode("linear")(2).value == pytest.approx(5.8, rel=1e-6)


# An unbiased and a biased one.
SAMPLED = ("pes", "truncated-es")


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 4, quick=(1, 3), quick_names=SAMPLED))
def test_gradient_of_a_linear_recurrence(name: str, truncation: int):
    """3 does not divide the horizon, so an episode ends inside a window."""
    check_expected_gradient(name, "linear", truncation)


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 5, quick=(2,), quick_names=SAMPLED))
def test_gradient_of_a_learning_rate_on_a_quadratic(name: str, truncation: int):
    check_expected_gradient(name, "descent", truncation)


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 5, quick=(2,), quick_names=("pes",)))
def test_gradient_of_a_small_learned_optimizer(name: str, truncation: int):
    check_expected_gradient(name, "learned-optimizer", truncation)
