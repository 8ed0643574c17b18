"""The optimizer state of this package's architectures: a count, and trees of arrays like the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef

from learned_opt._src.learned_optimizer import Params

Accumulators = Any  # NamedTuple of arrays: what a rule carries from step to step for one tensor


class LearnedState(NamedTuple):
    """State of a learned optimizer: nothing but arrays."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count; steps taken, int32 []
    accumulators: Accumulators  # the NamedTuple of the rule, with a tree like the parameters for each array


def initial_state(initial: Accumulators, params: Params) -> LearnedState:
    """The state before the first step.

    Args:
      initial: the accumulators, with functions ``param -> array`` in place of the arrays.
      params: parameters of the network to be trained.
    """
    trees = jax.tree.map(lambda start: jax.tree.map(start, params), initial)
    return LearnedState(jnp.zeros((), jnp.int32), trees)


def by_tensor(fields: PyTreeDef, tree: PyTreeDef, trees: Accumulators) -> list[Accumulators]:
    """Turn accumulators of trees into a list of the accumulators of each tensor.

    Args:
      fields: structure of the accumulators of one tensor.
      tree: structure of the parameters.
      trees: the accumulators of a state.
    """
    each = [tree.flatten_up_to(x) for x in fields.flatten_up_to(trees)]
    return [fields.unflatten(own) for own in zip(*each, strict=True)]


def by_field(fields: PyTreeDef, tree: PyTreeDef, tensors: Sequence[Accumulators]) -> Accumulators:
    """The inverse of ``by_tensor``."""
    each = [fields.flatten_up_to(own) for own in tensors]
    return fields.unflatten(tree.unflatten(own[i] for own in each) for i in range(fields.num_leaves))
