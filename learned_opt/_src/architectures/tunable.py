"""Hand-designed rules with learned hyperparameters: one set for all tensors, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax

from learned_opt._src.architectures.features import state_dtype
from learned_opt._src.architectures.state import (
    Accumulators,
    LearnedState,
    by_field,
    by_tensor,
    initial_state,
)
from learned_opt._src.errors import UserError
from learned_opt._src.learned_optimizer import LearnedOptimizer, Params, Theta

# ``(hyperparameters, gradient, accumulators, count) -> (update, accumulators)`` for one tensor
Rule = Callable[[Mapping[str, jax.Array], jax.Array, Accumulators, jax.Array], tuple[jax.Array, Accumulators]]

# Steps after which the learning rate has fallen by a factor of 2 to the learned power.
TIME_SCALE = 100.0


def inverse_time_decay(
    log_learning_rate: jax.Array, log_power: jax.Array, count: jax.Array, time_scale: float = TIME_SCALE
) -> jax.Array:
    """A family of schedules with two parameters, ``exp(a) / (1 + t / tau)^exp(b)`` at step t.

    With b far below zero the rate is constant. Vicol et al. 2021 (learning-rate schedules on MNIST).

    Args:
      log_learning_rate: a, the logarithm of the initial rate.
      log_power: b, the logarithm of the power.
      count: t, steps taken before this one.
      time_scale: tau, in steps.
    """
    return jnp.exp(log_learning_rate) / (1 + count / time_scale) ** jnp.exp(log_power)


def tunable(
    rule: Rule, accumulators: Accumulators, hyperparameters: Mapping[str, float], *, per_block: bool
) -> LearnedOptimizer:
    """An optimizer from an elementwise rule; theta are the rule's hyperparameters.

    Args:
      rule: the rule for one tensor; `count` is the number of steps taken before.
      accumulators: a NamedTuple of functions ``param -> array``, the initial accumulators.
      hyperparameters: initial values; a hyperparameter takes any real value.
      per_block: whether every tensor has its own set, in order of leaves.

    Raises:
      UserError: (from ``update``) the sets are for another number of tensors.
    """
    fields = jax.tree.structure(accumulators)

    def init_theta(key: jax.Array, blocks: int) -> Theta:
        del key  # hyperparameters start at fixed, sensible values
        size = blocks if per_block else 1
        return {name: jnp.full(size, value, jnp.float32) for name, value in hyperparameters.items()}

    def update(
        theta: Theta, gradients: Params, state: LearnedState, params: Params
    ) -> tuple[Params, LearnedState]:
        leaves, tree = jax.tree.flatten(params)
        blocks = jax.tree.leaves(theta)[0].shape[0]
        if per_block and blocks != len(leaves):
            raise UserError(
                f"this optimizer has hyperparameters for each of {blocks} tensors, but the parameters have "
                f"{len(leaves)} tensors; it can only train networks of the shape it was meta-trained on"
            )
        updates, accumulated = [], []
        before = by_tensor(fields, tree, state.accumulators)
        each = zip(tree.flatten_up_to(gradients), leaves, before, strict=True)
        for block, (gradient, param, own) in enumerate(each):
            dtype = state_dtype(param)
            number = block if per_block else 0
            numbers = {name: values[number].astype(dtype) for name, values in theta.items()}
            step, own = rule(numbers, gradient.astype(dtype), own, state.count)
            updates.append(step.astype(param.dtype))
            accumulated.append(own)
        after = by_field(fields, tree, accumulated)
        return tree.unflatten(updates), LearnedState(optax.safe_increment(state.count), after)

    return LearnedOptimizer(init_theta=init_theta, init=partial(initial_state, accumulators), update=update)
