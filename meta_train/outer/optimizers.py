"""The outer optimizer: how a meta-gradient moves theta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_train.estimators.base import Theta


@dataclass(frozen=True)
class OuterConfig:
    """How theta is moved: global-norm clip, then Adam with a cosine schedule over the run."""

    learning_rate: float = 2e-2
    """Learning rate of the outer Adam at the start."""
    final_fraction: float = 0.1
    """Share of the learning rate that is left at the end."""
    clip_norm: float = 1.0
    """Norm at which the meta-gradient is clipped."""


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
    """One step of the outer optimizer; a meta-gradient that is not finite changes nothing.

    Returns:
      The next theta, the next state of the outer optimizer, and whether the gradient was finite.
    """
    finite = jnp.isfinite(optax.tree.norm(gradient))
    updates, moved = tx.update(gradient, state, theta)
    theta = optax.tree.where(finite, optax.apply_updates(theta, updates), theta)
    return theta, optax.tree.where(finite, moved, state), finite
