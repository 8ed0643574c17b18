"""The outer optimizer: how a meta-gradient moves theta.

To add one, add an entry to ``OUTER_OPTIMIZERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from learned_opt import UserError
from learned_opt._src.errors import choices
from meta_train.estimators.base import Theta
from meta_train.outer.averaging import averaged

WARM_UP = 0.05  # share of the updates
# Each takes the schedule of its learning rate.
OUTER_OPTIMIZERS: Mapping[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgdm": partial(optax.sgd, momentum=0.9),
}


@dataclass(frozen=True)
class OuterConfig:
    """How theta is updated: by an optimizer with a warm-up and a cosine over the run."""

    learning_rate: float = 4e-2
    """Learning rate of the outer optimizer after its warm-up."""
    final_fraction: float = 0.1
    """Fraction of the learning rate that is left at the end of the run."""
    optimizer: str = "adam"
    """Optimizer that updates theta: adam, adamw, or sgdm (SGD with momentum 0.9)."""
    average: float = 0.0
    """Share of the updates, the last ones, whose mean theta is the result; 0 for the last theta."""


def find_outer_optimizer(name: str) -> Callable[[optax.Schedule], optax.GradientTransformation]:
    """The outer optimizer called `name`, as a function of the schedule of its learning rate.

    Raises:
      UserError: there is no outer optimizer of that name.
    """
    if name not in OUTER_OPTIMIZERS:
        raise UserError(f"unknown outer optimizer '{name}'; {choices(name, OUTER_OPTIMIZERS)}")
    return OUTER_OPTIMIZERS[name]


def outer_optimizer(config: OuterConfig, updates: int) -> optax.GradientTransformation:
    """Divide by the global norm, then the optimizer, with a warm-up and a cosine to a fraction of its rate.

    Meta-gradients have heavy tails, so each counts the same whatever its norm. This also makes the learning
    rate independent of the scale of the objective.

    The rate rises over the first twentieth of the updates, because particles that start in the middle of an
    episode have fresh networks, and so the first meta-gradients reflect only early steps.

    Args:
      config: the settings.
      updates: length of the run and of the schedule.
    """
    cosine = optax.cosine_decay_schedule(config.learning_rate, updates, config.final_fraction)
    warm_up = round(WARM_UP * updates) + 1

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.minimum(1, (jnp.asarray(count) + 1) / warm_up) * cosine(count)

    optimizer = find_outer_optimizer(config.optimizer)(schedule)
    # With optax's default of 1e-6, small meta-gradients would count less than others.
    normalized = optax.chain(optax.normalize_by_update_norm(eps=1e-15), optimizer)
    return averaged(normalized, round((1 - config.average) * updates)) if config.average else normalized


def outer_step(
    tx: optax.GradientTransformation, theta: Theta, state: Any, gradient: Theta
) -> tuple[Theta, Any, jax.Array]:
    """One step of the outer optimizer; a non-finite meta-gradient changes nothing.

    Returns:
      The next theta, the next state of the outer optimizer, and whether the gradient was finite.
    """
    finite = jnp.isfinite(optax.tree.norm(gradient))
    updates, moved = tx.update(gradient, state, theta)
    theta = optax.tree.where(finite, optax.apply_updates(theta, updates), theta)
    return theta, optax.tree.where(finite, moved, state), finite
