"""Recognises the kind of a model."""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from inner_tasks.models.functions import function_model
from inner_tasks.models.linen import linen_model
from inner_tasks.models.nnx import nnx_model
from inner_tasks.models.pure import Measure, PureModel, from_key, takes
from inner_tasks.task import Batch
from learned_opt._src.errors import UserError


def pure_model(model: Any, loss: Measure, example: Batch) -> PureModel:
    """A model as pure functions.

    Args:
      model: a Linen module; a function of ``rngs`` that makes an NNX module; or a function of a key that
        makes an Equinox module or parameters.
      loss: the training loss.
      example: the shapes and dtypes of a minibatch.

    Raises:
      UserError: the model is nothing of the kind.
    """
    if isinstance(model, nn.Module):
        return linen_model(model, loss, example)
    if isinstance(model, nnx.Module):
        raise UserError(
            "the model is an NNX module that is made already, but every episode needs a new one; give a "
            "function that makes it, such as: lambda rngs: Network(..., rngs=rngs)"
        )
    if _has_equinox_module(model):
        raise UserError(
            "the model is an Equinox module that is made already, but every episode needs a new one; give a "
            "function that makes it, such as: lambda key: Network(..., key=key)"
        )
    if not callable(model):
        raise UserError(
            f"the model is of the type {type(model).__name__}; give a Flax Linen module, or a function that "
            "makes an NNX module from `rngs`, or an Equinox module or parameters from a key"
        )
    if _is_nnx_class(model) or takes(model, "rngs"):
        return nnx_model(model)
    if _has_equinox_module(_made(model)):
        from inner_tasks.models.equinox import equinox_model

        return equinox_model(model, loss)
    return function_model(model, loss)


def _is_nnx_class(model: Any) -> bool:
    while isinstance(model, functools.partial):
        model = model.func
    return isinstance(model, type) and issubclass(model, nnx.Module)


def _made(model: Any) -> Any:
    """What a function of a key makes, without computing it."""
    made = []
    jax.eval_shape(lambda key: made.append(from_key(model, key)), jax.random.key(0))
    return made[0]


def _has_equinox_module(made: Any) -> bool:
    """Whether this is an Equinox module or contains one."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return False
    is_module = lambda x: isinstance(x, equinox.Module)  # noqa: E731
    return any(map(is_module, jax.tree.leaves(made, is_leaf=is_module)))
