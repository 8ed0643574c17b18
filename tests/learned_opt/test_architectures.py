"""Every architecture against its plain formula, an independent computation in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt import ARCHITECTURES, UserError, get_architecture
from learned_opt._src.architectures.per_parameter import PerParameterMLP, apply_network, rms_scale
from learned_opt._src.architectures.tensors import BLOCK_SIZE, Entries, Packed, Whole
from tests.learned_opt.plain import RULES
from tests.marks import slow

SIZES = {
    "mlp": 19 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2,
    "metz2019": 21 * 32 + 32 + 32 * 2 + 2,
    "small-fc": 39 * 4 + 4 + 4 * 4 + 4 + 4 * 2 + 2 + 7,
    "celo2-style": 30 * 8 + 8 + 8 * 8 + 8 + 8 + 1 + 1,
    "relative-mlp": 28 * 16 + 16 + 16 * 16 + 16 + 16 + 1 + (16 * 16 + 16 + 16 + 1),
    "nadam-mlp": 17 * 16 + 16 + 16 + 1 + (11 * 8 + 8 + 8 + 1) + 5,
    "muon-mlp": 18 * 16 + 16 + 16 + 1 + (11 * 8 + 8 + 8 * 2 + 2) + 10,
    "sgdm": 3,
    "adam": 5,
    "sgdm-per-block": 3 * 4,
    "adam-per-block": 5 * 4,
}
NETWORKS = ("mlp", "metz2019", "small-fc", "celo2-style", "relative-mlp", "nadam-mlp", "muon-mlp")


def relative_error(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


def random_theta(name, seed):
    """Weights like those after meta-training: larger than the initial ones, with biases."""
    theta = get_architecture(name).init_theta(jax.random.key(seed), 1)
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(theta))))
    moved = jax.tree.map(lambda w: w + 0.3 * jax.random.normal(next(keys), w.shape), theta)
    return {k: theta[k] if "decays" in k else v for k, v in moved.items()}


@pytest.mark.parametrize("name", SIZES)
def test_weights(name):
    theta = get_architecture(name).init_theta(jax.random.key(0), 4)
    assert sum(w.size for w in jax.tree.leaves(theta)) == SIZES[name]
    # A weak type would be lost in the first update of meta-training and cause a second compilation.
    assert all(w.dtype == jnp.float32 and not w.weak_type for w in jax.tree.leaves(theta))


def test_every_architecture_is_tested():
    assert set(SIZES) == set(ARCHITECTURES)
    assert set(RULES) | {"sgdm-per-block", "adam-per-block"} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "shape", [slow(()), slow((7,)), (BLOCK_SIZE + 1,), slow((64, 33)), (3, 4, 5, 6, 7)], ids=str
)
@pytest.mark.parametrize("name", RULES)
def test_updates_equal_the_plain_formula(name, shape):
    """Five steps from the start, with realistic gradients, some of them small."""
    optimizer, theta = get_architecture(name), random_theta(name, 5)
    keys = jax.random.split(jax.random.key(3), 6)
    param = 0.3 * jax.random.normal(keys[0], shape) + 0.1
    update, state = jax.jit(optimizer.update), optimizer.init({"w": param})
    exact_theta = jax.tree.map(lambda w: np.asarray(w, np.float64), theta)
    gradients, found, expected = [], [], []
    for count in range(5):
        gradient = 10.0 ** (-count) * (jax.random.normal(keys[count + 1], shape) + 0.5)
        gradients.append(np.asarray(gradient, np.float64))
        updates, state = update(theta, {"w": gradient}, state, {"w": param})
        found.append(updates["w"])
        expected.append(RULES[name](exact_theta, gradients, np.asarray(param, np.float64), count))
        param = param + updates["w"]
    # In float32, 1 - 0.9999 has a relative error of 1.7e-4.
    assert relative_error(found, np.stack(expected)) < 1e-4
    assert int(state.count) == 5


@pytest.mark.parametrize("count", [0, 1, 100_000])
@pytest.mark.parametrize("name", ["mlp", slow("metz2019"), slow("small-fc"), "sgdm"])
def test_steps_are_counted_from_zero(name, count):
    """After a single gradient, as if all earlier ones had been zero: only the step number differs."""
    optimizer, theta, param = get_architecture(name), random_theta(name, 1), jnp.linspace(-1, 1, 9)
    state = optimizer.init(param)
    state = jax.tree.unflatten(jax.tree.structure(state), [jnp.int32(count), *jax.tree.leaves(state)[1:]])
    update, _ = optimizer.update(theta, param, state, param)
    exact = jax.tree.map(lambda w: np.asarray(w, np.float64), theta)
    expected = RULES[name](exact, [np.asarray(param, np.float64)], np.asarray(param, np.float64), count)
    assert relative_error(update, expected) < 2e-5


@pytest.mark.parametrize("name", ["mlp", *(slow(n) for n in ARCHITECTURES if n != "mlp")])
def test_tensors_do_not_see_each_other(name):
    optimizer = get_architecture(name)
    theta = optimizer.init_theta(jax.random.key(0), 2)
    a, b = jnp.arange(1.0, 5.0), jnp.arange(2.0, 8.0).reshape(2, 3)
    both, _ = optimizer.update(theta, {"a": a, "b": b}, optimizer.init({"a": a, "b": b}), {"a": a, "b": b})
    other, _ = optimizer.update(
        theta, {"a": -a, "b": b}, optimizer.init({"a": a, "b": b}), {"a": 2 * a, "b": b}
    )
    np.testing.assert_array_equal(both["b"], other["b"])


@pytest.mark.parametrize("packed", [slow(False), True])
def test_network_equals_flax_module(packed):
    """For one tensor in its own shape, and for three that share blocks."""
    network = PerParameterMLP(hidden=(5, 6, 7), outputs=3)
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = [(3, BLOCK_SIZE, 2), (), (7, 11)] if packed else [(3, BLOCK_SIZE, 2)]
    constants = jax.random.normal(keys[0], (3, len(shapes)))
    theta = network.init(keys[1], jnp.zeros((1, 4 + 3)))["params"]
    each = [10 * jax.random.normal(key, (4, *shape)) for key, shape in zip(keys[2:], shapes, strict=False)]
    parts = [Entries(x[:1], x[1:2], x[2:]) for x in each]
    tensors = Packed(shapes, jax.tree.map(lambda *xs: list(xs), *parts)) if packed else Whole(parts[0])

    def features(entries, each):
        return [entries.gradient, entries.param, entries.accumulated]

    scale = rms_scale(tensors, features, 0.1)
    found = apply_network(
        theta, tensors, features, scale, constants, lambda out, *_: out[0] - out[1] * out[2]
    )
    mean_square = tensors.mean_square(found)[0]
    for x, own, mean, part in zip(
        each, constants.T, mean_square, tensors.unpacked(found) if packed else [found], strict=True
    ):
        rms = jnp.sqrt(0.1 + jnp.mean(x**2, axis=tuple(range(1, x.ndim)), keepdims=True))
        rows = jnp.moveaxis(x / rms, 0, -1)
        rows = jnp.concatenate([rows, jnp.broadcast_to(own, (*x.shape[1:], 3))], axis=-1)
        out = jnp.moveaxis(network.apply({"params": theta}, rows), -1, 0)
        expected = out[0] - out[1] * out[2]
        assert part.shape == expected.shape
        assert relative_error(part, expected) < 1e-5
        assert mean == pytest.approx(float(jnp.mean(expected**2)), rel=1e-5)


@pytest.mark.parametrize("name", ["mlp", "relative-mlp"])
def test_scale_of_loss_hardly_matters(name):
    """Features are divided by their root mean square, so 1,000 times the gradient gives the same step,
    as long as even the slowest momentum is well above the epsilon of that division."""
    optimizer, theta = get_architecture(name), random_theta(name, 2)
    param, gradient = jnp.linspace(-1, 1, 50), 1e4 * (2 + jnp.cos(jnp.arange(50.0)))
    state = optimizer.init(param)
    small, _ = optimizer.update(theta, gradient, state, param)
    large, _ = optimizer.update(theta, 1000 * gradient, state, param)
    assert relative_error(large, small) < 1e-3


@pytest.mark.parametrize("name", [slow("relative-mlp"), slow("nadam-mlp"), "muon-mlp"])
def test_relative_steps_follow_the_units_of_the_parameters(name):
    """With parameters 1,000 times larger and gradients 1,000 times smaller, steps are 1,000 times larger."""
    optimizer, theta = get_architecture(name), random_theta(name, 3)
    param, gradient = jnp.linspace(-50, 50, 60).reshape(6, 10), jnp.cos(jnp.arange(60.0)).reshape(6, 10)
    state = optimizer.init(param)
    plain, _ = optimizer.update(theta, gradient, state, param)
    scaled, _ = optimizer.update(theta, gradient / 1000, state, 1000 * param)
    assert relative_error(scaled, 1000 * plain) < 1e-4


@pytest.mark.parametrize("name", [slow("relative-mlp"), slow("nadam-mlp"), "muon-mlp"])
def test_relative_steps_change_wide_and_narrow_layers_alike(name):
    """In the spectral norm, an update for a rank-one gradient is the same share of the weights."""
    optimizer, theta, shares = get_architecture(name), random_theta(name, 4), []
    for width in (16, 144):
        keys = jax.random.split(jax.random.key(width), 3)
        param = jax.random.normal(keys[0], (4 * width, width)) / jnp.sqrt(width)
        signs = [jnp.sign(jax.random.normal(key, (n,))) for key, n in zip(keys[1:], param.shape, strict=True)]
        update, _ = optimizer.update(theta, jnp.outer(*signs), optimizer.init(param), param)
        shares.append(np.linalg.norm(np.asarray(update), 2) / np.linalg.norm(np.asarray(param), 2))
    assert max(shares) < 1.15 * min(shares)


def test_a_tensor_without_gradients_stays():
    optimizer, theta, param = (
        get_architecture("relative-mlp"),
        random_theta("relative-mlp", 5),
        jnp.ones((4, 5)),
    )
    update, state = optimizer.update(theta, 0 * param, optimizer.init(param), param)
    assert (update == 0).all()
    update, _ = optimizer.update(theta, param.at[0].set(0), state, param)
    assert jnp.isfinite(update).all() and (update != 0).any()


@pytest.mark.parametrize("name", ["adam", "muon-mlp", *map(slow, (*NETWORKS[:-1], "sgdm"))])
def test_a_tensor_without_gradients_has_no_part_in_the_derivative(name):
    """The derivative of three steps, with one, is that without it."""
    optimizer, theta = get_architecture(name), random_theta(name, 6)
    used, unused = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.ones((4, 5))

    def loss(theta, params):
        state = optimizer.init(params)
        for _ in range(3):
            gradients = jax.grad(lambda params: jnp.sum(params["used"] ** 2))(params)
            updates, state = optimizer.update(theta, gradients, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return jnp.sum(params["used"] ** 2)

    derivative = jax.jit(jax.grad(loss))
    found, expected = derivative(theta, {"used": used, "unused": unused}), derivative(theta, {"used": used})
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-5 * float(jnp.abs(other).max()))
    assert any(jnp.any(own != 0) for own in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ["muon-mlp", *map(slow, NETWORKS[:-1])])
def test_a_huge_gradient_does_not_spoil_its_tensor(name):
    """Its square is not a number of float32."""
    optimizer, theta, param = get_architecture(name), random_theta(name, 7), jnp.ones((3, 4))
    update, state = jax.jit(optimizer.update), optimizer.init(param)
    gradient = jnp.cos(jnp.arange(12.0)).reshape(3, 4)
    for huge in (1.0, 1e20, 3e38, 1.0):
        step, state = update(theta, gradient.at[1, 2].multiply(huge), state, param)
        assert jnp.isfinite(step).all()


def test_unit_rate_of_celo2_style():
    optimizer, theta = get_architecture("celo2-style"), random_theta("celo2-style", 0)
    param, gradient = jnp.ones((4, 5)), jnp.cos(jnp.arange(20.0)).reshape(4, 5)
    state = optimizer.init(param)
    own, _ = optimizer.update(theta, gradient, state, param)
    unit, _ = optimizer.update(optimizer.unit_rate(theta), gradient, state, param)
    assert jnp.sqrt(jnp.mean(unit**2)) == pytest.approx(1, rel=1e-5)
    assert relative_error(own, jnp.exp(theta["log_learning_rate"]) * unit) < 1e-6


@pytest.mark.parametrize("name", ["nadam-mlp", "muon-mlp"])
@pytest.mark.parametrize("total", [10, 8000, None])
def test_unit_rate_replaces_the_schedule(name, total):
    """The steps with the learned schedule are those without it, times the formula of the schedule."""
    optimizer, theta = get_architecture(name), random_theta(name, 1)
    # The terms of the step can have schedules of their own; here they share one.
    theta["schedule"] = {key: jnp.full_like(x, x[0]) for key, x in theta["schedule"].items()}
    warm_up, power, fade, decay = (
        np.exp(3 * float(theta["schedule"][key][0])) for key in ("warm_up", "power", "fade", "decay")
    )
    param, gradient = jnp.ones((4, 5)), jnp.cos(jnp.arange(20.0)).reshape(4, 5)
    state = optimizer.init(param)
    for t in range(4):
        told = () if total is None else (total,)
        unit, _ = optimizer.update(optimizer.unit_rate(theta), gradient, state, param, *told)
        own, state = optimizer.update(theta, gradient, state, param, *told)
        rising = min(1, (t + 1) / max(1, warm_up * (3 if total is None else 0.003 * total)))
        p = t / (total or 1)
        longer = min(1, 2000 / total) ** 0.5 if total else 1
        falling = (1 - p) ** power / (1 + fade * p) if total else (1 + t / 100) ** (-0.75 * decay)
        assert relative_error(own, rising * longer * falling * unit) < 1e-5


def test_learned_decays_of_small_fc():
    """They are ``1 - (1 - d) exp(10 theta)``, clipped to between 0 and 1; at 1 nothing would ever move."""
    optimizer = get_architecture("small-fc")
    theta = optimizer.init_theta(jax.random.key(0), 1)
    theta |= {"momentum_decays": jnp.array([0.1, -0.1, 1.0])}
    param = jnp.ones(3)
    _, state = optimizer.update(theta, param, optimizer.init(param), param)
    expected = [0.1 * np.e, 0.01 / np.e, 1.0]  # shares of the first gradient; 0.001 e^10 exceeds 1
    np.testing.assert_allclose(state.accumulators.momenta[:, 0], expected, rtol=1e-4)
    step, _ = optimizer.update(theta | {"momentum_decays": jnp.full(3, -2.0)}, param, state, param)
    assert (step != 0).all()


@pytest.mark.parametrize("name", ["sgdm", "adam"])
def test_hyperparameters_of_each_block(name):
    """With a set for each tensor, in order of leaves, each moves as if its set were used for all."""
    optimizer, single = get_architecture(f"{name}-per-block"), get_architecture(name)
    thetas = [random_theta(name, seed) for seed in (1, 2)]
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *thetas)
    params = {"a": jnp.arange(1.0, 5.0), "b": jnp.ones((2, 3))}
    updates, _ = optimizer.update(both, params, optimizer.init(params), params)
    for theta, name in zip(thetas, params, strict=True):
        alone, _ = single.update(theta, params, single.init(params), params)
        np.testing.assert_allclose(updates[name], alone[name], rtol=1e-6)
    with pytest.raises(UserError, match="each of 2 tensors, but the parameters have 1"):
        optimizer.update(both, {"a": params["a"]}, optimizer.init({"a": params["a"]}), {"a": params["a"]})
