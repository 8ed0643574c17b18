"""Truncated evolution strategies: the biased method that PES mends."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inner_tasks import UnrolledProblem
from meta_train.estimators.antithetic import pair_info, perturbation, unroll_pair
from meta_train.estimators.base import Estimator, Info, State, Theta
from meta_train.estimators.window import real_steps, start_position, unroll


class TruncatedESState(NamedTuple):
    """One inner state that perturbations never touch."""

    inner: State
    position: jax.Array  # int32 [], steps of the episode already taken


def truncated_es(problem: UnrolledProblem, *, sigma: float, truncation: int, chunk: int = 1) -> Estimator:
    """Antithetic evolution strategies on one window at a time.

    Each window starts both members of a pair from one mean state, which is then advanced with the
    unperturbed theta (half as many inner steps again as PES)::

        g = epsilon (L(+) - L(-)) / (2 sigma^2 K),  epsilon ~ N(0, sigma^2 I)

    The estimate has less variance than that of PES, and is biased: it leaves out what theta did to the
    state before the window, and so prefers what pays within K steps.

    Args:
      problem: what is unrolled.
      sigma: standard deviation of the perturbations.
      truncation: K, steps per window; it need not divide T.
      chunk: particles unrolled at once: 1, or 2 and more for both members together.

    Returns:
      An estimator whose state is a ``TruncatedESState``.

    Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, Algorithm 1.
    """

    def start(key: jax.Array) -> TruncatedESState:
        return TruncatedESState(problem.init(key), jnp.zeros((), jnp.int32))

    def init(key: jax.Array, theta: Theta, phase: jax.Array | float = 0.0) -> TruncatedESState:
        del theta
        return start(key)._replace(position=start_position(problem, phase, truncation))

    def estimate(
        theta: Theta, state: TruncatedESState, key: jax.Array
    ) -> tuple[Theta, TruncatedESState, Info]:
        init_key, noise_key, data_key = jax.random.split(key, 3)
        state = jax.lax.cond(state.position >= problem.horizon, lambda: start(init_key), lambda: state)
        epsilon = perturbation(noise_key, theta, sigma)
        window = unroll_pair(
            problem,
            (optax.tree.add(theta, epsilon), optax.tree.sub(theta, epsilon)),
            jax.tree.map(lambda x: jnp.stack([x, x]), state.inner),
            state.position,
            data_key,
            truncation,
            chunk,
        )
        positive, negative = window.loss
        weight = (positive - negative) / (2 * sigma**2 * truncation)
        mean = unroll(problem, theta, state.inner, state.position, data_key, truncation)

        info = pair_info(problem, window, state.position, truncation, epsilon)
        position = state.position + real_steps(problem, state.position, truncation)
        return optax.tree.scale(weight, epsilon), TruncatedESState(mean.state, position), info

    return Estimator(init, estimate)
