"""The outer loop against NumPy: normalisation, Adam, cosine; the start of a run; and that keys are unique."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints import orbax_files
from meta_train.estimators import pes
from meta_train.outer.loop import initial_state, outer_loop, result
from meta_train.outer.optimizers import OuterConfig, outer_optimizer
from meta_train.outer.population import Metrics, Population, population
from meta_train.report.evaluation import FIRST_TUNING_SEED, evaluation_key
from tests.meta_train.command import Run
from tests.meta_train.problems import problem, static

CONFIG = OuterConfig(learning_rate=0.1, final_fraction=0.2)
THETA = {"a": np.array([1.0, -2.0, 0.5], np.float32), "b": np.float32(3.0)}


def flat(theta: dict[str, Any]) -> np.ndarray:
    return np.append(np.asarray(theta["a"], np.float64), np.float64(theta["b"]))


def numpy_outer(theta: np.ndarray, gradients: list[np.ndarray], updates: int) -> list[np.ndarray]:
    """Theta after each update: division by the global norm, then Adam with a cosine schedule."""
    m, v, count, thetas = np.zeros(4), np.zeros(4), 0, []
    for g in gradients:
        if np.isfinite(g).all():
            share = (1 + math.cos(math.pi * count / updates)) / 2
            rate = CONFIG.learning_rate * (CONFIG.final_fraction + (1 - CONFIG.final_fraction) * share)
            g = g / np.linalg.norm(g)
            m, v, count = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, count + 1
            theta = theta - rate * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        thetas.append(theta)
    return thetas


def returning(gradients: list[np.ndarray]) -> Population:
    """A population with given estimates; its state is the number of estimates so far."""

    def estimate(theta: Any, made: int, key: jax.Array) -> tuple[Any, int, Metrics]:
        g = jnp.asarray(gradients[made], jnp.float32)
        return {"a": g[:3], "b": g[3]}, made + 1, {}

    return Population(lambda key, theta: 0, estimate, lambda state: state, lambda state: state, None)


def test_updates_are_those_of_numpy():
    """Gradients of all sizes, and a non-finite one, which changes nothing."""
    rng, updates = np.random.default_rng(0), 9
    norms = np.array([0.3, 20, 1.0, 5, 0.01, 1e6, 1.4, 1e-9, 2])
    gradients = [norm * g / np.linalg.norm(g) for norm, g in zip(norms, rng.normal(size=(9, 4)), strict=True)]
    gradients[4][2] = np.nan
    tx, given = outer_optimizer(CONFIG, updates), returning(gradients)
    state = initial_state(given, tx, THETA, jax.random.key(0))
    np.testing.assert_array_equal(flat(state.theta), flat(THETA))
    made = list(outer_loop(given, tx, state, 0, updates))
    for update, expected in zip(made, numpy_outer(flat(THETA), gradients, updates), strict=True):
        np.testing.assert_allclose(flat(update.state.theta), expected, rtol=1e-5)
    assert [update.number for update in made] == list(range(1, updates + 1))
    assert [update.state.skipped for update in made] == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    np.testing.assert_array_equal(flat(made[4].state.theta), flat(made[3].state.theta))


def test_the_result_is_the_mean_of_the_last_thetas():
    """An update without a finite meta-gradient does not count, and theta itself moves as without a mean."""
    gradients = list(np.random.default_rng(0).normal(size=(8, 4)))
    gradients[6][1] = np.inf
    given, made = returning(gradients), {}
    for share in (0.5, 0):
        tx = outer_optimizer(replace(CONFIG, average=share), 8)
        state = initial_state(given, tx, THETA, jax.random.key(0))
        np.testing.assert_array_equal(flat(result(state)), flat(THETA))
        made[share] = list(outer_loop(given, tx, state, 0, 8))
    thetas = [flat(update.state.theta) for update in made[0]]
    found = [flat(result(update.state)) for update in made[0.5]]
    np.testing.assert_array_equal([flat(update.state.theta) for update in made[0.5]], thetas)
    np.testing.assert_array_equal(found[:4], thetas[:4])
    expected = [np.mean([thetas[i] for i in counted], 0) for counted in ([4], [4, 5], [4, 5], [4, 5, 7])]
    np.testing.assert_allclose(found[4:], expected, rtol=1e-6)
    np.testing.assert_array_equal([flat(result(update.state)) for update in made[0]], thetas)


def saved(run: Run, update: int) -> dict[str, np.ndarray]:
    """The arrays of a run's checkpoint, by path."""
    folder = run.path / "checkpoints" / str(update)
    saved = orbax_files.read_index(folder)["arrays"]
    like = {path: np.empty(array["shape"], array["dtype"]) for path, array in saved.items()}
    return {path: np.asarray(x, np.float64) for path, x in orbax_files.read_arrays(folder, like).items()}


