"""Tests of single estimators and of populations; the folder estimators has those common to all."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks import LinearRecurrence
from learned_opt import UserError
from meta_train.devices.choice import MAX_PARTIAL_SUMS, partial_sums
from meta_train.estimators import nres, pes, truncated_es
from meta_train.estimators.window import unroll
from meta_train.outer.population import population
from tests.meta_train.problems import Cliff, Noise, Pendulum

LINEAR = LinearRecurrence(horizon=4, decay=0.9)
# sum_{t=1}^{4} (1 - 0.9^t) / (1 - 0.9)
EXACT = 9.049
SIGMA = 0.1


def mean_and_error(samples):
    samples = np.asarray(samples, np.float64)
    return samples.mean(axis=0), samples.std(axis=0) / np.sqrt(len(samples))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_16_bits_are_refused(dtype):
    """With theta near 1 and sigma = 0.001, all perturbed thetas would be the same."""
    estimator = pes(LINEAR, sigma=1e-3, truncation=2)
    with pytest.raises(UserError, match=f"theta is {dtype}, .* convert it to float32"):
        state = estimator.init(jax.random.key(0), jnp.ones((), dtype), 0.0)
        estimator.estimate(jnp.ones((), dtype), state, jax.random.key(1))


@pytest.mark.parametrize("windows, predicted", [((2, 2), 7.51), ((1, 2, 1), 6.61)])
def test_wrong_attribution_of_the_last_loss_would_be_seen(windows, predicted):
    """The rule of google/learned_optimization: the last loss of an episode weighted by the newest
    perturbation alone.

    Its reset takes an extra step, so that episodes of 4 steps alternate between these two positions in the
    windows of 2: 7.06 on average.
    """

    def episode(key):
        epsilons = SIGMA * jax.random.normal(key, (len(windows),))
        total, states, taken = 0.0, {+1: 0.0, -1: 0.0}, 0
        for window, length in enumerate(windows):
            for _ in range(length):
                taken += 1
                for sign in states:
                    states[sign] = 0.9 * states[sign] + 0.5 + sign * epsilons[window]
                xi = epsilons[window] if taken == 4 else jnp.sum(epsilons[: window + 1])
                total += xi * (states[+1] - states[-1]) / (2 * SIGMA**2)
        return total

    samples = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 400_000))
    mean, error = mean_and_error(samples)
    assert abs(mean - predicted) < 3 * error
    assert abs(mean - EXACT) > 10 * error


@pytest.mark.parametrize("truncation, at_once", [(3, 2), (4, 1)])
def test_a_gpu_takes_two_steps_an_iteration_if_none_is_masked(truncation, at_once, monkeypatch):
    theta = {"damping": jnp.float32(0.9), "push": jnp.float32(0.1)}
    problem, key = Pendulum(horizon=6), jax.random.key(0)

    def window(theta):
        return unroll(problem, theta, problem.init(key), jnp.int32(3), key, truncation)

    expected = window(theta)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = window(theta)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    loops = [e for e in jax.make_jaxpr(window)(theta).eqns if e.primitive.name == "scan"]
    assert [loop.params["unroll"] for loop in loops] == [at_once]


@pytest.mark.parametrize(
    "value, max_loss, loss, clipped, nonfinite",
    [
        (5.0, 2.0, 2.0, 1, 0),
        (np.nan, 2.0, 2.0, 0, 1),
        (np.inf, 2.0, 2.0, 0, 1),
        (5.0, None, 5.0, 0, 0),
        (np.inf, None, np.inf, 0, 1),
        (-5.0, 2.0, -5.0, 0, 0),
    ],
)
def test_losses_are_clipped_and_counted(value, max_loss, loss, clipped, nonfinite):
    estimator = pes(Noise(value=value, max_loss=max_loss), sigma=SIGMA, truncation=3)
    theta = jnp.float32(0)
    state = estimator.init(jax.random.key(0), theta, 0.0)
    _, _, info = estimator.estimate(theta, state, jax.random.key(1))
    assert float(info["loss"]) == 6 * loss
    assert (float(info["clipped"]), float(info["nonfinite"])) == (6 * clipped, 6 * nonfinite)


@pytest.mark.parametrize("max_loss", [None, 5.0])
@pytest.mark.parametrize("make_estimator", [pes, nres, truncated_es])
def test_a_pair_of_which_one_member_breaks_is_dropped_until_its_episode_ends(make_estimator, max_loss):
    """Against the perturbations: a particle breaks if its perturbation takes theta above 1."""
    estimator = make_estimator(Cliff(max_loss=max_loss), sigma=1.0, truncation=2)
    estimate = jax.jit(estimator.estimate)
    theta, broken = jnp.float32(0), 0
    for seed in range(12):
        state, lost = estimator.init(jax.random.key(seed), theta, 0.0), False
        for window in range(3):
            before = state.carried
            gradient, state, info = estimate(theta, state, jax.random.fold_in(jax.random.key(seed), window))
            lost = lost and make_estimator is not truncated_es  # there, pairs start from the mean
            lost = lost or float(info["nonfinite"]) > 0
            if float(info["nonfinite"]) == 4:  # by now the other particle has broken too
                break
            assert float(info["dropped"]) == lost
            # The losses of a window of 2 steps add up to 2 (theta + epsilon): g = xi (2 epsilon) / K.
            if lost:
                assert float(gradient) == 0
                broken += 1
            elif make_estimator is pes:
                epsilon = state.carried.xi - before.xi
                np.testing.assert_allclose(gradient, state.carried.xi * epsilon, rtol=1e-5)
    assert 5 < broken < 31


@pytest.mark.parametrize("make_estimator", [pes, truncated_es])
def test_particles_together_or_in_turn(make_estimator):
    """The estimates are equal up to rounding."""
    theta = {"damping": jnp.float32(0.8), "push": jnp.float32(0.2)}
    estimates = []
    for chunk in (1, 2):
        estimator = make_estimator(Pendulum(), sigma=SIGMA, truncation=4, chunk=chunk)
        state = estimator.init(jax.random.key(0), theta, 0.0)
        estimates.append(jax.jit(estimator.estimate)(theta, state, jax.random.key(1)))
    for one, other in zip(*map(jax.tree.leaves, estimates), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_population_is_the_mean_of_its_pairs():
    units, key, theta = 6, jax.random.key(7), {"damping": jnp.float32(0.8), "push": jnp.float32(0.2)}
    make, problem = partial(pes, sigma=SIGMA, truncation=2), Pendulum()
    whole = population(make, problem, units=units, devices=1)
    state = whole.init(jax.random.key(1), theta)
    gradient, state, info = whole.estimate(theta, state, key)

    alone = make(problem)
    each = []
    for number in range(units):
        own = alone.init(jax.random.fold_in(jax.random.key(1), number), theta, number / units)
        each.append(jax.jit(alone.estimate)(theta, own, jax.random.fold_in(key, number)))
    vectors = np.array([[g["damping"], g["push"]] for g, _, _ in each])
    mean = vectors.mean(0)
    np.testing.assert_allclose([gradient["damping"], gradient["push"]], mean, rtol=1e-5)
    np.testing.assert_allclose(info["gradient_norm"], np.linalg.norm(mean), rtol=1e-5)
    standard_error = np.sqrt(vectors.var(axis=0, ddof=1).sum() / units)
    np.testing.assert_allclose(info["snr"], np.linalg.norm(mean) / standard_error, rtol=1e-3)
    np.testing.assert_allclose(
        info["loss"], sum(i["loss"] for *_, i in each) / sum(i["steps"] for *_, i in each), rtol=1e-5
    )
    xi_norms = [np.hypot(s.carried.xi["damping"], s.carried.xi["push"]) for _, s, _ in each]
    np.testing.assert_allclose(info["xi_norm"], np.mean(xi_norms), rtol=1e-5)
    gathered = whole.gather(state)
    assert gathered.carried.inner.shape == (units, 2, 2)
    pushes = [s.carried.xi["push"] for _, s, _ in each]
    np.testing.assert_allclose(gathered.carried.xi["push"], pushes, rtol=1e-6)
    again = whole.gather(whole.scatter(gathered))
    jax.tree.map(np.testing.assert_array_equal, gathered, again)


def test_partial_sums():
    assert [partial_sums(n) for n in (1, 8, 256, 257, 500, 50_000)] == [1, 8, 256, 1, 250, 250]
    assert partial_sums(MAX_PARTIAL_SUMS * 7) == MAX_PARTIAL_SUMS


def test_large_population_adds_up_partial_sums():
    """With more pairs than partial sums, the result is still the mean over all pairs."""
    units = 4 * MAX_PARTIAL_SUMS
    whole = population(
        partial(pes, sigma=SIGMA, truncation=4, chunk=2), LINEAR, units=units, devices=1, chunk=64
    )
    theta = jnp.float32(0.5)
    state = whole.init(jax.random.key(0), theta)
    gradient, _, info = whole.estimate(theta, state, jax.random.key(1))
    error = float(info["gradient_norm"] / info["snr"])
    assert float(info["steps"]) == 2 * 4 * units
    assert abs(4 * float(gradient) - EXACT) < 4 * 4 * error
