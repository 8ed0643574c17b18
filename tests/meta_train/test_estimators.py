"""The estimators against gradients known from mathematics."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks import LinearRecurrence
from meta_train.estimators import pes, truncated_es
from meta_train.population import MAX_BLOCKS, blocks, population

LINEAR = LinearRecurrence(horizon=4, decay=0.9)
# sum_{t=1}^{4} (1 - 0.9^t) / (1 - 0.9)
EXACT = 9.049
SIGMA = 0.1


def episode_gradients(make_estimator, problem, theta, truncation, samples, seed=0):
    """Estimates of the gradient of one episode's summed loss, ``[samples, ...]``.

    One from each of many independent pairs: the sum over the windows of an episode, times K.
    """
    estimator = make_estimator(problem)
    windows = -(-problem.horizon // truncation)

    def episode(key):
        init_key, *keys = jax.random.split(key, windows + 1)
        state, total = estimator.init(init_key, theta, 0.0), jax.tree.map(jnp.zeros_like, theta)
        for key in keys:
            gradient, state, _ = estimator.estimate(theta, state, key)
            total = jax.tree.map(lambda a, b: a + truncation * b, total, gradient)
        return total

    return jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), samples))


def mean_and_error(samples):
    samples = np.asarray(samples, np.float64)
    return samples.mean(axis=0), samples.std(axis=0) / np.sqrt(len(samples))


@pytest.mark.parametrize("truncation", [1, 2, 3, 4])
def test_pes_is_unbiased_on_linear_recurrence(truncation):
    """Windows that divide the episode, and (3) that do not."""
    make = partial(pes, sigma=SIGMA, truncation=truncation)
    mean, error = mean_and_error(
        episode_gradients(make, LINEAR, jnp.float32(0.5), truncation, 400_000, seed=truncation)
    )
    assert error < 0.005 * EXACT
    assert abs(mean - EXACT) < 3 * error


@pytest.mark.parametrize("truncation", [2, 3])
def test_truncated_es_is_biased_by_the_carried_part(truncation):
    """It estimates the gradient with the state at the start of each window held constant."""
    make = partial(truncated_es, sigma=SIGMA, truncation=truncation)
    mean, error = mean_and_error(
        episode_gradients(make, LINEAR, jnp.float32(0.5), truncation, 100_000, seed=truncation)
    )
    # Within a window step j (from 1) has the sensitivity (1 - 0.9^j) / 0.1.
    in_window = [(t - 1) % truncation + 1 for t in range(1, 5)]
    predicted = sum((1 - 0.9**j) / 0.1 for j in in_window)
    assert abs(mean - predicted) < 3 * error
    assert abs(mean - EXACT) > 10 * error


@pytest.mark.parametrize("windows, predicted", [((2, 2), 7.51), ((1, 2, 1), 6.61)])
def test_wrong_attribution_of_the_last_loss_would_be_seen(windows, predicted):
    """The rule of google/learned_optimization: the last loss of an episode weighted by the newest
    perturbation alone.

    Its reset takes a step of its own, so that episodes of 4 steps fall on windows of 2 in these two ways
    in turn: 7.06 on average.
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pendulum:
    """A small nonlinear system with two parameters and random forcing, loss after the step."""

    horizon: int = dataclasses.field(default=6, metadata={"static": True})
    max_loss: float | None = dataclasses.field(default=None, metadata={"static": True})

    def init(self, key):
        return 0.1 * jax.random.normal(key, (2,))

    def step(self, theta, state, key):
        angle, speed = state
        speed = theta["damping"] * speed - 0.3 * jnp.sin(angle) + theta["push"] + 0.1 * jax.random.normal(key)
        angle = angle + speed
        return jnp.stack([angle, speed]), jnp.sin(angle) ** 2 + 0.1 * speed**2


