"""Layers of a network that are stored as one tensor, each treated as a separate tensor."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from learned_opt._src.errors import UserError
from learned_opt._src.learned_optimizer import LearnedOptimizer, Params, State, Theta

WHOLE: Any = "whole"  # instead of an axis: no layers


def separate_layers(optimizer: LearnedOptimizer, layer_axes: Any) -> LearnedOptimizer:
    """An optimizer for parameters that hold several layers each.

    Up to rounding, updates equal those for separate tensors. The state is stored like the parameters: the
    layers of an accumulator lie along the axis that corresponds to the parameter's.

    Args:
      optimizer: updates the layers.
      layer_axes: as for ``learned_opt.as_optax``.

    Raises:
      UserError: (from ``init`` and ``update``) a parameter lacks its axis.
    """

    def axes_of(params: Params) -> Any:
        prefix = layer_axes(params) if callable(layer_axes) else layer_axes
        prefix = jax.tree.map(lambda a: WHOLE if a is None else a, prefix, is_leaf=lambda a: a is None)
        return jax.tree_util.tree_map_with_path(_checked, jax.tree.broadcast(prefix, params), params)

    def axes_of_state(params: Params, axes: Any) -> Any:
        def moved(own: Any, axis: Any, param: Any) -> Any:
            """The axis in an array that may have more leading axes than the parameter, such as k decays."""
            return WHOLE if axis == WHOLE else max(0, axis + own.ndim - param.ndim)

        shapes = jax.eval_shape(optimizer.init, params)
        return optax.tree.map_params(
            optimizer.init, moved, shapes, axes, params, transform_non_params=lambda _: WHOLE
        )

    def init(params: Params) -> State:
        if not jax.tree.leaves(params):  # optax.tree.map_params asks in this way for the structure of a state
            return optimizer.init(params)
        axes = axes_of(params)
        return _joined(axes_of_state(params, axes), optimizer.init(_apart(axes, params)))

    def update(
        theta: Theta, gradients: Params, state: State, params: Params, *num_steps: Any
    ) -> tuple[Params, State]:
        axes = axes_of(params)
        of_state = axes_of_state(params, axes)
        updates, after = optimizer.update(
            theta, _apart(axes, gradients), _apart(of_state, state), _apart(axes, params), *num_steps
        )
        return _joined(axes, updates), _joined(of_state, after)

    return optimizer._replace(init=init, update=update)


def _checked(path: Any, axis: Any, param: Any) -> Any:
    """The axis; ``WHOLE`` if there are no layers along it.

    Raises:
      UserError: the parameter has no such axis.
    """
    if axis == WHOLE:
        return WHOLE
    if not 0 <= axis < param.ndim:
        raise UserError(
            f"parameter {jax.tree_util.keystr(path)} has shape {param.shape}, so its layers cannot lie "
            f"along axis {axis}; layer_axes takes 0, 1, ... (from the front), or None for no layers"
        )
    return axis if param.shape[axis] else WHOLE


def _apart(axes: Any, arrays: Any) -> Any:
    """Replace each array with layers by a list of the layers."""
    return jax.tree.map(lambda axis, x: x if axis == WHOLE else _layers(x, axis), axes, arrays)


def _joined(axes: Any, arrays: Any) -> Any:
    """The inverse of ``_apart``."""
    return jax.tree.map(lambda axis, x: x if axis == WHOLE else jnp.stack(x, axis), axes, arrays)


def _layers(x: Any, axis: int) -> list[Any]:
    if isinstance(x, jax.ShapeDtypeStruct):
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        return [jax.ShapeDtypeStruct(shape, x.dtype)] * x.shape[axis]
    return [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
