"""Helpers for the tests of all architectures and pretrained optimizers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import learned_opt
from tests.marks import slow

QUICK = ("mlp", "adam")  # all of them together take minutes to compile
NAMES = [
    name if name in QUICK else slow(name)
    for name in (*learned_opt.ARCHITECTURES, *learned_opt.pretrained_names())
]
BLOCKS = 4  # tensors of `tree`


def transformation(name: str, blocks: int = BLOCKS) -> optax.GradientTransformationExtraArgs:
    """A pretrained optimizer, or one with random weights like those after meta-training."""
    if name in learned_opt.pretrained_names():
        return learned_opt.pretrained(name)
    optimizer = learned_opt.get_architecture(name)
    theta = optimizer.init_theta(jax.random.key(1), blocks)
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(theta))))
    theta = jax.tree.map(lambda w: w + 0.05 * jax.random.normal(next(keys), w.shape), theta)
    return learned_opt.as_optax(optimizer, theta)


def tree(dtype: Any = jnp.float32) -> dict[str, Any]:
    """Four tensors, and empty containers."""
    return {
        "matrix": jnp.linspace(-1, 1, 12).reshape(3, 4).astype(dtype),
        "vector": jnp.arange(1.0, 5.0).astype(dtype),
        "nothing": None,
        "empty": (),
        "nested": [{"scalar": jnp.asarray(2, dtype)}, jnp.ones((1, 2, 1, 2, 2), dtype)],
    }


def gradients(params: Any) -> Any:
    return jax.tree.map(lambda p: (jnp.cos(3 * p) + 0.2).astype(p.dtype), params)


def described(tree: Any) -> Any:
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_close(found: Any, expected: Any, bound: float = 1e-5) -> None:
    """Compare norms of differences, tensor by tensor."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)


def steps(tx: optax.GradientTransformation, params: Any, count: int = 2) -> tuple[Any, Any]:
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(count):
        updates, state = update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


EVERY = [*learned_opt.ARCHITECTURES, *learned_opt.pretrained_names()]  # for tests that compile nothing
FOR_ONE_TASK = ("mlp-mnist-mlp", "mlp-cifar10-mlp")  # nobody promises that they train anything else
PRETRAINED = [
    name if name == "relative-mlp-small-tasks" else slow(name)
    for name in learned_opt.pretrained_names()
    if name not in FOR_ONE_TASK
]
INPUTS = jnp.sin(jnp.arange(20.0)).reshape(5, 4)


def named(name: str, blocks: int, **options: Any) -> optax.GradientTransformationExtraArgs:
    """The optimizer with the name of an architecture or a pretrained optimizer, for `blocks` tensors."""
    if name in learned_opt.pretrained_names():
        return learned_opt.pretrained(name, **options)
    optimizer = learned_opt.get_architecture(name)
    return learned_opt.as_optax(optimizer, optimizer.init_theta(jax.random.key(1), blocks), **options)