@pytest.mark.parametrize("truncation", [2, 4])
def test_pes_agrees_with_forward_mode_as_sigma_goes_to_zero(truncation):
    """With the same randomness a pair's estimate is compared with that pair's own directional terms."""
    problem = Pendulum()
    theta = {"damping": jnp.float32(0.8), "push": jnp.float32(0.2)}
    sigma, seed, samples = 2e-3, 4, 600_000
    estimates = episode_gradients(
        partial(pes, sigma=sigma, truncation=truncation), problem, theta, truncation, samples, seed
    )
    windows = -(-problem.horizon // truncation)

    def exact(key):
        """Summed loss of the unperturbed episode that the pair with this key sees."""
        init_key, *keys = jax.random.split(key, windows + 1)

        def total(theta):
            # The first window's state is the one that `init` made; the keys are those of the windows.
            state, total = problem.init(init_key), 0.0
            for window, key in enumerate(keys):
                data_key = jax.random.split(key, 3)[2]
                for step, key in enumerate(jax.random.split(data_key, truncation)):
                    if window * truncation + step < problem.horizon:
                        state, loss = problem.step(theta, state, key)
                        total += loss
            return total

        return jax.jacfwd(total)(theta)

    exacts = jax.jit(jax.vmap(exact))(jax.random.split(jax.random.key(seed), samples))
    for name in theta:
        mean, error = mean_and_error(estimates[name] - exacts[name])
        expected = np.mean(np.asarray(exacts[name], np.float64))
        assert error < 0.01 * abs(expected)
        assert abs(mean) < 3 * error


def estimates_in_order(problem, truncation, windows, phase=0.0):
    """Gradients, states before and after, and diagnostics of one pair, window by window."""
    estimator = pes(problem, sigma=SIGMA, truncation=truncation)
    theta = jnp.float32(0.5)
    state = estimator.init(jax.random.key(0), theta, phase)
    for window in range(windows):
        gradient, after, info = estimator.estimate(theta, state, jax.random.key(100 + window))
        yield gradient, state, after, info
        state = after


def newest_epsilon(window):
    noise_key = jax.random.split(jax.random.key(100 + window), 3)[1]
    return SIGMA * jax.random.normal(jax.random.split(noise_key, 1)[0], ())


def test_xi_is_the_sum_of_the_episode_and_starts_anew():
    xi = 0.0
    for window, (_, before, after, _) in enumerate(estimates_in_order(LINEAR, 2, 7)):
        epsilon = newest_epsilon(window)
        xi = epsilon if int(before.position) in (0, LINEAR.horizon) else xi + epsilon
        np.testing.assert_allclose(after.carried.xi, xi, rtol=1e-6)


def test_windows_past_the_horizon_are_cut():
    """T = 4 in windows of 3: three steps, then one, then a new episode."""
    runs = list(estimates_in_order(LINEAR, 3, 4))
    assert [int(after.position) for *_, after, _ in runs] == [3, 4, 3, 4]
    assert [float(info.steps) for *_, info in runs] == [6, 2, 6, 2]
    assert [float(info.episodes) for *_, info in runs] == [0, 2, 0, 2]
    # Both members together: the perturbations cancel in a linear system.
    state, expected = 0.0, []
    for _ in range(4):
        state = 0.9 * state + 0.5
        expected.append(state)
    np.testing.assert_allclose(
        [float(info.loss) for *_, info in runs[:2]],
        [2 * sum(expected[:3]), 2 * expected[3]],
        rtol=1e-5,
    )


@pytest.mark.parametrize("truncation", [2, 3])
def test_phases_start_at_whole_windows(truncation):
    estimator = pes(LinearRecurrence(horizon=10), sigma=SIGMA, truncation=truncation)
    starts = [int(estimator.init(jax.random.key(0), jnp.float32(0), i / 4).position) for i in range(4)]
    assert starts == {2: [0, 2, 4, 6], 3: [0, 3, 6, 9]}[truncation]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
    """A loss that does not depend on theta; or, on request, one that is out of bounds."""

    value: float | None = dataclasses.field(default=None, metadata={"static": True})
    horizon: int = dataclasses.field(default=6, metadata={"static": True})
    max_loss: float | None = dataclasses.field(default=None, metadata={"static": True})

    def init(self, key):
        return jax.random.normal(key, (3,))

    def step(self, theta, state, key):
        state = 0.5 * state + jax.random.normal(key, (3,))
        return state, jnp.sum(state) if self.value is None else jnp.float32(self.value)


@pytest.mark.parametrize("estimator", [pes, truncated_es])
def test_common_randomness_cancels_exactly(estimator):
    """Data and initialisation are shared in a pair: noise alone gives a gradient of exactly zero."""
    gradients = episode_gradients(
        partial(estimator, sigma=SIGMA, truncation=4), Noise(), jnp.float32(0), 4, 100
    )
    np.testing.assert_array_equal(gradients, np.zeros(100))


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
    assert float(info.loss) == 6 * loss
    assert (float(info.clipped), float(info.nonfinite)) == (6 * clipped, 6 * nonfinite)


@pytest.mark.parametrize("chunk", [1, 2])
def test_members_together_or_in_turn(chunk):
    mean, error = mean_and_error(
        episode_gradients(
            partial(pes, sigma=SIGMA, truncation=3, chunk=chunk), LINEAR, jnp.float32(0), 3, 20_000
        )
    )
    assert abs(mean - EXACT) < 4 * error


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
    np.testing.assert_allclose(info.gradient_norm, np.linalg.norm(mean), rtol=1e-5)
    standard_error = np.sqrt(vectors.var(axis=0, ddof=1).sum() / units)
    np.testing.assert_allclose(info.snr, np.linalg.norm(mean) / standard_error, rtol=1e-3)
    np.testing.assert_allclose(
        info.loss, sum(i.loss for *_, i in each) / sum(i.steps for *_, i in each), rtol=1e-5
    )
    xi_norms = [np.hypot(s.carried.xi["damping"], s.carried.xi["push"]) for _, s, _ in each]
    np.testing.assert_allclose(info.xi_norm, np.mean(xi_norms), rtol=1e-5)
    gathered = whole.gather(state)
    assert gathered.carried.inner.shape == (units, 2, 2)
    pushes = [s.carried.xi["push"] for _, s, _ in each]
    np.testing.assert_allclose(gathered.carried.xi["push"], pushes, rtol=1e-6)
    again = whole.gather(whole.scatter(gathered))
    jax.tree.map(np.testing.assert_array_equal, gathered, again)


def test_blocks():
    assert [blocks(n) for n in (1, 8, 256, 257, 500, 50_000)] == [1, 8, 256, 1, 250, 250]
    assert blocks(MAX_BLOCKS * 7) == MAX_BLOCKS


def test_large_population_adds_up_in_blocks():
    """More pairs than blocks: still the mean over all of them."""
    units = 4 * MAX_BLOCKS
    whole = population(
        partial(pes, sigma=SIGMA, truncation=4, chunk=2), LINEAR, units=units, devices=1, chunk=64
    )
    theta = jnp.float32(0.5)
    state = whole.init(jax.random.key(0), theta)
    gradient, _, info = whole.estimate(theta, state, jax.random.key(1))
    error = float(info.gradient_norm / info.snr)
    assert float(info.steps) == 2 * 4 * units
    assert abs(4 * float(gradient) - EXACT) < 4 * 4 * error
