"""What optax users expect of an optimizer, for every architecture and every pretrained optimizer.

The conditions include those that optax sets for its contributed optimizers. Each is a row of the table in
docs/optimizers.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import learned_opt
from tests.learned_opt.contract import (
    BLOCKS,
    NAMES,
    assert_close,
    assert_equal,
    described,
    gradients,
    steps,
    transformation,
    tree,
)


@pytest.fixture(params=NAMES)
def tx(request: pytest.FixtureRequest) -> optax.GradientTransformationExtraArgs:
    return transformation(request.param)


def test_unknown_keywords_are_accepted_without_a_second_compilation(tx: Any) -> None:
    traced = []

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        traced.append(1)
        updates, state = tx.update(gradients(params), state, params, value=1.0, what_nobody_expects="x")
        return optax.apply_updates(params, updates), state

    params, state = step(tree(), tx.init(tree()))
    step(params, state)
    assert len(traced) == 1
    assert_equal(step(tree(), tx.init(tree()))[0], steps(tx, tree(), 1)[0])


def test_missing_parameters_are_asked_for(tx: Any) -> None:
    with pytest.raises(ValueError, match=r"call update\(gradients, state, params\)"):
        tx.update(tree(), tx.init(tree()))


@pytest.mark.parametrize("leaf", [np.int32(3), np.zeros(2, np.complex64), np.array(True)])
def test_parameters_that_are_not_real_floats_are_named(tx: Any, leaf: Any) -> None:
    with pytest.raises(learned_opt.UserError, match=r"\['steps'\].*optax.partition"):
        tx.init({"w": jnp.ones(2), "steps": leaf})


def test_structure_shapes_and_dtypes_are_kept(tx: Any) -> None:
    """None, empty containers, scalars, tensors of rank 5; also in a ``cond``, where JAX checks it."""
    params, state = tree(), tx.init(tree())
    updates, after = jax.jit(tx.update)(gradients(params), state, params)
    assert described(updates) == described(params)
    assert described(after) == described(state)
    assert all(jnp.isfinite(u).all() and jnp.any(u != 0) for u in jax.tree.leaves(updates))
    jax.eval_shape(
        lambda: jax.lax.cond(
            True, lambda: tx.update(gradients(params), state, params), lambda: (params, state)
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_empty_arrays_pass_by(name: str) -> None:
    tx, alone, empty = transformation(name, 2), transformation(name, 1), jnp.zeros((0, 3))
    updates, state = steps(tx, {"empty": empty, "w": jnp.ones(3)})
    assert updates["empty"].shape == (0, 3)
    if "per-block" not in name:
        assert_equal(updates["w"], steps(alone, {"w": jnp.ones(3)})[0]["w"])
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_updates_have_the_dtype_of_the_parameters(name: str, dtype: str) -> None:
    """The state is float64 for float64, and float32 for all others."""
    with jax.enable_x64(dtype == "float64"):
        tx, params = transformation(name), tree(dtype)
        updates, state = jax.jit(tx.update)(gradients(params), tx.init(params), params)
        assert {x.dtype.name for x in jax.tree.leaves(updates)} == {dtype}
        kinds = {x.dtype.name for x in jax.tree.leaves(state) if x.ndim or x.dtype != jnp.int32}
        assert kinds == {"float64" if dtype == "float64" else "float32"}
        assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
        assert described(state) == described(tx.init(params))


def test_chains(tx: Any) -> None:
    expected = jax.tree.map(lambda p, q: p + 0.5 * (q - p), tree(), steps(tx, tree(), 1)[0])
    for chain in (
        optax.chain(tx, optax.scale(0.5)),
        optax.named_chain(("learned", tx), ("half", optax.scale(0.5))),
    ):
        assert_close(steps(chain, tree(), 1)[0], expected)
        update = partial(jax.jit(chain.update), value=jnp.float32(1))
        updates, _ = update(gradients(tree()), chain.init(tree()), tree())
        assert described(updates) == described(tree())


@pytest.mark.parametrize("name", NAMES)
def test_masked_and_partition(name: str) -> None:
    """Only the selected tensors move, and they move as they would alone."""
    tx, params = transformation(name, 2), tree()
    chosen = jax.tree.map(lambda _: False, params) | {"matrix": True, "nested": [{"scalar": False}, True]}
    alone, _ = steps(tx, {"matrix": params["matrix"], "nested": params["nested"][1]})
    labels = jax.tree.map(lambda own: "learned" if own else "fixed", chosen)
    partition = optax.partition({"learned": tx, "fixed": optax.set_to_zero()}, labels)
    masked = optax.chain(
        optax.masked(tx, chosen), optax.masked(optax.set_to_zero(), jax.tree.map(lambda own: not own, chosen))
    )
    for wrapped in (partition, masked):
        found, _ = steps(wrapped, params)
        assert_equal(found["matrix"], alone["matrix"])
        assert_equal(found["nested"][1], alone["nested"])
        assert_equal(found["vector"], params["vector"])
        assert_equal(found["nested"][0], params["nested"][0])


def test_multi_steps(tx: Any) -> None:
    """A step for the mean of two gradients, and no step in between."""
    wrapped, params = optax.MultiSteps(tx, 2), tree()
    state, update = wrapped.init(params), jax.jit(wrapped.update)
    each = [jax.tree.map(lambda g, f=factor: f * g, gradients(params)) for factor in (0.5, 1.5)]
    first, state = update(each[0], state, params)
    assert all(jnp.all(u == 0) for u in jax.tree.leaves(first))
    second, state = update(each[1], state, params)
    assert_close(optax.apply_updates(params, second), steps(tx, params, 1)[0])


def test_apply_if_finite(tx: Any) -> None:
    wrapped, params = optax.apply_if_finite(tx, 3), tree()
    state = wrapped.init(params)
    broken = gradients(params) | {"vector": jnp.full(4, jnp.nan)}
    updates, after = jax.jit(wrapped.update)(broken, state, params)
    assert all(jnp.all(u == 0) for u in jax.tree.leaves(updates))
    assert_equal(after.inner_state, state.inner_state)
    updates, _ = jax.jit(wrapped.update)(gradients(params), after, params)
    assert_equal(optax.apply_updates(params, updates), steps(tx, params, 1)[0])


def test_flatten_runs_but_makes_one_tensor_of_all() -> None:
    """As the docs say: the features are then those of one long vector, and the updates differ."""
    tx = transformation("mlp")
    flat, plain = steps(optax.flatten(tx), tree(), 1)[0], steps(tx, tree(), 1)[0]
    assert described(flat) == described(plain)
    assert not np.allclose(flat["matrix"] - tree()["matrix"], plain["matrix"] - tree()["matrix"], rtol=0.01)


def loss_of(params: Any) -> jax.Array:
    return sum(jnp.sum((p - 0.3) ** 2) for p in jax.tree.leaves(params))


def one_step(tx: Any, carry: tuple[Any, Any], _: Any = None) -> tuple[tuple[Any, Any], jax.Array]:
    params, state = carry
    value, gradient = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(gradient, state, params, value=value)
    return (optax.apply_updates(params, updates), state), value


def test_scan_equals_a_python_loop_to_the_bit(tx: Any) -> None:
    carry = tree(), tx.init(tree())
    _, scanned = jax.jit(lambda carry: jax.lax.scan(partial(one_step, tx), carry, None, length=8))(carry)
    looped, step = [], jax.jit(partial(one_step, tx))
    for _ in range(8):
        carry, value = step(carry)
        looped.append(value)
    np.testing.assert_array_equal(scanned, np.array(looped))


def test_vmap_over_whole_training_runs(tx: Any) -> None:
    def train(scale: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda p: scale * p, tree())
        return jax.lax.scan(partial(one_step, tx), (params, tx.init(params)), None, length=4)[1]

    scales = jnp.array([0.5, 1.0, 2.0])
    each = [jax.jit(train)(scale) for scale in scales]
    np.testing.assert_allclose(jax.jit(jax.vmap(train))(scales), np.stack(each), rtol=1e-4)


def test_donated_state(tx: Any) -> None:
    step = jax.jit(partial(one_step, tx), donate_argnums=0)
    carry = jax.tree.map(jnp.copy, (tree(), tx.init(tree())))
    (params, _), _ = step(step(carry)[0])
    expected = partial(one_step, tx)
    again = jax.jit(expected)(jax.jit(expected)((tree(), tx.init(tree())))[0])[0][0]
    assert_equal(params, again)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_through_an_update(name: str) -> None:
    """The derivative with respect to the gradients, against finite differences in a random direction."""
    with jax.enable_x64(True):
        tx, params = transformation(name), tree(jnp.float64)
        keys = iter(jax.random.split(jax.random.key(0), BLOCKS))
        direction = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)

        def moved(amount: jax.Array) -> jax.Array:
            nudged = jax.tree.map(lambda g, d: g + amount * d, gradients(params), direction)
            return loss_of(optax.apply_updates(params, tx.update(nudged, tx.init(params), params)[0]))

        numeric = (jax.jit(moved)(1e-5) - jax.jit(moved)(-1e-5)) / 2e-5
        exact = jax.jit(jax.grad(moved))(0.0)
        assert float(exact) == pytest.approx(float(numeric), rel=1e-3, abs=1e-9)


def test_eval_shape_of_init(tx: Any) -> None:
    shapes = jax.eval_shape(tx.init, tree())
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tx.init(tree())
    )


def test_state_through_orbax(tx: Any, tmp_path: Any) -> None:
    params, state = steps(tx, tree(), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    update = jax.jit(tx.update)
    assert_equal(update(gradients(params), restored, params)[0], update(gradients(params), state, params)[0])


def matrices(place: Callable[[jax.Array, PartitionSpec], jax.Array]) -> dict[str, jax.Array]:
    """Tensors that are sharded over four devices in every way, and some that are not."""
    values = jnp.sin(jnp.arange(64 * 48.0)).reshape(64, 48)
    return {
        "rows": place(values, PartitionSpec("data", None)),
        "columns": place(values, PartitionSpec(None, "data")),
        "vector": place(values[:, 0], PartitionSpec("data")),
        "whole": place(values[:8], PartitionSpec()),
    }


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", NAMES)
def test_sharded_parameters_stay_sharded(name: str, kind: AxisType) -> None:
    """The sharding never changes, updates are those of a single device, and the program has no gather.

    Only Muon gathers: it needs whole matrices.
    """
    tx = transformation(name)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    sharded = matrices(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)))
    whole = matrices(lambda x, spec: x)
    state = tx.init(sharded)
    compiled = jax.jit(tx.update).lower(gradients(sharded), state, sharded).compile()
    text = compiled.as_text()
    if not name.startswith("muon-mlp"):
        assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    updates, after = compiled(gradients(sharded), state, sharded)
    for param, update in zip(jax.tree.leaves(sharded), jax.tree.leaves(updates), strict=True):
        assert update.sharding.is_equivalent_to(param.sharding, param.ndim)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert now.sharding.is_fully_replicated == before.sharding.is_fully_replicated
        if not before.sharding.is_fully_replicated:
            assert now.sharding.is_equivalent_to(before.sharding, before.ndim)
    expected, _ = jax.jit(tx.update)(gradients(whole), tx.init(whole), whole)
    # On automatic axes, sums have another order. Muon's iterations make small singular values, and their
    # rounding, up to 3.4 times as large each.
    reordered = kind == AxisType.Auto and name.startswith("muon-mlp")
    assert_close(updates, expected, 3e-5 if reordered else 1e-5)


def test_learning_rate_of_the_users_own() -> None:
    """A number, a schedule, an injected rate, and manual composition all give the same updates."""
    optimizer = learned_opt.get_architecture("celo2-style")
    theta = optimizer.init_theta(jax.random.key(1), 1)
    make = partial(learned_opt.as_optax, optimizer, theta)
    direction = learned_opt.scale_by_learned(optimizer, theta)
    params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4)}
    expected = steps(make(learning_rate=0.1), params)[0]
    for tx in (
        make(learning_rate=lambda count: 0.1),
        optax.inject_hyperparams(make)(learning_rate=0.1),
        optax.chain(direction, optax.scale_by_learning_rate(0.1)),
        optax.chain(make(learning_rate=1.0), optax.scale(0.1)),
    ):
        assert_close(steps(tx, params)[0], expected)
    decayed = optax.chain(direction, optax.add_decayed_weights(0.5), optax.scale_by_learning_rate(0.1))
    once = jax.tree.map(lambda p, q: q - 0.1 * 0.5 * p, params, steps(make(learning_rate=0.1), params, 1)[0])
    assert_close(steps(decayed, params, 1)[0], once)
    updates, _ = jax.jit(direction.update)(gradients(params), direction.init(params), params)
    assert jnp.sqrt(jnp.mean(updates["w"] ** 2)) == pytest.approx(1, rel=1e-5)


def test_a_learning_rate_that_is_not_wanted() -> None:
    optimizer = learned_opt.get_architecture("mlp")
    with pytest.raises(learned_opt.UserError, match="takes no learning rate"):
        learned_opt.as_optax(optimizer, optimizer.init_theta(jax.random.key(0), 1), learning_rate=0.1)
