"""A learned optimizer as an optax gradient transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax._src.base import NO_PARAMS_MSG

from learned_opt.base import LearnedOptimizer, Params, State, Theta
from learned_opt.errors import UserError


def as_optax(
    optimizer: LearnedOptimizer, theta: Theta, learning_rate: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformationExtraArgs:
    """Bind theta: the optimizer's own update, as optax wants it.

    Args:
      optimizer: the update rule.
      theta: its weights.
      learning_rate: a number or a schedule that takes the place of the learned learning rate, for
        optimizers that have one (``celo2-style``).

    Returns:
      ``init(params)`` and ``update(gradients, state, params, **extra_args)``. The updates are to be
      added to the parameters (``optax.apply_updates``), as they are. Extra arguments are ignored.

    Raises:
      UserError: a learning rate is given for an optimizer that takes none; or (from ``init``) a
        parameter is not a real floating-point array.
      ValueError: (from ``update``) no parameters were given; the message is optax's own.
    """
    if learning_rate is not None:
        return optax.chain(scale_by_learned(optimizer, theta), optax.scale_by_learning_rate(learning_rate))

    def init(params: Params) -> State:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            dtype = jnp.result_type(leaf)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise UserError(
                    f"parameter {jax.tree_util.keystr(path)} has dtype {dtype}, and a learned optimizer "
                    "updates real floating-point arrays; leave it out: optax.partition with this optimizer "
                    "for the others and optax.set_to_zero for this one"
                )
        return optimizer.init(jax.tree.map(jnp.asarray, params))

    def update(
        gradients: Params, state: State, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, State]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS_MSG)
        gradients, params = (jax.tree.map(jnp.asarray, tree) for tree in (gradients, params))
        # Behind the barrier theta is an input like any other: were it a constant, XLA would fold it into
        # the program, and the updates would differ in the last bit from those of meta-training.
        return optimizer.update(jax.lax.optimization_barrier(theta), gradients, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_learned(optimizer: LearnedOptimizer, theta: Theta) -> optax.GradientTransformationExtraArgs:
    """The learned direction alone, uphill and of the rule's own scale, as ``optax.scale_by_adam`` is Adam's.

    Weight decay and a learning rate come after it::

        optax.chain(
            learned_opt.scale_by_learned(optimizer, theta),
            optax.add_decayed_weights(1e-4),
            optax.scale_by_learning_rate(schedule),
        )

    Raises:
      UserError: the optimizer has learned the size of its steps, and takes no learning rate.
    """
    if optimizer.unit_rate is None:
        raise UserError(
            "this optimizer has learned the size of its steps and takes no learning rate; leave it out (or "
            "choose an optimizer that takes one, such as 'celo2-style')"
        )
    return optax.chain(as_optax(optimizer, optimizer.unit_rate(theta)), optax.scale(-1.0))
