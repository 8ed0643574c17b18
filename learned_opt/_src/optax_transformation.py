"""A learned optimizer as an optax gradient transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from learned_opt._src.errors import UserError
from learned_opt._src.layer_axes import separate_layers
from learned_opt._src.learned_optimizer import LearnedOptimizer, Params, State, Theta


def as_optax(
    optimizer: LearnedOptimizer,
    theta: Theta,
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    scale: optax.ScalarOrSchedule = 1.0,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    layer_axes: Any = None,
    num_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Bind theta and return an optax transformation.

    With u the update of the optimizer, c the scale at this step, d the weight decay and p the parameter, the
    update is ``c (u - d p)``. The scale thus applies to the weight decay too, for warm-up and annealing.

    Args:
      optimizer: the update rule.
      theta: its weights.
      learning_rate: a number or a schedule that replaces the learned learning rate (``celo2-style``) or the
        learned schedule (``nadam-mlp``, ``muon-mlp``; 1 is then their nominal step size). It scales the
        weight decay too, as in ``optax.adamw``.
      scale: a number or a schedule (``count -> number``).
      weight_decay: the share of a parameter that is subtracted at each step, if the scale is 1.
      mask: which parameters decay: a tree of booleans that is a prefix of the parameters, or a function
        ``params -> tree``. None means all.
      layer_axes: the axis along which each parameter holds the layers of a network, as ``nn.scan`` stores
        them; each layer is then treated as a separate tensor. A tree of integers and None (not stacked) that
        is a prefix of the parameters, like ``in_axes`` of ``jax.vmap``; or a function ``params -> tree``.
      num_steps: the number of steps of the training run, as for a schedule in optax; for optimizers that use
        it (``nadam-mlp``, ``muon-mlp``). Without it they work too, but do not anneal.

    Returns:
      ``init(params)`` and ``update(gradients, state, params, **extra_args)``. The updates point downhill and
      are to be added to the parameters (``optax.apply_updates``). Extra arguments are ignored.

    Raises:
      UserError: a learning rate or a number of steps is given for an optimizer that takes none, or the
        number is not positive; or (from ``init``) a parameter is not a real floating-point array.
      ValueError: (from ``update``) no parameters were given.
    """
    if learning_rate is not None:
        theta = _with_unit_rate(optimizer, theta)
    if layer_axes is not None:
        optimizer = separate_layers(optimizer, layer_axes)
    parts = [_bound(optimizer, theta, num_steps)]
    if not _is(weight_decay, 0):
        decay = _decayed(weight_decay)
        parts.append(decay if mask is None else optax.masked(decay, mask))
    parts += [
        _scaled(factor) for factor in (scale, learning_rate) if factor is not None and not _is(factor, 1)
    ]
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def scale_by_learned(optimizer: LearnedOptimizer, theta: Theta) -> optax.GradientTransformationExtraArgs:
    """The learned direction alone, pointing uphill and unscaled, like ``optax.scale_by_adam`` for Adam.

    Add weight decay and a learning rate after it::

        optax.chain(
            learned_opt.scale_by_learned(optimizer, theta),
            optax.add_decayed_weights(1e-4),
            optax.scale_by_learning_rate(schedule),
        )

    Raises:
      UserError: the step size of the optimizer is learned, and it takes no learning rate.
    """
    return optax.chain(_bound(optimizer, _with_unit_rate(optimizer, theta)), optax.scale(-1.0))


def _with_unit_rate(optimizer: LearnedOptimizer, theta: Theta) -> Theta:
    if optimizer.unit_rate is None:
        raise UserError(
            "the step size of this optimizer is learned, and it takes no learning rate; omit it, or pass "
            "scale=... to make its steps longer or shorter (the architectures 'celo2-style', 'nadam-mlp' and "
            "'muon-mlp' take one)"
        )
    return optimizer.unit_rate(theta)


def _bound(
    optimizer: LearnedOptimizer, theta: Theta, num_steps: int | None = None
) -> optax.GradientTransformationExtraArgs:
    if num_steps is not None and not optimizer.takes_num_steps:
        raise UserError(
            f"num_steps is {num_steps}, but this optimizer does not use it; omit it, or pass a "
            "schedule as scale=... (the architectures 'nadam-mlp' and 'muon-mlp' use it)"
        )
    if num_steps is not None and not num_steps > 0:
        raise UserError(f"num_steps is {num_steps}; it must be the number of steps of the run, above 0")
    told = (num_steps,) if optimizer.takes_num_steps else ()

    # Compiled as one program if the caller does not compile.
    @jax.jit
    def run(theta: Theta, gradients: Params, state: State, params: Params) -> tuple[Params, State]:
        # Behind the barrier theta is an input like any other. XLA would fold a constant into the program, and
        # the updates would differ in the last bit from those of meta-training.
        return optimizer.update(jax.lax.optimization_barrier(theta), gradients, state, params, *told)

    def init(params: Params) -> State:
        return optimizer.init(jax.tree_util.tree_map_with_path(_checked, params))

    def update(
        gradients: Params, state: State, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, State]:
        del extra_args
        if params is None:
            raise ValueError("a learned optimizer needs parameters: call update(gradients, state, params)")
        # An Equinox model has functions among its leaves, without gradients.
        params = _where_gradients(jnp.asarray, gradients, params)
        return run(theta, jax.tree.map(jnp.asarray, gradients), state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _checked(path: Any, leaf: Any) -> Any:
    """Return a leaf of the parameters as an array.

    Raises:
      UserError: it is not a real floating-point array.
    """
    leaf = jnp.asarray(leaf) if isinstance(leaf, float) else leaf
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        found = f"is of type {type(leaf).__name__}" if dtype is None else f"has dtype {dtype}"
        raise UserError(
            f"parameter {jax.tree_util.keystr(path)} {found}, but a learned optimizer updates only real "
            "floating-point arrays of 16 bits or more; exclude it with optax.partition (this optimizer for "
            "the others, optax.set_to_zero for this one), or in Equinox with eqx.filter(model, "
            "eqx.is_inexact_array)"
        )
    return leaf


def _where_gradients(f: Callable[..., Any], gradients: Params, *trees: Params) -> Params:
    """Apply ``f`` to the leaves of the trees; None where there is no gradient."""
    return jax.tree.map(
        lambda g, *leaves: None if g is None else f(*leaves), gradients, *trees, is_leaf=lambda g: g is None
    )


def _decayed(weight_decay: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Subtract a share of the parameters."""

    def less(update: jax.Array, param: jax.Array) -> jax.Array:
        return update - jnp.asarray(weight_decay, update.dtype) * param

    return optax.stateless(lambda updates, params: _where_gradients(less, updates, updates, params))


def _scaled(factor: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Multiply by a number or a schedule of any dtype, and keep the dtype of the updates."""
    if callable(factor):
        return optax.scale_by_schedule(factor)
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: jnp.asarray(factor, u.dtype) * u, updates)
    )


def _is(value: Any, number: int) -> bool:
    """Whether a value is this Python number; an array might have another value at the next step."""
    return isinstance(value, int | float) and value == number
