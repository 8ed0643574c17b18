"""The definition of a learned optimizer: three pure functions of explicit inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Theta = Any  # nested dict of float32 arrays: the weights that meta-training learns
Params = Any  # pytree of float arrays: the parameters of the network being trained
State = Any  # pytree of arrays: what the optimizer carries from step to step


class LearnedOptimizer(NamedTuple):
    """An update rule with weights theta, similar to ``optax.GradientTransformation``.

    Unlike in optax, theta is an argument, so that it can be perturbed, mapped over and learned.
    ``learned_opt.as_optax`` binds it.

    Attributes:
      init_theta: ``(key, blocks) -> theta``, initial weights for meta-training on networks with `blocks`
        parameter tensors; most rules have the same weights for any number. The key is consumed.
      init: ``params -> state``, the optimizer state before the first step.
      update: ``(theta, gradients, state, params) -> (updates, state)``; the updates are to be *added*
        to the parameters and have their dtypes. If `takes_num_steps`, there is a fifth argument,
        ``num_steps=None``: the number of steps of the training run, or None if it is not known.
      version: changes whenever the same theta would give other updates (new features, another
        formula); optimizer files contain it, and a file of another version is refused.
      unit_rate: ``theta -> theta`` with a constant learning rate of one, for rules whose updates the user may
        scale by another learning rate or schedule; None if the step size is learned and cannot be replaced.
      takes_num_steps: whether `update` takes the number of steps of the training run, as a schedule does.
    """

    init_theta: Callable[[jax.Array, int], Theta]
    init: Callable[[Params], State]
    update: Callable[..., tuple[Params, State]]
    version: int = 1
    unit_rate: Callable[[Theta], Theta] | None = None
    takes_num_steps: bool = False
