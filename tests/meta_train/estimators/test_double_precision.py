"""Every estimator in double precision, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import numpy as np
import optax
import pytest

from tests.meta_train.estimators.cases import (
    CASES,
    NAMES,
    Estimated,
    at_truncations,
    case,
    make,
)
from tests.meta_train.problems import (
    Wave,
)

WAVE = np.array([1.3, 0.4])  # a, b
SIGMA = 0.1


@lru_cache
def in_double_precision(name: str, truncation: int) -> list[Estimated]:
    """Two episodes of ``Wave``."""
    with jax.enable_x64(True):
        theta = {"a": WAVE[0], "b": WAVE[1]}
        estimator = make(name, Wave(), truncation, SIGMA)
        state, estimate, steps = (
            estimator.init(jax.random.key(0), theta, 0.0),
            jax.jit(estimator.estimate),
            [],
        )
        for window in range(2 * -(-Wave().horizon // truncation)):
            key = jax.random.key(100 + window)
            gradient, state, info = estimate(theta, state, key)
            steps.append(Estimated(key, *jax.tree.map(np.asarray, (gradient, state, info))))
    return steps


def vector(tree: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([tree["a"], tree["b"]])


def derivative(f: Callable[[np.ndarray], complex], at: np.ndarray) -> np.ndarray:
    """The derivative by the complex-step method, exact to rounding."""
    tiny = 1e-30
    return np.array([f(at + 1j * tiny * direction).imag / tiny for direction in np.eye(len(at))])


def windows_of_episodes(steps: list[Estimated], truncation: int) -> list[tuple[Estimated, int, int]]:
    """Each estimate with the number of its window in the episode, and the window's number of real steps."""
    windows = -(-Wave().horizon // truncation)
    numbers = [number % windows for number in range(len(steps))]
    return [
        (step, number, min(truncation, Wave().horizon - number * truncation))
        for step, number in zip(steps, numbers, strict=True)
    ]


def reached(theta: np.ndarray, steps: int) -> complex:
    return Wave.window(theta, Wave.START, steps)[0]


def perturbation_of(step: Estimated) -> np.ndarray:
    """The perturbation that a window draws, recomputed from its key."""
    with jax.enable_x64(True):
        noise = optax.tree.random_like(jax.random.split(step.key, 3)[1], {"a": WAVE[0], "b": WAVE[1]})
        return SIGMA * vector(jax.tree.map(np.asarray, noise))


def numpy_persistent(
    steps: list[Estimated], truncation: int, period: int, analytic: bool
) -> list[np.ndarray]:
    """PES and its variants: ``g = xi (L(+) - L(-)) / (2 sigma^2 K)``; with the control variate
    ``g = [p + xi_old (L(+) - L(-) - 2 epsilon . p) / (2 sigma^2)] / K``.
    """
    gradients = []
    for step, number, real in windows_of_episodes(steps, truncation):
        if number == 0:
            states, xi = {+1: Wave.START, -1: Wave.START}, np.zeros(2)
        old, losses = xi, {}
        if number % period == 0:
            epsilon = perturbation_of(step)
            xi = old + epsilon
        for sign in states:
            states[sign], losses[sign] = Wave.window(WAVE + sign * epsilon, states[sign], real)
        slope = (losses[+1] - losses[-1]) / (2 * SIGMA**2)
        if analytic:
            start = reached(WAVE, number * truncation)
            direct = derivative(
                lambda theta, start=start, real=real: Wave.window(theta, start, real)[1], WAVE
            )
            gradients.append((direct + old * (slope - epsilon @ direct / SIGMA**2)) / truncation)
        else:
            gradients.append(xi * slope / truncation)
    return gradients


def numpy_truncated_es(steps: list[Estimated], truncation: int) -> list[np.ndarray]:
    gradients = []
    for step, number, real in windows_of_episodes(steps, truncation):
        epsilon = perturbation_of(step)
        start = reached(WAVE, number * truncation)
        losses = [Wave.window(WAVE + sign * epsilon, start, real)[1] for sign in (+1, -1)]
        gradients.append(epsilon * (losses[0] - losses[1]) / (2 * SIGMA**2) / truncation)
    return gradients


def numpy_gradient(steps: list[Estimated], truncation: int, held: bool) -> list[np.ndarray]:
    """The gradient of a window's loss by theta in all steps so far, or with the window's first state held."""

    def loss(theta: np.ndarray, number: int, real: int) -> complex:
        start = reached(WAVE if held else theta, number * truncation)
        return Wave.window(theta, start, real)[1] / truncation

    return [
        derivative(partial(loss, number=number, real=real), WAVE)
        for _, number, real in windows_of_episodes(steps, truncation)
    ]


def numpy_uoro(steps: list[Estimated], truncation: int) -> list[np.ndarray]:
    """The formula, with random signs recovered from the carried vector. The state is one number."""
    from meta_train.estimators.uoro import TINY

    gradients = []
    for step, number, real in windows_of_episodes(steps, truncation):
        if number == 0:
            u, v = 0.0, np.zeros(2)
        at = np.array([*WAVE, reached(WAVE, number * truncation).real])

        def moved(at: np.ndarray, output: int, real: int = real) -> complex:
            return Wave.window(at[:2], at[2], real)[output]

        *by_theta, by_state = derivative(partial(moved, output=0), at)
        *direct, slope = derivative(partial(moved, output=1), at)
        gradients.append((slope * u * v + np.array(direct)) / truncation)

        pushed, by_theta = by_state * u, np.array(by_theta)
        old = np.sqrt((np.linalg.norm(v) + TINY) / (abs(pushed) + TINY))
        new = np.sqrt((np.linalg.norm(by_theta) + TINY) / (1 + TINY))
        sign = (float(step.state.carried.state_vector[0]) - old * pushed) / new
        assert abs(sign) == pytest.approx(1, abs=1e-6)
        u, v = old * pushed + new * np.sign(sign), v / old + np.sign(sign) * by_theta / new
    return gradients


double_precision_truncations = pytest.mark.parametrize(
    "name, truncation", at_truncations(1, 2, 3, 5, quick=(2,))
)


@double_precision_truncations
def test_double_precision_agrees_with_numpy(name: str, truncation: int):
    """Perturbing estimators agree with their formula for the same perturbations, others with the gradient."""
    steps, promise = in_double_precision(name, truncation), case(name)
    if promise.period is not None:
        tolerance = 1e-8
        expected = numpy_persistent(steps, truncation, promise.period, name == "pes-analytic")
    elif name == "truncated-es":
        tolerance, expected = 1e-8, numpy_truncated_es(steps, truncation)
    elif name == "uoro":
        tolerance, expected = 1e-8, numpy_uoro(steps, truncation)
    else:
        tolerance, expected = 1e-10, numpy_gradient(steps, truncation, held=promise.biased)
    for step, gradient in zip(steps, expected, strict=True):
        assert all(leaf.dtype == np.float64 for leaf in step.gradient.values())
        assert all(leaf.dtype == np.float32 for leaf in step.info.values())
        assert np.linalg.norm(vector(step.gradient) - gradient) <= tolerance * np.linalg.norm(gradient)
    assert max(np.linalg.norm(gradient) for gradient in expected) > 0.1


persistent = [name for name in NAMES if name in CASES and CASES[name].period is not None]


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 5, quick=(2,), names=persistent))
def test_xi_is_the_sum_of_what_was_drawn_in_the_episode(name: str, truncation: int):
    """It includes the newest perturbation, and is reset with every episode."""
    xi, drawn = np.zeros(2), []
    for step, number, _ in windows_of_episodes(in_double_precision(name, truncation), truncation):
        if number % case(name).period == 0:
            drawn.append(perturbation_of(step))
            xi = drawn[-1] if number == 0 else xi + drawn[-1]
        # The compiled program multiplies by sigma in another order.
        np.testing.assert_allclose(vector(step.state.carried.xi), xi, rtol=1e-14)
        assert step.info["xi_norm"] == pytest.approx(np.linalg.norm(xi), rel=1e-6)
    assert len(drawn) >= 2 and np.all(np.diff(drawn, axis=0) != 0)
