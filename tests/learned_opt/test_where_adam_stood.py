"""What training scripts do with an optimizer, asked of every architecture and of every pretrained one.

Each is something that works with ``optax.adam``: Flax, Equinox, Orbax, optax's wrappers and tree functions,
and the conditions that optax sets its own contributed optimizers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
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
from learned_opt._src.layer_axes import separate_layers
from tests.compiling import often
from tests.learned_opt.test_optax_contract import (
    NAMES,
    assert_close,
    assert_equal,
    described,
    gradients,
    steps,
    transformation,
    tree,
)
from tests.marks import slow

ROOT = Path(__file__).parents[2]
EVERY = [*learned_opt.ARCHITECTURES, *learned_opt.pretrained_names()]  # for tests that compile nothing
PRETRAINED = [
    name if name == "relative-mlp-small-tasks" else slow(name) for name in learned_opt.pretrained_names()
]
INPUTS = jnp.sin(jnp.arange(20.0)).reshape(5, 4)


def named(name: str, blocks: int, **options: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer by the name of its architecture, or the pretrained one, for so many tensors."""
    if name in learned_opt.pretrained_names():
        return learned_opt.pretrained(name, **options)
    optimizer = learned_opt.get_architecture(name)
    return learned_opt.as_optax(optimizer, optimizer.init_theta(jax.random.key(1), blocks), **options)


@pytest.mark.parametrize("name", EVERY)
def test_the_state_has_one_structure_however_it_is_made(name: str) -> None:
    """From arrays, traced arrays, and shapes; and its leaves are arrays."""
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
    """The accumulators are trees like the parameters; the count is the one thing that is called so."""
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
    """Four updates of ``nnx.Optimizer`` under ``nnx.jit`` are those of the transformation."""
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
    """Filtered by arrays; or in ``update`` the whole model, with its functions, as Adam takes it."""
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
    """``scale (u - decay p)``, and only where the mask says so."""
    params = {"w": jnp.linspace(1, 2, 6).reshape(2, 3), "b": jnp.linspace(1, 2, 3)}
    plain, _ = jax.jit(named(name, 2).update)(gradients(params), named(name, 2).init(params), params)
    for mask in ({"w": True, "b": False}, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)):
        tx = named(name, 2, scale=0.5, weight_decay=0.1, mask=mask)
        found, _ = jax.jit(tx.update)(gradients(params), tx.init(params), params)
        assert_close(found, {"w": 0.5 * (plain["w"] - 0.1 * params["w"]), "b": 0.5 * plain["b"]})


@pytest.mark.parametrize("name", NAMES)
def test_scale_is_a_number_or_a_schedule_and_can_be_injected(name: str) -> None:
    """Three steps: warm-up over two, as a schedule, by hand, and injected; nothing at the first."""
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
    """In a gradient, and at the next step in the parameter: the others move as if it had been zero."""
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
    """A row moves from the step on at which its word is first seen."""
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


def transformer(layers: int) -> dict[str, Any]:
    """The parameters of a small one: 16 tensors a layer of five shapes, and three more."""
    d = 4
    layer = {
        **{part: {"w": jnp.ones((d, d)), "b": jnp.ones(d)} for part in "qkvo"},
        **{norm: {"scale": jnp.ones(d), "bias": jnp.ones(d)} for norm in ("norm 1", "norm 2")},
        "up": {"w": jnp.ones((d, 4 * d)), "b": jnp.ones(4 * d)},
        "down": {"w": jnp.ones((4 * d, d)), "b": jnp.ones(d)},
    }
    return {"embedding": jnp.ones((9, d)), "positions": jnp.ones((7, d)), "norm": jnp.ones(d)} | {
        f"layer {i}": layer for i in range(layers)
    }