def part(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Theta, or a tree like it in the outer optimizer's state, as one vector."""
    return np.concatenate([x.ravel() for path, x in sorted(arrays.items()) if f".{name}[" in path])


def test_the_last_update_of_a_run_is_that_of_numpy(tiny_run: Run):
    """Computed from the checkpoints of updates 2 and 3: the settings of a run reach its outer optimizer."""
    first, before, after = (saved(tiny_run, update) for update in (0, 2, 3))
    assert not part(first, "mu").any() and not part(first, "nu").any()
    m, v = part(after, "mu"), part(after, "nu")
    gradient = (m - 0.9 * part(before, "mu")) / 0.1
    assert np.linalg.norm(gradient) == pytest.approx(1, rel=1e-4)
    # `nu` has 7 digits, and the newest square is a thousandth of it.
    np.testing.assert_allclose(v - 0.999 * part(before, "nu"), 0.001 * gradient**2, atol=1e-6 * v.max())
    rate = 0.02 * (0.1 + 0.9 * (1 + math.cos(math.pi * 2 / 3)) / 2)
    step = rate * (m / (1 - 0.9**3)) / (np.sqrt(v / (1 - 0.999**3)) + 1e-8)
    np.testing.assert_allclose(part(before, "theta") - part(after, "theta"), step, rtol=1e-3, atol=1e-6)


# --- Keys ----------------------------------------------------------------------------------------------


@problem
class Remembered:
    """The inner state records the key from which it was made and the keys of its steps."""

    horizon: int = static(5)
    max_loss: float | None = static(None)
    differentiable: bool = static(True)

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        keys = jnp.zeros((self.horizon, 2), jnp.uint32)
        return {"start": jax.random.key_data(key), "steps": keys, "taken": jnp.zeros((), jnp.int32)}

    def step(
        self, theta: jax.Array, state: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        steps = state["steps"].at[state["taken"]].set(jax.random.key_data(key))
        return {**state, "steps": steps, "taken": state["taken"] + 1}, theta


class Keys(NamedTuple):
    """The keys of a run, as pairs of numbers, once per use."""

    starts: list[tuple[int, int]]  # of episodes
    steps: list[tuple[int, int]]  # of inner steps
    epsilons: list[float]  # perturbations, one for each key from which one was drawn


def pairs(keys: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(key) for key in np.reshape(keys, (-1, 2)).tolist()]


def keys_of_a_run(seed: int, devices: int) -> Keys:
    """The keys of 8 updates with 6 pairs: more than two episodes, in windows of 2, 2 and 1 steps."""
    unrolled = partial(pes, sigma=0.1, truncation=2)
    particles = population(unrolled, Remembered(), units=6, devices=devices)
    tx, theta = outer_optimizer(CONFIG, 8), jnp.float32(0)
    state = initial_state(particles, tx, theta, jax.random.key(seed))
    carried = particles.gather(state.particles).carried
    found = Keys(pairs(carried.inner["start"][:, 0]), [], [])
    for update in outer_loop(particles, tx, state, 0, 8):
        before, carried = carried, particles.gather(update.state.particles).carried
        # Both particles of a pair see the same data.
        jax.tree.map(lambda x: np.testing.assert_array_equal(x[:, 0], x[:, 1]), carried.inner)
        for pair in range(6):
            old, new = (jax.tree.map(lambda x, i=pair: x[i, 0], each.inner) for each in (before, carried))
            restarted = new["taken"] <= old["taken"]
            found.epsilons.append(float(carried.xi[pair] - (0 if restarted else before.xi[pair])))
            found.steps.extend(pairs(new["steps"][0 if restarted else old["taken"] : new["taken"]]))
            found.starts.extend(pairs(new["start"]) if restarted else [])
    return found


def test_no_key_of_a_run_is_used_twice():
    """Neither by two updates, nor by two pairs, nor for two purposes."""
    found = keys_of_a_run(seed=3, devices=2)
    keys = found.starts + found.steps
    assert (len(found.epsilons), len(found.steps) > 70, len(found.starts) > 15) == (48, True, True)
    assert len(set(keys)) == len(keys)
    assert len(set(found.epsilons)) == len(found.epsilons)


def test_evaluation_meets_no_key_of_meta_training():
    """For any seed of the run, reports use data and initialisations that it has not seen."""
    evaluated = set()
    for seed in (*range(4), *range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + 4)):
        init_key, data_key = jax.random.split(evaluation_key(seed))
        evaluated |= {*pairs(jax.random.key_data(init_key)), *pairs(jax.random.key_data(data_key))}
        evaluated |= set(pairs(jax.random.key_data(jax.random.split(data_key, 20))))
    assert len(evaluated) == 8 * 22
    for seed in range(3):
        found = keys_of_a_run(seed, devices=1)
        assert evaluated.isdisjoint(found.starts + found.steps)


def test_each_pair_starts_at_its_phase_and_with_a_state_of_its_own():
    """The first pairs of a population are spread over the episode."""
    particles = population(partial(pes, sigma=0.1, truncation=2), Remembered(), units=6, devices=2)
    state = initial_state(particles, outer_optimizer(CONFIG, 8), jnp.float32(0), jax.random.key(0))
    gathered = particles.gather(state.particles)
    np.testing.assert_array_equal(gathered.position, [0, 0, 2, 2, 4, 4])
    assert len(set(pairs(gathered.carried.inner["start"][:, 0]))) == 6
