"""What training scripts do with an optimizer, for every architecture and every pretrained optimizer.

Each test is of something that works with ``optax.adam``: Flax, Equinox, Orbax, optax's wrappers and tree
functions, and the conditions that optax sets for its contributed optimizers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import learned_opt
from tests.learned_opt.contract import (
    EVERY,
    INPUTS,
    NAMES,
    assert_close,
    assert_equal,
    gradients,
    named,
    steps,
    transformation,
    tree,
)
from tests.marks import slow


@pytest.mark.parametrize("name", EVERY)
def test_the_state_has_one_structure_however_it_is_made(name: str) -> None:
    """From arrays, traced arrays, and shapes; all leaves are arrays."""
    tx = named(name, 4)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), tree())
    made = tx.init(tree())
    for other in (jax.jit(tx.init)(tree()), jax.eval_shape(tx.init, tree()), tx.init(shapes)):
        assert jax.tree.structure(other) == jax.tree.structure(made)
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(other)] == [
            (x.shape, x.dtype) for x in jax.tree.leaves(made)
        ]
    _, after = jax.eval_shape(tx.update, gradients(tree()), made, tree())
    assert jax.tree.structure(after) == jax.tree.structure(made)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(made))


@pytest.mark.parametrize("name", EVERY)
def test_map_params_and_get_know_the_state(name: str) -> None:
    """The accumulators are trees like the parameters; only one field is called count."""
    tx = named(name, 4)
    state = tx.init(tree())
    assert int(optax.tree.get(state, "count")) == 0
    mapped = optax.tree.map_params(
        tx, lambda x, p: x + jnp.asarray(p).size, state, tree(), transform_non_params=lambda x: x - 1
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    assert int(mapped.count) == -1
    sizes = {float(p.size) for p in jax.tree.leaves(tree())}
    assert {float(x.max()) for x in jax.tree.leaves(mapped.accumulators)} == sizes
    momenta = optax.tree.get(state, "momenta")
    assert jax.tree.structure(momenta) == jax.tree.structure(tree())


class Model(nnx.Module):
    """Two layers."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.relu(self.first(x)))


def nnx_loss(model: Model) -> jax.Array:
    return jnp.mean((model(INPUTS) - 1) ** 2)


@pytest.mark.parametrize("wrapped", [slow(False), True], ids=["alone", "MultiSteps"])
@pytest.mark.parametrize("name", NAMES)
def test_flax_nnx(name: str, wrapped: bool) -> None:
    """Four updates of ``nnx.Optimizer`` under ``nnx.jit`` equal those of the transformation."""
    tx = named(name, 4)
    tx = optax.MultiSteps(tx, 2) if wrapped else tx
    model = Model()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer) -> None:
        optimizer.update(model, nnx.grad(nnx_loss)(model))

    def pure_loss(params: Any) -> jax.Array:
        model = Model()
        nnx.update(model, params)
        return nnx_loss(model)

    @jax.jit
    def pure_step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(pure_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, start = tx.init(params), params
    for _ in range(4):
        step(model, optimizer)
        params, state = pure_step(params, state)
    found = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, params)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_nnx_optimizer_through_orbax(name: str, tmp_path: Path) -> None:
    make = lambda: nnx.Optimizer(Model(), named(name, 4), wrt=nnx.Param)  # noqa: E731
    optimizer = make()
    state = jax.tree.map(lambda x: x + 1, nnx.state(optimizer))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", nnx.state(make()))
    assert_equal(nnx.to_pure_dict(restored), nnx.to_pure_dict(state))
    nnx.update(optimizer, restored)


@pytest.mark.parametrize("name", EVERY)
def test_train_state_through_bytes(name: str) -> None:
    make = partial(TrainState.create, apply_fn=None, params={"a": jnp.ones((2, 3)), "b": jnp.ones(3)})
    fresh = make(tx=named(name, 2))
    used = jax.tree.map(lambda x: x + 1, fresh)
    restored = flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(used))
    assert jax.tree.structure(restored) == jax.tree.structure(used)
    assert_equal(restored, used)


