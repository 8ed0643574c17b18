"""Every estimator as a population, on any number of devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from meta_train.outer.population import population
from tests.meta_train.estimators.cases import (
    NAMES,
    at_truncations,
    make,
)
from tests.meta_train.problems import (
    Pendulum,
)

PENDULUM = {"damping": np.float32(0.8), "push": np.float32(0.2)}


def check_one_unit(name: str, truncation: int) -> None:
    make_estimator = partial(make, name, truncation=truncation)
    alone, one = (
        make_estimator(Pendulum()),
        population(make_estimator, Pendulum(), units=1, devices=1),
    )
    state = one.init(jax.random.key(0), PENDULUM)
    own = alone.init(jax.random.fold_in(jax.random.key(0), 0), PENDULUM, 0.0)
    gradient, state, info = one.estimate(PENDULUM, state, jax.random.key(1))
    expected, own, own_info = jax.jit(alone.estimate)(PENDULUM, own, jax.random.fold_in(jax.random.key(1), 0))
    for entry in PENDULUM:
        np.testing.assert_allclose(gradient[entry], expected[entry], rtol=1e-4)
    assert info["steps"] == own_info["steps"]
    assert info["loss"] == pytest.approx(float(own_info["loss"] / own_info["steps"]), rel=1e-5)
    assert np.isnan(info["snr"])  # a single unit has no scatter


def test_population_of_one():
    check_one_unit("pes", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name, truncation", at_truncations(1, 3, 6, quick=(1, 3, 6)))
def test_population_of_one_of_any_estimator(name: str, truncation: int):
    check_one_unit(name, truncation)


def three_updates(name: str, devices: int) -> Any:
    """Theta, and all particles and diagnostics, after three updates of a population of four units."""
    particles = population(partial(make, name, truncation=2), Pendulum(horizon=5), units=4, devices=devices)
    theta, infos = PENDULUM, []
    state = particles.init(jax.random.key(0), theta)
    for update in range(3):
        gradient, state, info = particles.estimate(theta, state, jax.random.key(1 + update))
        theta = jax.tree.map(lambda t, g: np.asarray(t - 0.01 * g), theta, gradient)
        infos.append(jax.tree.map(np.asarray, info))
    assert all(0 < info["gradient_norm"] < np.inf for info in infos)
    return theta, particles.gather(state), infos


@pytest.mark.parametrize(
    "name, devices",
    [
        pytest.param(name, devices, marks=[] if (name, devices) == ("pes", 4) else pytest.mark.slow)
        for name in NAMES
        for devices in (2, 4)
    ],
)
def test_number_of_devices_changes_no_bit(name: str, devices: int, optimized: None):
    """Four devices have one unit each."""
    jax.tree.map(np.testing.assert_array_equal, three_updates(name, 1), three_updates(name, devices))
