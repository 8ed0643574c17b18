"""The L2 coefficient of ridge regression, against linear algebra in double precision."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from inner_tasks.problems.ridge import diabetes
from meta_train.estimators import rtrl, truncated_es
from meta_train.experiments import regularisation
from meta_train.experiments.base import Settings, write_result
from meta_train.experiments.regularisation import THETAS, closed_form, side_by_side

PROBLEM = diabetes()
EXACT = closed_form(PROBLEM)
KEY = jax.random.key(0)  # nothing in the problem is random


X, Y, V, U = (
    np.asarray(part, np.float64)
    for part in (PROBLEM.inputs, PROBLEM.targets, PROBLEM.held_out_inputs, PROBLEM.held_out_targets)
)
GRAM, MOMENT = X.T @ X, X.T @ Y


def ridge(theta):
    """The minimiser of ``|X w - y|^2 + exp(theta) |w|^2``, from the normal equations."""
    return np.linalg.solve(GRAM + np.exp(theta) * np.eye(len(GRAM)), MOMENT)


def ridge_loss(theta):
    return np.mean((V @ ridge(theta) - U) ** 2)


def test_data_are_two_halves_standardised_by_the_first():
    assert X.shape == V.shape == (221, 55) and Y.shape == U.shape == (221,)
    np.testing.assert_allclose(X.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(X.std(axis=0), X.std(), rtol=1e-4)
    np.testing.assert_allclose([Y.mean(), Y.std()], [0, 1], atol=1e-6)
    assert np.linalg.eigvalsh(GRAM)[-1] == pytest.approx(1000, rel=1e-5)


def test_step_descends_the_penalised_training_loss():
    """Against a numerical derivative of that loss; the loss is taken after the step."""
    theta, weights = 1.5, np.random.RandomState(1).normal(size=55) / 10

    def training_loss(w):
        return (np.sum((X @ w - Y) ** 2) + np.exp(theta) * np.sum(w**2)) / 2

    h = 1e-4
    gradient = [(training_loss(weights + d) - training_loss(weights - d)) / (2 * h) for d in h * np.eye(55)]
    expected = weights - 1e-3 * np.array(gradient)
    moved, loss = PROBLEM.step(jnp.float32(theta), jnp.asarray(weights, jnp.float32), KEY)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    np.testing.assert_allclose(loss, np.mean((V @ expected - U) ** 2), rtol=1e-5)


@pytest.mark.parametrize("theta", [1.0, 5.0])
def test_long_training_ends_at_the_ridge_solution(theta):
    """The slowest direction needs about 1 / (0.001 exp(theta)) steps."""
    steps = int(20 / (1e-3 * np.exp(theta)))
    weights, losses = jax.lax.scan(
        lambda w, _: PROBLEM.step(jnp.float32(theta), w, KEY), PROBLEM.init(KEY), length=steps
    )
    np.testing.assert_allclose(weights, ridge(theta), atol=1e-4)
    assert losses[-1] == pytest.approx(ridge_loss(theta), rel=1e-4)
    assert np.interp(theta, THETAS, EXACT.loss) == pytest.approx(ridge_loss(theta), rel=1e-4)


def test_optimum_is_found_by_search():
    best, spacing = 0.0, 0.5
    for _ in range(3):
        thetas = best + spacing * np.arange(-15, 16)
        best = thetas[np.argmin([ridge_loss(theta) for theta in thetas])]
        spacing /= 10
    assert EXACT.optimum == pytest.approx(best, abs=5e-3)
    assert -5 < EXACT.short_sighted < EXACT.optimum - 1 < 4  # they differ, and lie inside


def test_slope_is_that_of_rtrl_in_the_long_run():
    """With a fixed theta, RTRL converges to the derivative of the closed form."""
    thetas = jnp.array([2.0, 3.0, 4.5])
    estimator = side_by_side(rtrl(PROBLEM, truncation=1))

    def estimate(state, _):
        gradient, state, _ = estimator.estimate(thetas, state, KEY)
        return state, gradient

    _, gradients = jax.lax.scan(estimate, estimator.init(KEY, thetas), length=4000)
    np.testing.assert_allclose(gradients[-1], np.interp(thetas, THETAS, EXACT.slope), rtol=2e-3, atol=1e-5)


def test_truncated_es_follows_the_slope_of_a_single_step():
    """On average, from trained weights; between the zero of that slope and the optimum the sign is wrong."""
    thetas = np.array([0.0, 1.5, 2.5, 4.0])
    estimator = truncated_es(PROBLEM, sigma=regularisation.SIGMA, truncation=1, chunk=2)

    def gradients(theta, weights):
        state = estimator.init(KEY, theta)._replace(carried=weights)
        keys = jax.random.split(jax.random.key(1), 10_000)
        return jax.vmap(lambda key: estimator.estimate(theta, state, key)[0])(keys)

    weights = jnp.array([ridge(theta) for theta in thetas], jnp.float32)
    samples = np.asarray(jax.jit(jax.vmap(gradients))(jnp.float32(thetas), weights))
    mean, error = samples.mean(axis=1), samples.std(axis=1) / np.sqrt(samples.shape[1])
    one_step, slope = (np.interp(thetas, THETAS, s) for s in (EXACT.one_step_slope, EXACT.slope))
    assert (error < 0.02 * np.abs(one_step)).all()
    assert (np.abs(mean - one_step) < 3 * error).all()
    assert (np.abs(mean - slope) > 10 * error).all()
    assert list(np.sign(one_step)) == [-1, -1, 1, 1] and list(np.sign(slope)) == [-1, -1, -1, 1]


def test_entries_side_by_side_are_runs_of_their_own():
    """The result for one entry does not depend on the others."""
    estimator = side_by_side(truncated_es(PROBLEM, sigma=0.01, truncation=1))

    @jax.jit
    def second_estimate(theta):
        _, state, _ = estimator.estimate(theta, estimator.init(KEY, theta), KEY)
        return estimator.estimate(theta, state, KEY)[0]

    first, second = second_estimate(jnp.array([1.0, 4.0])), second_estimate(jnp.array([1.0, 2.0]))
    assert first[0] == second[0] != 0
    assert first[1] != second[1]


def test_a_short_run_writes_strict_json_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(regularisation.UPDATES, "small", 200)
    monkeypatch.setattr(regularisation, "mean_of", lambda pair, _: pair)  # a single pair compiles faster
    settings = Settings("small", (0, 1))
    result = regularisation.run(settings, Console(quiet=True))
    assert not result.verdict.holds  # it had no time to converge
    picture, path = write_result(regularisation.EXPERIMENT, settings, result, tmp_path)
    assert picture.stat().st_size > 10_000

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads(path.read_text(), parse_constant=refuse)
    assert set(written["methods"]) == {"pes-16", "truncated-es", "rtrl"}
    for outcome in written["methods"].values():
        assert np.shape(outcome["final_loss"]) == (2,) and np.shape(outcome["theta"]) == (2, 3)
        assert np.shape(outcome["curve"]["theta"]) == (2, 101, 3)