@pytest.mark.parametrize("name", NAMES)
def test_equinox(name: str) -> None:
    """With the model filtered to arrays; or, as for Adam, with the whole model in ``update``."""
    tx = named(name, 4)
    model = eqx.nn.MLP(4, "scalar", width_size=3, depth=1, key=jax.random.key(2))
    gradients = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(INPUTS) - 1) ** 2))(model)
    state = tx.init(eqx.filter(model, eqx.is_array))
    update = eqx.filter_jit(tx.update)
    updates, after = update(gradients, state, eqx.filter(model, eqx.is_array))
    whole, _ = update(gradients, state, model)
    assert_equal(updates, whole)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved = eqx.apply_updates(model, updates)
    assert not np.allclose(moved.layers[0].weight, model.layers[0].weight, rtol=0, atol=1e-9)
    with pytest.raises(learned_opt.UserError, match=r"activation is of type .*eqx.filter\(model"):
        tx.init(model)


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_shrinks(name: str) -> None:
    """``scale (u - decay p)``, only where the mask is true."""
    params = {"w": jnp.linspace(1, 2, 6).reshape(2, 3), "b": jnp.linspace(1, 2, 3)}
    plain, _ = jax.jit(named(name, 2).update)(gradients(params), named(name, 2).init(params), params)
    for mask in ({"w": True, "b": False}, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)):
        tx = named(name, 2, scale=0.5, weight_decay=0.1, mask=mask)
        found, _ = jax.jit(tx.update)(gradients(params), tx.init(params), params)
        assert_close(found, {"w": 0.5 * (plain["w"] - 0.1 * params["w"]), "b": 0.5 * plain["b"]})


@pytest.mark.parametrize("name", NAMES)
def test_scale_is_a_number_or_a_schedule_and_can_be_injected(name: str) -> None:
    """Three steps with a warm-up over two: as a schedule, by hand, and injected; the first step is zero."""
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    params, plain = tree(), named(name, 4)

    def by_hand(params: Any) -> Any:
        state = plain.init(params)
        for count in range(3):
            updates, state = jax.jit(plain.update)(gradients(params), state, params)
            factor = schedule(count)
            params = jax.tree.map(lambda p, u, factor=factor: p + factor * u, params, updates)
        return params

    expected = by_hand(params)
    make = partial(named, name, 4)
    injected = optax.inject_hyperparams(lambda scale: make(scale=scale))(scale=schedule)
    for tx in (make(scale=schedule), injected):
        found, _ = steps(tx, params, 3)
        assert_close(jax.tree.map(jnp.subtract, found, params), jax.tree.map(jnp.subtract, expected, params))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "factor", [np.float32(0.5), jnp.float32(0.5), ml_dtypes.bfloat16(0.5), jnp.bfloat16(0.5)]
)
def test_numbers_of_any_kind_leave_the_dtype_of_the_updates(dtype: str, factor: Any) -> None:
    params = {"w": jnp.ones((2, 3), dtype)}
    optimizer = learned_opt.get_architecture("celo2-style")
    theta = optimizer.init_theta(jax.random.key(0), 1)
    for options in ({"scale": factor}, {"weight_decay": factor}, {"learning_rate": factor}):
        tx = learned_opt.as_optax(optimizer, theta, **options)
        updates = jax.eval_shape(tx.update, params, tx.init(params), params)[0]
        assert updates["w"].dtype == dtype


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_an_entry_that_is_not_finite_does_not_touch_its_neighbours(name: str, broken: float) -> None:
    """In a gradient, and at the next step in the parameter: other entries move as if it were zero."""
    tx, params = named(name, 1), jnp.linspace(-1, 1, 12).reshape(3, 4)
    clean = jnp.cos(3 * params).at[1, 2].set(0)
    update = jax.jit(tx.update)
    others = jnp.ones_like(params, bool).at[1, 2].set(False)
    found, state = update(clean.at[1, 2].set(broken), tx.init(params), params)
    expected, expected_state = update(clean, tx.init(params), params)
    assert not np.isfinite(found[1, 2])
    np.testing.assert_array_equal(found[others], expected[others])
    if name not in ("sgdm", "adam", "sgdm-per-block", "adam-per-block", "adam-small-tasks"):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    later, _ = update(clean, state, params.at[1, 2].set(jnp.nan))
    expected, _ = update(clean, expected_state, params.at[1, 2].set(0))
    np.testing.assert_array_equal(later[others], expected[others])


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_an_embedding_wait_for_their_first_gradient(name: str) -> None:
    """A row starts to move at the step at which its word is first seen."""
    tx, params = transformation(name, 1), jnp.linspace(-1, 1, 20).reshape(5, 4)
    gradient = jnp.zeros_like(params).at[:2].set(jnp.cos(params[:2]))
    update = jax.jit(tx.update)
    first, state = update(gradient, tx.init(params), params)
    assert np.all(first[:2] != 0) and not np.any(first[2:])
    second, state = update(jnp.zeros_like(params).at[3].set(1.0), state, params)
    third, _ = update(jnp.zeros_like(params), state, params)
    for later in (second, third):
        assert np.all(later[:2] != 0) and np.all(later[3] != 0)
        assert not np.any(later[2]) and not np.any(later[4])
