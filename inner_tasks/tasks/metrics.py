"""Metrics on validation minibatches."""

from __future__ import annotations

from collections.abc import Callable

import jax

from inner_tasks.task import Batch, Data, Params

MINIBATCHES = 16


def minibatch_metrics(
    loss: Callable[[Params, Batch], jax.Array], sample_validation: Callable[[Data, jax.Array], Batch]
) -> Callable[[Params, Data], dict[str, jax.Array]]:
    """The ``metrics`` of a task: the mean loss over 16 fixed validation minibatches.

    For tasks whose loss draws noise, or is not a mean over independent examples.

    Args:
      loss: the loss of the task.
      sample_validation: draws its validation minibatches.
    """

    def metrics(params: Params, data: Data) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.key(0), MINIBATCHES)
        losses = jax.lax.map(lambda key: loss(params, sample_validation(data, key)), keys)
        return {"validation_loss": losses.mean()}

    return metrics