def equations(jaxpr: Any, names: frozenset[str]) -> int:
    """How many equations of these primitives there are, inner ones included."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name in names
        found += sum(equations(sub, names) for sub in jax.extend.core.jaxprs_in_params(eqn.params))
    return found


NETWORKS = [n for n in EVERY if not n.startswith(("adam", "sgdm"))]


@pytest.mark.parametrize("name", ["mlp", *(slow(n) for n in NETWORKS if n != "mlp")])
def test_equal_tensors_are_one_program(name: str) -> None:
    """99 tensors have as many products of matrices as 67 of the same shapes, and are compiled as few."""
    names = frozenset({"dot_general", "reduce_sum", "rsqrt"})
    counts = []
    for layers in (4, 6):
        params, tx = transformer(layers), named(name, 1)
        assert len(jax.tree.leaves(params)) == 16 * layers + 3
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
        counts.append(equations(jaxpr.jaxpr, names))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", EVERY)
def test_outside_jit_an_update_is_one_program(name: str) -> None:
    """What is dispatched one by one where the caller does not compile: nothing but that program."""
    params = transformer(2)
    tx = named(name, len(jax.tree.leaves(params)))
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] in (["jit"], ["pjit"])


@pytest.mark.parametrize("name", ["mlp", *(slow(n) for n in NETWORKS if n != "mlp")])
def test_grouped_tensors_move_as_they_would_alone(name: str) -> None:
    tx, shape = named(name, 1), (3, 5)
    keys = jax.random.split(jax.random.key(0), 7)
    params = {str(i): jax.random.normal(key, shape) for i, key in enumerate(keys)}
    together, _ = steps(tx, params)
    for i in params:
        alone, _ = steps(tx, {"one": params[i]})
        assert_close(together[i] - params[i], alone["one"] - params[i])


@pytest.mark.parametrize("name", NAMES)
def test_ranks_are_not_promoted(name: str) -> None:
    tx = transformation(name)
    with jax.numpy_rank_promotion("raise"):
        state = tx.init(tree())
        jax.eval_shape(tx.update, gradients(tree()), state, tree())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_stacked_layers_move_as_separate_tensors(name: str, axis: int) -> None:
    """Layers along an axis of one tensor, as ``nn.scan`` stores them, beside a tensor that has none."""
    keys = jax.random.split(jax.random.key(0), 4)
    layers = [{"w": jax.random.normal(key, (3, 5)), "b": jax.random.normal(key, (3,))} for key in keys]
    stacked = jax.tree.map(lambda *x: jnp.stack(x, axis), *layers)
    head = jnp.linspace(-1, 1, 6).reshape(2, 3)
    axes = {"layers": axis, "head": None}
    tx, plain = named(name, 9, layer_axes=axes), named(name, 9)
    found, state = steps(tx, {"layers": stacked, "head": head})
    expected, _ = steps(plain, {"layers": layers, "head": head})
    assert_close(found["layers"], jax.tree.map(lambda *x: jnp.stack(x, axis), *expected["layers"]))
    assert_close(found["head"], expected["head"])
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), {"layers": stacked, "head": head})
    assert jax.tree.structure(tx.init(shapes)) == jax.tree.structure(state)
    mapped = optax.tree.map_params(tx, lambda x, p: x + p.ndim, tx.init(shapes), shapes)
    assert {int(x.max()) for x in jax.tree.leaves(mapped.accumulators)} == {2, 3}
    momenta = optax.tree.get(state, "momenta")["layers"]["w"]
    assert momenta.shape[momenta.ndim - 3 :] == stacked["w"].shape


def test_layers_of_flax_scan() -> None:
    """Named as a user would; the answer without it is another one."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return nn.relu(nn.Dense(4)(x)) + x, None

    net = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    params = net.init(jax.random.key(0), INPUTS, None)["params"]
    gradient = jax.grad(lambda p: jnp.mean((net.apply({"params": p}, INPUTS, None)[0] - 1) ** 2))(params)
    tx = learned_opt.pretrained("relative-mlp-small-tasks", layer_axes=0)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    plain = learned_opt.pretrained("relative-mlp-small-tasks")
    for layer in range(3):
        own_params, own = (jax.tree.map(lambda x, i=layer: x[i], x) for x in (params, gradient))
        expected, _ = jax.jit(plain.update)(own, plain.init(own_params), own_params)
        assert_close(jax.tree.map(lambda u, i=layer: u[i], updates), expected)
    together, _ = jax.jit(plain.update)(gradient, plain.init(params), params)
    kernels = [x["Dense_0"]["kernel"] for x in (together, updates)]
    assert not np.allclose(*kernels, rtol=0.01, atol=0)


def test_an_axis_that_no_layer_lies_along_is_named() -> None:
    tx = named("sgdm", 1, layer_axes={"w": 2})
    with pytest.raises(learned_opt.UserError, match=r"\['w'\].* \(3, 4\).*axis 2"):
        tx.init({"w": jnp.ones((3, 4))})


def parabola(target: Any) -> Any:
    return lambda params: sum(
        jnp.sum((p - t) ** 2) for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
    )


def objectives() -> dict[str, tuple[Any, Any, Any]]:
    """Where optax starts its own optimizers, where they must arrive, and what they minimise on the way."""
    vector, matrix = jnp.array([1.0, -1.0, 1.0]), jnp.array([[3.0, -2.0], [1.0, 4.0]])
    mixed = jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    return {
        "parabola": (jnp.array([-1.0, 10.0, 1.0]), vector, parabola(vector)),
        "rosenbrock": (
            jnp.zeros(2),
            jnp.ones(2),
            lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2,
        ),
        "matrix": (jnp.zeros((2, 2)), matrix, parabola(matrix)),
        "mixed": (jax.tree.map(jnp.zeros_like, mixed), mixed, parabola(mixed)),
    }


@pytest.mark.parametrize("objective", objectives())
@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_ones_arrive(name: str, objective: str) -> None:
    """In 30,000 steps, to 3%: the condition of optax."""
    start, target, loss = objectives()[objective]
    tx = learned_opt.pretrained(name)

    @often
    def train(params: Any) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=30_000)[0][0]

    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.03, atol=0.03), train(start), target)


