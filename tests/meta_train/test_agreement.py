"""The signal across updates, for pure noise and for a known gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_train.outer.agreement import DECAY, agreed, no_agreement, snr_across

P = 400


def after(gradients: np.ndarray) -> list[float]:
    """The signal after each of the meta-gradients ``[updates, P]``."""

    def step(agreement, gradient):
        agreement = agreed(agreement, {"w": gradient})
        return agreement, snr_across(agreement)

    start = no_agreement({"w": jnp.zeros(gradients.shape[1])})
    return np.asarray(jax.lax.scan(step, start, jnp.asarray(gradients, jnp.float32))[1])


def plain(gradients: np.ndarray) -> float:
    """The same number from its definition."""
    t = len(gradients)
    weights = DECAY ** np.arange(t)[::-1] * (1 - DECAY)
    weights /= weights.sum()
    mean, square = weights @ gradients, weights @ np.sum(gradients**2, axis=1)
    s = np.sum(weights**2)
    return float(np.sqrt(mean @ mean / (s * (square - mean @ mean) / (1 - s))))


@pytest.mark.parametrize("updates", [2, 3, 50, 400])
def test_it_is_the_definition(updates: int):
    gradients = np.random.RandomState(0).normal(1, 2, (updates, 7))
    assert after(gradients)[-1] == pytest.approx(plain(gradients), rel=1e-3)


def test_pure_noise_gives_one():
    """Its scatter is 1 / sqrt(2 P) = 0.035; the bound is four times that."""
    noise = np.random.RandomState(1).normal(size=(1000, P))
    found = after(noise)[[99, 299, 499, 699, 999]]
    np.testing.assert_allclose(found, 1, atol=4 / (2 * P) ** 0.5)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_a_known_gradient_shows(share: float):
    """Its norm is `share` times that of the noise of one update, which is sqrt(P)."""
    gradient = np.zeros(P)
    gradient[0] = share * P**0.5
    found = after(gradient + np.random.RandomState(2).normal(size=(1500, P)))[-1]
    assert found == pytest.approx((1 + 199 * share**2) ** 0.5, rel=0.25)
    assert found > 1 + 4 / (2 * P) ** 0.5


def test_one_that_is_not_finite_is_left_out():
    gradients = np.random.RandomState(3).normal(size=(20, 5))
    with_a_hole = np.insert(gradients, 10, np.nan, axis=0)
    assert after(with_a_hole)[-1] == after(gradients)[-1]


def test_one_update_has_no_scatter():
    assert np.isnan(after(np.ones((1, 5)))[0])
