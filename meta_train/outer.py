"""The outer optimizer: how a meta-gradient moves theta."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_train.config import OuterConfig
from meta_train.estimators.base import Theta


def outer_optimizer(config: OuterConfig, updates: int) -> optax.GradientTransformation:
    """Clip by global norm, then Adam with a cosine from the learning rate to a fraction of it.

    Args:
      config: the settings.
      updates: length of the run, which is that of the schedule.
    """
    schedule = optax.cosine_decay_schedule(config.learning_rate, updates, config.final_fraction)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(schedule))


def outer_step(
    tx: optax.GradientTransformation, theta: Theta, state: Any, gradient: Theta
) -> tuple[Theta, Any, jax.Array]:
    """One outer update; a meta-gradient that is not finite changes nothing.

    Returns:
      The next theta, the next state of the outer optimizer, and whether the gradient was finite.
    """
    finite = jnp.isfinite(optax.tree.norm(gradient))
    updates, moved = tx.update(gradient, state, theta)
    theta = optax.tree.where(finite, optax.apply_updates(theta, updates), theta)
    return theta, optax.tree.where(finite, moved, state), finite
