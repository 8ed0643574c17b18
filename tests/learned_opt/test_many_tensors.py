"""Many tensors: equal ones share one program, and stacked layers move like separate tensors."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import learned_opt
from learned_opt._src.layer_axes import separate_layers
from tests.learned_opt.contract import (
    EVERY,
    INPUTS,
    NAMES,
    assert_close,
    gradients,
    named,
    steps,
    transformation,
    tree,
)
from tests.marks import slow


def transformer(layers: int) -> dict[str, Any]:
    """The parameters of a small transformer: per layer 16 tensors of five shapes, and three more."""
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
    """The number of equations with these primitives, including inner ones."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name in names
        found += sum(equations(sub, names) for sub in jax.extend.core.jaxprs_in_params(eqn.params))
    return found


NETWORKS = [n for n in EVERY if not n.startswith(("adam", "sgdm"))]


@pytest.mark.parametrize("name", ["mlp", *(slow(n) for n in NETWORKS if n != "mlp")])
def test_equal_tensors_are_one_program(name: str) -> None:
    """The program for 99 tensors has no more operations than that for 67 of the same shapes."""
    names = frozenset({"dot_general", "reduce_sum", "rsqrt"})
    counts = []
    for layers in (4, 6):
        params, tx = transformer(layers), named(name, 1)
        assert len(jax.tree.leaves(params)) == 16 * layers + 3
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
        counts.append(equations(jaxpr.jaxpr, names))
    assert counts[0] == counts[1] > 0


# The others look at the rows and columns of each tensor.
FOR_ENTRIES = [n for n in NETWORKS if not n.startswith(("small-fc", "celo2", "muon"))]


@pytest.mark.parametrize("name", ["mlp", *(slow(n) for n in FOR_ENTRIES if n != "mlp")])
def test_small_tensors_of_different_shapes_are_one_program(name: str) -> None:
    """24 shapes have as many products of matrices and roots as 6."""
    counts = []
    for shapes in (6, 24):
        params, tx = {f"{n}": jnp.ones((n + 2, 30 - n)) for n in range(shapes)}, named(name, 1)
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
        counts.append(equations(jaxpr.jaxpr, frozenset({"dot_general", "rsqrt"})))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", EVERY)
def test_outside_jit_an_update_is_one_program(name: str) -> None:
    """If the caller does not compile, that program is the only thing dispatched."""
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
    """Layers along an axis of one tensor, as ``nn.scan`` stores them, next to a tensor without layers."""
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
    """``layer_axes`` as a user would give it; without it the updates differ."""

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


@pytest.mark.parametrize("axis", [2, -1])
def test_an_axis_that_no_layer_lies_along_is_named(axis: int) -> None:
    tx = named("sgdm", 1, layer_axes={"w": axis})
    with pytest.raises(learned_opt.UserError, match=rf"\['w'\].* \(3, 4\).*axis {axis}"):
        tx.init({"w": jnp.ones((3, 4))})


def test_there_may_be_no_layers() -> None:
    tx, params = named("sgdm", 1, layer_axes=0), {"w": jnp.ones((0, 3))}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].shape == (0, 3)


def test_separate_layers_is_of_any_optimizer() -> None:
    """A user-defined rule whose state is a tree of momenta."""
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