@pytest.mark.parametrize("name", NAMES)
def test_multi_steps_with_small_parameters_and_large_gradients(name: str) -> None:
    tx, params = optax.MultiSteps(named(name, 2), 2), {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    large = jax.tree.map(lambda p: jnp.cos(jnp.arange(float(p.size))).reshape(p.shape), params)
    for _ in range(2):
        updates, after = update(large, state, params)
        assert described(updates) == described(params)
        assert described(after) == described(state)
        state = after
    assert all(np.any(u != 0) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", NAMES)
def test_apply_if_finite_in_a_chain_with_weight_decay(name: str) -> None:
    params = {"w": jnp.linspace(1, 2, 6).reshape(2, 3)}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.apply_if_finite(named(name, 1, weight_decay=0.1), 3)
    )
    update, state = jax.jit(tx.update), tx.init(params)
    updates, state = update({"w": jnp.full((2, 3), jnp.nan)}, state, params)
    assert not np.any(updates["w"])
    updates, _ = update(gradients(params), state, params)
    assert np.isfinite(updates["w"]).all() and np.any(updates["w"])


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_in_float16(name: str) -> None:
    """For a hundred steps: nothing becomes NaN, and nothing moves."""
    tx, params = named(name, 2), {"w": jnp.ones((2, 3), jnp.float16), "b": jnp.zeros(3, jnp.float16)}

    @often
    def train(params: Any) -> Any:
        def step(state: Any, _: None) -> tuple[Any, Any]:
            updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
            return state, updates

        return jax.lax.scan(step, tx.init(params), length=100)[1]

    assert all(not np.any(u) for u in jax.tree.leaves(train(params)))


def recipe(tx_of: Any, mask: Any) -> optax.GradientTransformation:
    """The recipe of docs/using-an-optimizer.md: clipping, warm-up, decay, weight decay, and a frozen part."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=150)
    learned = optax.chain(optax.clip_by_global_norm(1.0), tx_of(scale=schedule, weight_decay=1e-4, mask=mask))
    return optax.partition({"train": learned, "freeze": optax.set_to_zero()}, lambda p: labels(p))


def labels(params: Any) -> Any:
    return {name: "freeze" if name == "Dense_0" else "train" for name in params}


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_recipe_trains_a_real_model(name: str) -> None:
    """Digits, 150 steps: the loss falls to less than a quarter, and the frozen layer is as it was."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    images, digits = jnp.asarray(images / 16, jnp.float32), jnp.asarray(digits)
    net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(32), nn.relu, nn.Dense(10)])
    params = {
        k.replace("layers", "Dense"): v for k, v in net.init(jax.random.key(0), images)["params"].items()
    }

    def loss(params: Any) -> jax.Array:
        own = {k.replace("Dense", "layers"): v for k, v in params.items()}
        logits = net.apply({"params": own}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, digits).mean()

    tx = recipe(partial(learned_opt.pretrained, name), lambda p: jax.tree.map(lambda x: x.ndim > 1, p))

    @often
    def train(params: Any) -> tuple[Any, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), length=150)
        return params, losses

    after, losses = train(params)
    assert losses[0] > 2 and losses[-1] < losses[0] / 4
    assert_equal(after["Dense_0"], params["Dense_0"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_eight_devices_and_one(kind: str, tmp_path: Path) -> None:
    """States made four ways on eight devices; no gather; a checkpoint of eight devices restored on one."""
    program = [sys.executable, "-m", "tests.learned_opt.many_devices", kind, str(tmp_path / "state")]
    for devices in (8, 1):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["devices"] == devices


def test_public_names() -> None:
    """What ``dir`` shows is what is public; an architecture is no attribute of the package."""
    assert [name for name in dir(learned_opt) if not name.startswith("_")] == sorted(learned_opt.__all__)
    assert not hasattr(learned_opt, "adam")
    assert learned_opt.pretrained_names() == sorted(learned_opt.pretrained_names())
    with pytest.raises(TypeError):
        learned_opt.pretrained()


def test_separate_layers_is_of_any_optimizer() -> None:
    """A rule of a user's own, whose state is a tree of momenta."""
    own = learned_opt.LearnedOptimizer(
        init_theta=lambda key, blocks: jnp.zeros(()),
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda theta, g, state, p: (jax.tree.map(lambda x: -x / jnp.linalg.norm(x), g), g),
    )
    layered = separate_layers(own, 0)
    gradient = jnp.arange(1.0, 7.0).reshape(2, 3)
    updates, state = layered.update(jnp.zeros(()), gradient, layered.init(gradient), gradient)
    np.testing.assert_allclose(
        updates, -gradient / jnp.linalg.norm(gradient, axis=1, keepdims=True), rtol=1e-6
    )
    np.testing.assert_array_equal(state, gradient)
