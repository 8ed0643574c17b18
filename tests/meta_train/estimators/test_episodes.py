"""Ends of episodes, non-finite losses, common randomness, and the counters."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inner_tasks import LinearRecurrence
from meta_train.estimators import Estimator
from tests.meta_train.estimators.cases import (
    DISTINCT,
    Estimated,
    at_truncations,
    case,
    every_estimator,
    every_estimator_compiled,
    make,
    whole_episodes,
)
from tests.meta_train.problems import (
    Fragile,
    Noise,
)


@lru_cache
def fragile(name: str, truncation: int, max_loss: float | None) -> tuple[Estimator, Callable[..., Any]]:
    estimator = make(name, Fragile(max_loss=max_loss), truncation, sigma=1e-4)
    return estimator, jax.jit(estimator.estimate)


def broken(state: Any) -> Any:
    """Break every inner state in the state of an estimator."""
    return jax.tree.map(lambda x: jnp.ones_like(x) if x.dtype == Fragile.FLAG else x, state)


def two_episodes(
    name: str, truncation: int, max_loss: float | None = None, break_before: int | None = None
) -> list[Estimated]:
    estimator, estimate = fragile(name, truncation, max_loss)
    theta, steps = np.float32(0.5), []
    state = estimator.init(jax.random.key(0), theta, 0.0)
    for window in range(2 * -(-Fragile().horizon // truncation)):
        if window == break_before:
            state = broken(state)
        key = jax.random.key(window)
        gradient, state, info = estimate(theta, state, key)
        steps.append(Estimated(key, *jax.tree.map(np.asarray, (gradient, state, info))))
    return steps


fragile_truncations = pytest.mark.parametrize(
    "name, truncation", at_truncations(1, 2, 3, 7, quick=(3,), quick_names=DISTINCT)
)


@fragile_truncations
def test_windows_end_with_the_episode(name: str, truncation: int):
    """An episode of 7 steps in windows of 3 has 3, 3 and 1; then the next one starts. Steps past the end are
    not counted and change no inner state.
    """
    particles, position, x = case(name).particles, 0, 1.0
    for window in two_episodes(name, truncation):
        if position == 7:
            position, x = 0, 1.0
        real, loss = min(truncation, 7 - position), 0.0
        for _ in range(real):
            x = 0.5 * x + 0.5
            loss += x**2
        position += real
        assert window.state.position == position
        counters = [leaf for leaf in jax.tree.leaves(window.state) if leaf.dtype == Fragile.COUNTER]
        assert counters and all(np.all(counter == position) for counter in counters)
        assert window.info["steps"] == particles * real
        assert window.info["episodes"] == particles * (position == 7)
        assert window.info["loss"] == pytest.approx(particles * loss, rel=1e-3)
        assert (window.info["clipped"], window.info["nonfinite"], window.info["units"]) == (0, 0, 1)


@pytest.mark.parametrize("truncation", [2, 3])
@every_estimator
def test_phases_start_at_whole_windows(name: str, truncation: int):
    estimator = make(name, LinearRecurrence(horizon=10), truncation)
    starts = [int(estimator.init(jax.random.key(0), np.float32(0), i / 4).position) for i in range(4)]
    windows = {2: [0, 2, 4, 6], 3: [0, 3, 6, 9]}[truncation]
    assert starts == ([0, 0, 0, 0] if whole_episodes(name) else windows)


@every_estimator_compiled
def test_common_randomness_cancels_exactly(name: str):
    """A pair shares data and initial state, so a loss of pure noise has a gradient of exactly 0."""
    estimator = make(name, Noise(horizon=6), 4)
    estimate, losses = jax.jit(estimator.estimate), []
    for seed in range(5):
        state = estimator.init(jax.random.key(seed), np.float32(0), 0.0)
        for window in range(4):
            key = jax.random.fold_in(jax.random.key(seed), window)
            gradient, state, info = estimate(np.float32(0), state, key)
            assert gradient == 0
            losses.append(info["loss"])
    assert np.std(losses) > 1


def check_broken_episode(name: str, truncation: int, max_loss: float | None) -> None:
    """Check an episode that diverges in its second last window (or its only one), and the next episode."""
    windows = -(-7 // truncation)
    breaks = max(0, windows - 2)
    sound = two_episodes(name, truncation, max_loss)
    spoilt = two_episodes(name, truncation, max_loss, break_before=breaks)
    for number, window in enumerate(spoilt):
        if breaks <= number < windows:
            # The first loss of the broken system is large; all others are infinite.
            large = number == breaks
            infinite = min(truncation, 7 - number * truncation) - large
            assert window.info["nonfinite"] == case(name).particles * infinite
            if max_loss is None:
                assert window.info["clipped"] == 0
                assert infinite == 0 or not np.isfinite(optax.tree.norm(window.gradient))
            else:
                assert window.info["clipped"] == case(name).particles * large
                assert window.info["loss"] == pytest.approx(
                    case(name).particles * max_loss * (infinite + large)
                )
                assert np.all(np.isfinite(window.gradient))
        else:
            # Before the break and in the next episode, everything equals the unbroken run.
            np.testing.assert_array_equal(window.gradient, sound[number].gradient)
            assert window.info == sound[number].info
    assert all(np.isfinite(window.gradient) for window in sound)


@fragile_truncations
def test_losses_that_are_not_finite_are_bounded_and_counted(name: str, truncation: int):
    """With ``max_loss`` the gradient stays finite, and the next episode is not affected."""
    check_broken_episode(name, truncation, max_loss=100.0)


@fragile_truncations
def test_without_a_largest_loss_the_gradient_shows_that_it_is_not_finite(name: str, truncation: int):
    """The norm is not finite, which tells the outer loop to skip the update."""
    check_broken_episode(name, truncation, max_loss=None)


@pytest.mark.parametrize("name", ["pes", "pes-analytic"])
def test_a_pair_of_which_one_broke_has_no_weight(name: str):
    """The gradient does not depend on xi, as that of a sound pair does."""
    estimator, estimate = fragile(name, 2, 100.0)
    theta = np.float32(0.5)
    _, state, _ = estimate(theta, estimator.init(jax.random.key(0), theta, 0.0), jax.random.key(1))
    inner = state.carried.inner
    one = state._replace(
        carried=state.carried._replace(inner=inner | {"broken": inner["broken"].at[0].set(1)})
    )

    def gradients(state: Any) -> list[np.ndarray]:
        weights = [state.carried.xi, 1 + state.carried.xi]
        states = [state._replace(carried=state.carried._replace(xi=xi)) for xi in weights]
        return [np.asarray(estimate(theta, own, jax.random.key(2))[0]) for own in states]

    first, second = gradients(one)
    assert first == second and np.isfinite(first)
    first, second = gradients(state)
    assert first != second
