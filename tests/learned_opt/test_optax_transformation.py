"""A learned optimizer in place of an optax optimizer: whole models, and the import."""

from __future__ import annotations

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import learned_opt


@pytest.fixture
def tx():
    optimizer = learned_opt.get_architecture("mlp")
    return learned_opt.as_optax(optimizer, optimizer.init_theta(jax.random.key(0), 1))


@pytest.mark.parametrize(
    "leaf", [np.int32(3), np.zeros(2, np.complex64), np.array(True), np.zeros(2, "float8_e4m3fn")]
)
def test_parameters_that_are_not_real_floats(tx, leaf):
    with pytest.raises(learned_opt.UserError, match=r"\['steps'\].*optax.partition"):
        tx.init({"w": jnp.ones(2), "steps": leaf})
    parts = {"learned": tx, "fixed": optax.set_to_zero()}
    partition = optax.partition(parts, {"w": "learned", "steps": "fixed"})
    tree = {"w": jnp.ones(2), "steps": leaf}
    updates, _ = partition.update(tree, partition.init(tree), tree)
    assert updates["w"].all() and not np.any(updates["steps"])


@pytest.mark.parametrize("kind", ["flax", "dict"])
def test_trains_flax_and_plain_models(tx, kind):
    """With untrained weights it is enough that all parameters move and stay finite."""
    x = jax.random.normal(jax.random.key(1), (16, 5))
    if kind == "flax":
        model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
        start, apply = model.init(jax.random.key(2), x), model.apply
    else:
        start = {"w": jnp.ones((5, 2)) / 5, "b": jnp.zeros(2)}

        def apply(p, x):
            return x @ p["w"] + p["b"]

    chain = optax.chain(optax.clip_by_global_norm(1.0), tx)

    @jax.jit
    def step(p, state):
        gradient = jax.grad(lambda p: jnp.mean((apply(p, x) - 1.0) ** 2))(p)
        updates, state = chain.update(gradient, state, p)
        return optax.apply_updates(p, updates), state

    p, state = start, chain.init(start)
    for _ in range(3):
        p, state = step(p, state)
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(p), strict=True):
        assert np.isfinite(new).all() and np.abs(new - old).max() > 0


def test_import_is_light():
    code = (
        "import sys, learned_opt; "
        "print([m for m in ('tensorflow_datasets', 'wandb', 'orbax', 'matplotlib', 'sklearn') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
