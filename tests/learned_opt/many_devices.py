"""A program that tests sharded parameters and a checkpoint of them on any number of devices.

python -m tests.learned_opt.many_devices auto|explicit PATH

If PATH does not exist, it checks sharded updates of some optimizers and saves the states; otherwise it
restores them on the available devices. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import learned_opt

ARCHITECTURES = ("mlp", "celo2-style", "relative-mlp", "adam")
MOVES = ("all-gather", "all-to-all", "collective-permute")


def parameters(place: Any) -> dict[str, jax.Array]:
    """Parameters that are sharded in every way, or not at all; some have equal types."""
    values = jnp.sin(jnp.arange(32 * 24.0)).reshape(32, 24)
    return {
        **{f"rows {i}": place(values + i, PartitionSpec("data", None)) for i in range(5)},
        "columns": place(values, PartitionSpec(None, "data")),
        "vector": place(values[:, 0], PartitionSpec("data")),
        "whole": place(values[:8], PartitionSpec()),
    }


def optimizers() -> dict[str, optax.GradientTransformationExtraArgs]:
    made = {}
    for name in ARCHITECTURES:
        optimizer = learned_opt.get_architecture(name)
        made[name] = learned_opt.as_optax(optimizer, optimizer.init_theta(jax.random.key(0), 1))
    return made


def same_places(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not b.sharding.is_fully_replicated:
            assert a.sharding.is_equivalent_to(b.sharding, b.ndim), (a.sharding, b.sharding)


def check(kind: AxisType) -> dict[str, Any]:
    """Four states of each optimizer, and an update from a state that was made under ``jit``."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))
    sharded = parameters(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)))
    whole = parameters(lambda x, spec: x)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), sharded)
    states = {}
    with jax.set_mesh(mesh):
        for name, tx in optimizers().items():
            made = tx.init(sharded)
            traced = jax.jit(tx.init)(sharded)
            for state in (traced, jax.eval_shape(tx.init, sharded), tx.init(shapes)):
                assert jax.tree.structure(state) == jax.tree.structure(made)
            for momenta in (optax.tree.get(state, "momenta") for state in (made, traced, tx.init(shapes))):
                for path in sharded:
                    own, param = momenta[path], sharded[path]
                    spec = PartitionSpec(*[None] * (own.ndim - param.ndim), *param.sharding.spec)
                    assert own.sharding.is_equivalent_to(NamedSharding(mesh, spec), own.ndim)
            compiled = jax.jit(tx.update).lower(sharded, traced, sharded).compile()
            assert not any(move in compiled.as_text() for move in MOVES), name
            updates, after = compiled(sharded, traced, sharded)
            same_places(updates, sharded)
            same_places(after, traced)
            states[name] = jax.block_until_ready(after)
    for name, tx in optimizers().items():
        expected, own = jax.jit(tx.update)(whole, tx.init(whole), whole)
        for a, b in zip(jax.tree.leaves(states[name]), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
    return states


def main(kind: str, path: Path) -> None:
    """Check and save, or restore, the states."""
    with ocp.StandardCheckpointer() as checkpointer:
        if not path.exists():
            states = check(AxisType.Auto if kind == "auto" else AxisType.Explicit)
            checkpointer.save(path, states)
            checkpointer.wait_until_finished()
        else:
            whole = parameters(lambda x, spec: x)
            fresh = {name: tx.init(whole) for name, tx in optimizers().items()}
            restored = checkpointer.restore(path, fresh)
            assert jax.tree.structure(restored) == jax.tree.structure(fresh)
            for name, tx in optimizers().items():
                _, expected = jax.jit(tx.update)(whole, tx.init(whole), whole)
                for a, b in zip(jax.tree.leaves(restored[name]), jax.tree.leaves(expected), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
                updates, _ = jax.jit(tx.update)(whole, restored[name], whole)
                assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
    print(json.dumps({"devices": jax.device_count()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
