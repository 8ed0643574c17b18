"""Hand-designed rules whose hyperparameters are learned: one set for all tensors, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt.base import LearnedOptimizer, Params, Theta
from learned_opt.errors import UserError
from learned_opt.features import state_dtype

# After so many steps the learning rate has fallen by 2 to the learned power.
TIME_SCALE = 100.0


class TunableState(NamedTuple):
    """State of a rule with learned hyperparameters."""

    count: jax.Array  # steps taken, int32 []
    tensors: Params  # for each tensor, the rule's own state


def inverse_time_decay(
    log_learning_rate: jax.Array, log_power: jax.Array, count: jax.Array, time_scale: float = TIME_SCALE
) -> jax.Array:
    """A family of schedules with two numbers, ``exp(a) / (1 + t / tau)^exp(b)`` at step t.

    With b far below zero the rate is constant; Vicol et al. 2021 (learning-rate schedules on MNIST).

    Args:
      log_learning_rate: a, logarithm of the rate at the start.
      log_power: b, logarithm of the power.
      count: t, steps taken before this one.
      time_scale: tau, in steps.
    """
    return jnp.exp(log_learning_rate) / (1 + count / time_scale) ** jnp.exp(log_power)


def tunable(
    make: Callable[[Mapping[str, jax.Array], jax.Array], optax.GradientTransformation],
    initial: Mapping[str, float],
    *,
    per_block: bool,
) -> LearnedOptimizer:
    """An optax optimizer as a learned one: theta are its hyperparameters.

    Args:
      make: ``(hyperparameters, count) -> transformation``; it is made anew at every step, of which count are
        taken, with the learning rate that a schedule has then.
      initial: where the hyperparameters start: each takes any real value.
      per_block: whether every tensor has a set of its own, in order of leaves.

    Raises:
      UserError: (from ``update``) there is a set for each of another number of tensors.
    """

    def init_theta(key: jax.Array, blocks: int) -> Theta:
        del key  # hyperparameters start where they are sensible
        size = blocks if per_block else 1
        return {name: jnp.full(size, value, jnp.float32) for name, value in initial.items()}

    def rule(theta: Theta, block: int, count: jax.Array) -> optax.GradientTransformation:
        return make({name: values[block if per_block else 0] for name, values in theta.items()}, count)

    def init(params: Params) -> TunableState:
        count = jnp.zeros((), jnp.int32)
        fresh = rule({name: jnp.full(1, value) for name, value in initial.items()}, 0, count)
        return TunableState(count, jax.tree.map(lambda p: fresh.init(p.astype(state_dtype(p))), params))

    def update(
        theta: Theta, gradients: Params, state: TunableState, params: Params
    ) -> tuple[Params, TunableState]:
        leaves, tree = jax.tree.flatten(params)
        blocks = jax.tree.leaves(theta)[0].shape[0]
        if per_block and blocks != len(leaves):
            raise UserError(
                f"this optimizer has hyperparameters for each of {blocks} tensors, and the parameters are "
                f"{len(leaves)} tensors; it can only train networks of the shape it was meta-trained on"
            )
        updates, states = [], []
        each = zip(tree.flatten_up_to(gradients), leaves, tree.flatten_up_to(state.tensors), strict=True)
        for block, (gradient, param, own) in enumerate(each):
            dtype = state_dtype(param)
            cast = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), theta)
            step, own = rule(cast, block, state.count).update(gradient.astype(dtype), own)
            updates.append(step.astype(param.dtype))
            states.append(own)
        count = optax.safe_increment(state.count)
        return tree.unflatten(updates), TunableState(count, tree.unflatten(states))

    return LearnedOptimizer(init_theta=init_theta, init=init, update=update)
