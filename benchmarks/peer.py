"""google/learned_optimization on the same work, if it is installed: its PES, MLP optimizer and tasks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

EXAMPLES = 8192  # random images in host memory; their content does not matter here
EPISODE = 1000  # steps


def is_installed() -> bool:
    """Whether the package can be imported."""
    return importlib.util.find_spec("learned_optimization") is not None


def make_estimate(
    shape: Sequence[int], hidden: Sequence[int], batch_size: int, *, pairs: int, truncation: int, devices: int
) -> Callable[[], object]:
    """A function that computes one PES estimate with that package, including the minibatches.

    Args:
      shape: shape of an image.
      hidden: widths of the inner network's hidden layers.
      batch_size: examples per inner step.
      pairs: antithetic pairs, over all devices.
      truncation: K.
      devices: 1 for ``TruncatedPES``, or all devices of JAX for ``TruncatedPESPMAP``.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]  # the package parses flags of its own on import
    from learned_optimization.learned_optimizers.mlp_lopt import MLPLOpt
    from learned_optimization.outer_trainers import truncated_pes
    from learned_optimization.outer_trainers.gradient_learner import OuterState, WorkerWeights
    from learned_optimization.outer_trainers.lopt_truncated_step import VectorizedLOptTruncatedStep
    from learned_optimization.outer_trainers.truncation_schedule import ConstantTruncationSchedule
    from learned_optimization.tasks.base import single_task_to_family
    from learned_optimization.tasks.fixed.image_mlp import _MLPImageTask

    sys.argv = arguments
    step = VectorizedLOptTruncatedStep(
        single_task_to_family(_MLPImageTask(_datasets(shape, batch_size), list(hidden))),
        MLPLOpt(compute_summary=False),
        ConstantTruncationSchedule(EPISODE),
        num_tasks=pairs // devices,
    )
    settings = {"truncated_step": step, "trunc_length": truncation, "std": 0.01, "steps_per_jit": truncation}
    if devices == 1:
        estimator = truncated_pes.TruncatedPES(**settings)
    else:
        estimator = truncated_pes.TruncatedPESPMAP(num_devices=devices, **settings)
    key = jax.random.PRNGKey(0)
    weights = WorkerWeights(step.outer_init(key), None, OuterState(jnp.zeros((), jnp.int32)))
    state = estimator.init_worker_state(weights, key)

    def estimate() -> None:
        nonlocal state, key
        key, own = jax.random.split(key)
        outcome, _ = estimator.compute_gradient_estimate(weights, own, state)
        state = outcome.unroll_state
        jax.block_until_ready(outcome)

    return estimate


def _datasets(shape: Sequence[int], batch_size: int) -> object:
    """Shuffled minibatches of NumPy arrays, like those of the package's own loaders."""
    from learned_optimization.tasks.datasets import base

    rng = np.random.default_rng(0)
    images = rng.random((EXAMPLES, *shape), np.float32)
    labels = rng.integers(0, 10, EXAMPLES).astype(np.int32)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(1)
        while True:
            for some in np.split(rng.permutation(EXAMPLES), EXAMPLES // batch_size):
                yield {"image": images[some], "label": labels[some]}

    split = base.ThreadSafeIterator(base.LazyIterator(batches))
    abstract = {
        "image": jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    return base.Datasets(*[split] * 4, extra_info={"num_classes": 10}, abstract_batch=abstract)
